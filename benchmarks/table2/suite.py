"""Every training method from one SFT checkpoint a seed, with one budget of training samples, over some seeds.

    python benchmarks/table2/run.py                     the paper's nine, focal loss, re-sampling, bounded DRPO; 3 seeds
    python benchmarks/table2/run.py --only grpo drpo    these alone
    python benchmarks/table2/run.py --balanced --caps --rewards     the ablations, too
    python benchmarks/table2/run.py --table             render what is there, train nothing

Each (seed, method) leaves a small JSON file in --out and is not run again; a run that was killed goes on from its last
checkpoint. The tables are rendered anew after each. Accuracy and F1 are those of `qoqmed.metrics.clinical`, greedy, on
fresh test cases of each seed. The budget counts responses: generated ones, greedy baselines too, and for the supervised
methods gold ones, so that these see as many more cases as others sample responses for each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from record import RESULTS, ROOT, environment

from qoqmed import config
from qoqmed.errors import Problem, UserError, near
from table2.forms import FORMS, Form, of_seed
from table2.methods import GROUPS, METHODS, STAGE, WARM_START, Method
from table2.rendering import render
from table2.results import Result, curve_of, figures_of, scores_of, seconds_of, steps_of

RECIPE = ROOT / "recipes" / "suite.yaml"


@dataclass(frozen=True)
class Suite:
    """out: results and run folders. tables: where the rendered ones go. keep: leave the checkpoints of all methods."""

    form: Form
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    out: Path
    tables: Path
    keep: bool = False

    def path(self, seed: int, method: Method) -> Path:
        return self.out / f"seed-{seed}" / f"{method.name}.json"

    def overrides(self, seed: int, method: Method) -> list[str]:
        """Those that define the run. Its steps spend the budget, or what of it makes whole steps."""
        words = [*self.form.overrides, *of_seed(seed), *method.overrides]
        if method is WARM_START:
            return words
        return [*words, f"stages.{STAGE}.steps={self.form.budget // self.samples_per_step(method)}"]

    def samples_per_step(self, method: Method) -> int:
        own = [word for word in method.overrides if word.startswith("rollout.")]
        rollout = config.load(RECIPE, [*self.form.overrides, *own]).rollout
        return rollout.prompts * method.samples_per_case(rollout.n)

    def settings(self, seed: int, method: Method) -> str:
        """A digest of all that defines the result but the code."""
        start = [] if method is WARM_START else [self.settings(seed, WARM_START)]
        recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        words = [json.dumps(recipe), *self.overrides(seed, method), *start]
        return hashlib.sha256("\x1f".join(words).encode()).hexdigest()[:16]

    @property
    def known(self) -> dict[str, Method]:
        return {method.name: method for method in (WARM_START, *METHODS, *self.methods)}

    def results(self) -> list[Result]:
        """All that are there, of any seed and method, in the methods' order."""
        found = [Result.load(path) for path in self.out.glob("seed-*/*.json")]
        order = list(self.known)
        return sorted(found, key=lambda result: (order.index(result.method), result.seed))

    def check(self) -> None:
        """Raises UserError, with everything found, where a method's recipe is wrong here or a result is of another."""
        problems: list[Problem] = []
        for method in (WARM_START, *self.methods):
            words = self.overrides(self.seeds[0], method)
            try:
                config.load(RECIPE, words, deep=True)
            except UserError as error:  # boundary: one list of everything that is wrong
                problems += [Problem(f"{method.name}: {one.what}", one.where, one.got, one.expected, one.mend)
                             for one in error.problems]  # fmt: skip
        for result in self.results():
            if result.settings != self.settings(result.seed, self.known[result.method]):
                where = str(self.path(result.seed, self.known[result.method]))
                mend = "remove it and its run folder, or choose another --out"
                problems.append(Problem("a result of other settings", where, mend=mend))
        if problems:
            raise UserError(problems)


def train(suite: Suite, seed: int, method: Method) -> Result:
    """One run, from the seed's warm start; from its own last checkpoint where it was killed."""
    from qoqmed import fit

    words = suite.overrides(seed, method)
    started = WARM_START is not method
    start = Result.load(suite.path(seed, WARM_START)) if started else None
    place = suite.path(seed, method).with_suffix("")
    made = fit(
        RECIPE,
        [*words, f"trainer.out={place}"],
        stage=STAGE if started else WARM_START.name,
        from_run=str(suite.out / start.folder) if start else None,
        resume="auto",
    )
    rows, per_step = steps_of(made.folder), suite.samples_per_step(method)
    tests = [evaluation for evaluation in made.evaluations if evaluation.split == "test"]
    result = Result(
        method=method.name,
        seed=seed,
        form=suite.form.name,
        settings=suite.settings(seed, method),
        folder=str(made.folder.relative_to(suite.out)),
        steps=len(rows),
        samples=len(rows) * per_step,
        train_s=sum(map(seconds_of, rows)),
        evaluate_s=sum(evaluation.seconds for evaluation in tests),
        start=scores_of(tests[0]),
        end=scores_of(tests[-1]),
        curve=curve_of(rows, per_step),
        figures=figures_of(rows),
        environment=environment(),
    )
    result.save(suite.path(seed, method))
    if started and not suite.keep:
        for folder in ("checkpoints", "references"):
            shutil.rmtree(made.folder / folder, ignore_errors=True)
    return result


def run(suite: Suite) -> int:
    """Everything that is not there yet, seed by seed. Returns the number of methods that failed."""
    suite.check()
    todo = [(seed, method) for seed in suite.seeds for method in (WARM_START, *suite.methods)
            if not suite.path(seed, method).exists()]  # fmt: skip
    failed: set[tuple[int, str]] = set()
    began = time.monotonic()
    for place, (seed, method) in enumerate(todo):
        if (seed, WARM_START.name) in failed:
            continue
        tell(f"seed {seed}, {method.title}: run {place + 1} of {len(todo)}")
        try:
            result = train(suite, seed, method)
        except Exception:  # boundary: a method that fails is told in the tables, and the others go on
            text = traceback.format_exc()
            suite.path(seed, method).with_suffix(".failed.txt").write_text(text, encoding="utf-8")
            failed.add((seed, method.name))
            tell(f"seed {seed}, {method.title} FAILED\n{text}")
            continue
        suite.path(seed, method).with_suffix(".failed.txt").unlink(missing_ok=True)
        before, after = (sum(row["f1"] for row in part.values()) / len(part) for part in (result.start, result.end))
        left = (time.monotonic() - began) / (place + 1) * (len(todo) - place - 1)
        spent = f"{result.train_s:.0f} s of training, {result.evaluate_s:.0f} s of tests"
        tell(f"seed {seed}, {method.title}: F1 {before:.3f} -> {after:.3f}, {spent}; about {left / 60:.0f} min left")
        render(suite)
    render(suite)
    return len(failed)


def tell(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = {form.name: form for form in FORMS}
    parser.add_argument("--form", choices=forms, default="small", help="small: two CPU cores; full: a GPU, untested")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 .. SEEDS")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help=f"of {', '.join(m.name for m in METHODS)}")
    for group in ("balanced", "caps", "rewards"):
        parser.add_argument(f"--{group}", action="store_true", help=GROUPS[group])
    parser.add_argument("--out", type=Path, help="results and run folders (runs/table2-FORM)")
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables (benchmarks/results)")
    parser.add_argument("--table", action="store_true", help="only render what is there")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished methods")
    options = parser.parse_args(arguments)
    options.form = forms[options.form]
    unknown = [name for name in options.only or () if name not in {method.name for method in METHODS}]
    for name in unknown:
        parser.error(f"no method {name!r} {near(name, [method.name for method in METHODS])}")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    groups = {"paper", "more", *(name for name in GROUPS if getattr(options, name, False))}
    chosen = [m for m in METHODS if (m.name in options.only if options.only else m.group in groups)]
    suite = Suite(
        form=options.form,
        seeds=tuple(range(1, options.seeds + 1)),
        methods=tuple(chosen),
        out=(options.out or ROOT / "runs" / f"table2-{options.form.name}").resolve(),
        tables=options.tables,
        keep=options.keep,
    )
    if options.table:
        render(suite)
        return 0
    try:
        return 1 if run(suite) else 0
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt as stopped:  # the same command goes on
        sys.stderr.write(f"{stopped}\n")
        return 130
