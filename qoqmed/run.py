"""A run: the folder that holds everything one `qoqmed fit` made, and who may write in it.

recipe.yaml  environment.json  log.txt  heartbeat.json  run.lock
metrics.*  evaluations.jsonl  skipped.jsonl  traces/  checkpoints/  references/  dumps/
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from qoqmed import checkpoint, provenance
from qoqmed.checkpoint.files import append_row, read_rows, replace_text, to_line
from qoqmed.config import Recipe, load, to_dict, to_yaml
from qoqmed.errors import DataError, Problem, RunError, near
from qoqmed.types import Evaluation

_FREE = (  # what may differ between a run and its resumption: it does not change what is learned
    *(f"trainer.{key}" for key in ("out", "devices", "num_nodes", "accelerator", "strategy", "threads")),
    *(f"trainer.{key}" for key in ("checkpoint_every", "keep", "max_invalid", "max_skipped")),
    *(f"data.{key}" for key in ("root", "workers", "cache_mb", "on_error")),
    "rollout.max_logp_difference",
    *(f"rewards.KEY.{key}" for key in ("workers", "timeout_s")),
    *("loggers", "callbacks", "traces", "evaluation"),
)
_FREE_PATH = re.compile("|".join(rf"{re.escape(path).replace('KEY', '[^.]+')}(\.|$)" for path in _FREE))


class RunFolder:
    """Paths and small files of one run. Ranks other than 0 do not hold its lock: what they write is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.environment_file = path / "environment.json"
        self.heartbeat_file = path / "heartbeat.json"
        self.evaluations_file = path / "evaluations.jsonl"
        self.skipped_file = path / "skipped.jsonl"
        self.log_file = path / "log.txt"
        self.traces = path / "traces"
        self.checkpoints = path / "checkpoints"
        self.references = path / "references"
        self._lock: weakref.finalize[..., RunFolder] | None = None
        self._skipped: set[str] | None = None

    @classmethod
    def create(cls, out: Path, recipe: Recipe, command: Sequence[str]) -> RunFolder:
        """A new locked folder: `out`, or the next free of `out-2`, `out-3`, ... Nothing is ever overwritten."""
        if out.exists() and not out.is_dir():
            what, mend = "there is a file where the run's folder would be", "set trainer.out to a folder"
            raise RunError(Problem(what, "trainer.out", str(out), mend=mend))
        for path in _names(out):
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path)
            if not any(path.iterdir()) and run._acquire():
                break
        run.recipe_file.write_text(to_yaml(recipe), encoding="utf-8")
        replace_text(run.environment_file, json.dumps(provenance.environment(command) | {"resumed": []}, indent=2))
        run.traces.mkdir()
        run.checkpoints.mkdir()
        return run

    @classmethod
    def open(cls, path: Path, command: Sequence[str]) -> RunFolder:
        """An existing folder, locked, to resume in. Its environment file keeps the first start and every later one."""
        run = cls(path)
        run.require()
        run.lock()
        first = json.loads(run.environment_file.read_text(encoding="utf-8"))
        first["resumed"].append(provenance.environment(command))
        replace_text(run.environment_file, json.dumps(first, indent=2))
        return run

    def require(self) -> None:
        """Raises RunError where this is no run folder."""
        if not self.recipe_file.is_file():
            runs = [child.parent.name for child in self.path.parent.glob("*/recipe.yaml")]
            mend = near(self.path.name, runs) or "name a folder that `qoqmed fit` made"
            got = "no recipe.yaml in it"
            raise RunError(Problem("this is no run folder", str(self.path), got, "a run folder", mend))

    def recipe(self) -> Recipe:
        """The recipe that the run was started with. Raises RunError where this is no run folder."""
        self.require()
        return load(self.recipe_file, files=False)

    def discard(self) -> None:
        """Remove the folder of a start that was refused, unless a step was made in it."""
        if self._lock is not None and not any(self.traces.iterdir()) and not any(self.checkpoints.iterdir()):
            shutil.rmtree(self.path)

    def lock(self) -> None:
        """Raises RunError, naming the process, where another one works in this folder."""
        if not self._acquire():
            raise self._in_use()

    def release(self) -> None:
        """Let others use the folder. The lock also ends with this object, and with the process however that ends."""
        if self._lock is not None:
            self._lock()
            self._lock = None

    def beat(self, phase: str, step: int) -> None:
        """Tell whoever looks that this process lives, and what it is at."""
        if self._lock is not None:
            beat = {"pid": os.getpid(), "host": socket.gethostname(), "time": provenance.now()}
            replace_text(self.heartbeat_file, json.dumps(beat | {"phase": phase, "step": step}) + "\n")

    def log(self, text: str) -> None:
        """Add a line, with its time, to log.txt."""
        if self._lock is not None:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{provenance.now()} {text}\n")

    def warn(self, text: str) -> None:
        """Log a warning of the training itself, such as an estimator's."""
        self.log(f"warning: {text}")

    def record(self, evaluation: Evaluation) -> None:
        """Add a line to evaluations.jsonl."""
        if self._lock is not None:
            append_row(self.evaluations_file, asdict(evaluation))

    def rewrite_evaluations(self, evaluations: Sequence[Evaluation]) -> None:
        """Make evaluations.jsonl hold exactly these: a run resumed from an earlier step makes the later ones again."""
        if self._lock is not None:
            replace_text(self.evaluations_file, "".join(to_line(asdict(evaluation)) for evaluation in evaluations))

    def evaluations(self) -> list[Evaluation]:
        """Those in evaluations.jsonl, in order."""
        return [Evaluation(**row) for row in read_rows(self.evaluations_file)]

    def skip(self, error: DataError) -> None:
        """List data rows that were left out, each once per run. Every rank adds its own."""
        if self._skipped is None:
            self._skipped = {row["where"] for row in read_rows(self.skipped_file)}
        for problem in error.problems:
            if problem.where not in self._skipped:
                self._skipped.add(problem.where)
                append_row(self.skipped_file, asdict(problem))

    def save_reference(self, module: Any, stage: str, is_global_zero: bool) -> None:
        """Keep a stage's frozen reference: checkpoints hold the policy only. A collective where it is sharded."""
        ranks = checkpoint.Ranks(0 if is_global_zero else 1)
        tensors = checkpoint.gather(module.reference.state_dict().items(), ranks)
        if is_global_zero:
            self.references.mkdir(exist_ok=True)
            checkpoint.write_tensors(self.references / f"{stage}.safetensors", tensors)

    def load_reference(self, module: Any, stage: str) -> None:
        """Put back what `save_reference` kept."""
        tensors = checkpoint.read_tensors(self.references / f"{stage}.safetensors")
        checkpoint.restore(module.reference.state_dict().items(), tensors)

    def _acquire(self) -> bool:
        """Take the lock, which is tied to the open file. False where another process holds it."""
        descriptor = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": provenance.now()}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        self._lock = weakref.finalize(self, os.close, descriptor)
        return True

    def _in_use(self) -> RunError:
        holder = _read_json(self.path / "run.lock")
        beat = _read_json(self.heartbeat_file)
        pid, host = holder.get("pid", "?"), holder.get("host", "?")
        seen = f"; {beat['phase']}, step {beat['step']}, last seen {beat['time']}" if beat else ""
        mend = (
            f"wait for it, end it (on {host}: kill {pid}), or start a new run (without --resume, or with another name)"
        )
        what = "this run folder is in use"
        return RunError(
            Problem(what, str(self.path), f"process {pid} on {host}{seen}", "a run that nobody works on", mend)
        )


def latest_run(out: Path, name: str) -> Path | None:
    """Of `out`, `out-2`, ... the newest run of the recipe `name` that has a checkpoint to resume from."""
    numbered = re.compile(re.escape(out.name) + r"(?:-(\d+))?")
    matches = [(numbered.fullmatch(path.parent.name), path.parent) for path in out.parent.glob("*/recipe.yaml")]
    runs = sorted((int(match[1] or 1), path) for match, path in matches if match is not None)
    for _, path in reversed(runs):
        of_name = OmegaConf.select(OmegaConf.load(path / "recipe.yaml"), "name") == name
        if of_name and checkpoint.latest(path / "checkpoints") is not None:
            return path
    return None


def restore_policy(path: Path, policy: nn.Module, last: bool = False) -> Path:
    """Give a policy the best weights of a run, or its last ones where no metric chose. Returns the checkpoint."""
    folder = path / "checkpoints"
    chosen = (None if last else checkpoint.best(folder)) or checkpoint.latest(folder)
    if chosen is None:
        mend = "resume the run until it saves one (trainer.checkpoint_every)"
        raise RunError(Problem("this run has no checkpoint", str(path), mend=mend))
    tensors, own = checkpoint.load(chosen).tensors["policy"], policy.state_dict()
    for name in {name for name in own.keys() ^ tensors.keys() if name.startswith("value_head.")}:
        own.pop(name, None)  # values begin anew where the run had none, and are left where nothing needs them
        tensors.pop(name, None)
    checkpoint.restore(own.items(), tensors)
    return chosen


def same_recipe(stored: Recipe, recipe: Recipe) -> None:
    """Raises RunError, with every difference, unless both recipes define the same training."""
    old, new = dict(_flat(to_dict(stored))), dict(_flat(to_dict(recipe)))
    differing = [path for path in sorted(old.keys() | new.keys()) if _spell(old, path) != _spell(new, path)]
    mend = "resume with the run's own recipe, or start a new run (without --resume)"
    problems = [
        Problem("a checkpoint of another recipe", path, _spell(new, path), f"{_spell(old, path)} (of the run)")
        for path in differing
        if not _FREE_PATH.match(path)
    ]
    if problems:
        last = problems[-1]
        raise RunError([*problems[:-1], Problem(last.what, last.where, last.got, last.expected, mend)])


def _names(out: Path) -> Iterator[Path]:
    yield out
    number = 2
    while True:
        yield out.with_name(f"{out.name}-{number}")
        number += 1


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(YAML path, plain value) of every leaf; empty lists and mappings are leaves."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _flat(item, f"{path}.{i}")
    else:
        yield path, value


def _spell(flat: Mapping[str, Any], path: str) -> str:
    return repr(flat[path]) if path in flat else "not there"


def _read_json(path: Path) -> dict[str, Any]:
    """A small file that another process may be about to write: {} where it is not there or empty yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return json.loads(text) if text.strip() else {}
