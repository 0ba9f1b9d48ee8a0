"""The recipe that whole-run tests share: a policy of 40 thousand weights, two domains, four prompts a step.

A module asks for it with `pytestmark = pytest.mark.usefixtures("tiny")`. Its reward, the share of vowels in a
response, is a third party's: random text earns different amounts, so a policy that has learned nothing has advantages.
"""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_distribution import install

OPTIONS = {"hidden": 64, "layers": 1, "heads": 2, "vision_hidden": 32, "vision_layers": 1, "vocabulary": 400}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "model": {"name": "tiny", "options": OPTIONS},
    "encoders": {"ecg": {"name": "ecg_conv"}},
    "data": {
        "frames": 2,
        "min_pixels": 784,
        "max_pixels": 7056,
        "train": [{"name": "synthetic", "size": 40, "seed": 1, "domains": ["fundus", "ecg"]}],
        "valid": [{"name": "synthetic", "size": 4, "seed": 2, "domains": ["fundus", "ecg"], "balanced": True}],
    },
    "rewards": {"vowels": {"weight": 1.0}, "format": {"weight": 0.5}},
    "rollout": {"name": "torch", "n": 2, "max_new_tokens": 8, "prompts": 4},
    "trainer": {"accelerator": "cpu", "devices": 1, "checkpoint_every": 0, "threads": 1},
    "evaluation": {"batch": 4},
    "loggers": [{"name": "csv"}, {"name": "jsonl"}],
    "callbacks": [{"name": "progress", "every_s": 1000.0}],
    "stages": [
        {"name": "sft", "objective": {"name": "sft"}, "optimizer": {"lr": 2.0e-3}, "steps": 3},
        {
            "name": "rl",
            "objective": {"name": "policy_gradient", "kl_weight": 1.0e-2},
            "advantage": {"name": "drpo"},
            "optimizer": {"lr": 1.0e-3},
            "steps": 3,
        },
    ],
}
SFT_ONLY = "stages=[{name: sft, objective: sft, optimizer: {lr: 2.0e-3}, steps: 3}]"
PLUGINS = {
    "rewards": {"vowels": "tiny_plugins:Vowels", "moody": "tiny_plugins:Moody"},
    "objectives": {"poisoned": "tiny_plugins:Poisoned"},
    "callbacks": {"stop": "tiny_plugins:Stop"},
}
CODE = '''
import os
import signal
from dataclasses import replace

from lightning.pytorch import Callback

from qoqmed.objectives.sft import SFT
from qoqmed.types import Verdict


class Vowels:
    low = 0.0
    high = 1.0

    def score(self, cases, rollouts, readings):
        texts = [rollout.text.lower() for rollout in rollouts]
        return [Verdict(sum(text.count(v) for v in "aeiou") / max(len(text), 1), reason="vowels") for text in texts]


class Moody(Vowels):
    """Vowels, but invalid for the first `bad` rollouts of a call, after `since` calls, while `file` is there."""

    def __init__(self, file: str, bad: int = 1000, since: int = 0):
        self.file, self.bad, self.since, self.calls = file, bad, since, 0

    def score(self, cases, rollouts, readings):
        self.calls += 1
        bad = self.bad if self.calls > self.since and os.path.exists(self.file) else 0
        verdicts = super().score(cases, rollouts, readings)
        return [Verdict.invalid("moody") if place < bad else one for place, one in enumerate(verdicts)]


class Poisoned(SFT):
    """SFT whose loss is no number from the call `since` on, while `file` is there."""

    def __init__(self, file: str, since: int = 0):
        super().__init__()
        self.file, self.since, self.calls = file, since, 0

    def loss(self, tokens):
        self.calls += 1
        out = super().loss(tokens)
        bad = self.calls > self.since and os.path.exists(self.file)
        return replace(out, value=out.value * float("nan")) if bad else out


class Stop(Callback):
    """Ctrl-C, or a crash, or the wish to end the stage, after the global step `at`, or in the evaluation `when`."""

    def __init__(self, at: int = -1, when: str = "", crash: bool = False, ask: bool = False):
        self.at, self.when, self.crash, self.ask = at, when, crash, ask

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs.global_step == self.at:
            self.stop(trainer)

    def on_validation_end(self, trainer, pl_module):
        if trainer.evaluations[-1].when == self.when:
            self.stop(trainer)

    def stop(self, trainer):
        if self.ask:
            trainer.should_stop = True
            return
        if self.crash:
            raise RuntimeError("crash")
        os.kill(os.getpid(), signal.SIGINT)
'''


@dataclass(frozen=True)
class Place:
    """Where a test's runs live, and their recipe's file."""

    folder: Path
    recipe: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"


def place(folder: Path, **changes: Any) -> Place:
    """A recipe file in `folder` whose runs go to `folder/runs`. changes: top-level keys of the recipe."""
    content = copy.deepcopy(RECIPE) | copy.deepcopy(changes)
    content["trainer"] |= {"out": f"{folder}/runs/{{name}}"}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Place(folder, path)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path with the distribution of the reward and of a callback that stops runs."""
    folder = tmp_path_factory.mktemp("tiny_site")
    install(folder, "tiny-plugins", PLUGINS, CODE)
    return folder


@pytest.fixture(scope="session")
def tokenizers() -> dict[Any, Any]:
    """By size: one takes seconds to train."""
    return {}


@pytest.fixture(scope="module")
def tiny(site: Path, tokenizers: dict[Any, Any]) -> Iterator[None]:
    """The plugins can be found, and a tokenizer is trained once a session. Runs take one thread, later tests theirs."""
    import torch

    from qoqmed.policy import tiny as policy

    train, threads = policy.tokenizer, torch.get_num_threads()

    def once(texts: Any, size: Any) -> Any:
        if size not in tokenizers:
            tokenizers[size] = train(texts, size)
        return copy.deepcopy(tokenizers[size])

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setattr(policy, "tokenizer", once)
        yield
    torch.set_num_threads(threads)


def command(*words: object) -> int:
    """The exit code of `qoqmed WORDS`, in this process."""
    from qoqmed import cli

    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return int(stop.value.code or 0)


def weights(run: Path) -> dict[str, Any]:
    """Of the run's newest checkpoint."""
    from qoqmed import checkpoint

    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    return checkpoint.load(newest).tensors["policy"]


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Bit for bit."""
    assert first.keys() == second.keys()
    return all(tensor.equal(second[name]) for name, tensor in first.items())


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock or the process says."""
    rows = read(run / "metrics.jsonl")
    timed = ("time/", "data/", "tokens_per_second")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]


def evaluations(run: Path) -> list[dict[str, Any]]:
    """evaluations.jsonl without what a clock says."""
    return [row | {"seconds": None} for row in read(run / "evaluations.jsonl")]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
