"""`fit`: a recipe (and perhaps an earlier run) -> a finished run. The loop itself is in `qoqmed.loop`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qoqmed import checkpoint
from qoqmed.build import Parts, build
from qoqmed.config import load
from qoqmed.config.schema import Recipe
from qoqmed.errors import Problem, UserError, near
from qoqmed.loop import Loop, Result
from qoqmed.parallel import count_devices, relaunch, under_launcher
from qoqmed.report.plan import Plan, plan
from qoqmed.run import RunFolder, latest_run, restore_policy, same_recipe


def fit(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: str | None = None,
    dry_run: bool = False,
    stage: str | None = None,
    from_run: str | None = None,
    launch: bool = False,
) -> Result | Plan:
    """Train by a recipe; the same as `qoqmed fit`. Raises UserError for wrong input, KeyboardInterrupt when interrupted
    (a checkpoint is saved; the message says how to resume).

    dry_run: build every part, encode the first cases of each stage, train and write nothing; returns the plan.
    resume: a run folder, or "auto" for the newest one of this recipe. stage, from_run: only this stage, from that run's
    weights. launch: where the recipe wants several processes, become their launcher (the command line does).
    """
    loaded = only_stage(load(recipe, overrides, deep=True), stage)
    devices = count_devices(loaded.trainer.devices, loaded.trainer.accelerator)
    if devices > 1 and not under_launcher():
        if not launch:
            mend = f"python -m torch.distributed.run --nproc_per_node={devices} SCRIPT, or trainer.devices=1"
            raise UserError(
                Problem("several processes, and no launcher started them", "trainer.devices", str(devices), mend=mend)
            )
        relaunch(arguments(recipe, overrides, resume, dry_run, stage, from_run), devices)
    out = Path(loaded.trainer.out.format(name=loaded.name))
    found = find_run(out, loaded.name, resume)
    if found is not None:
        same_recipe(RunFolder(found).recipe(), loaded)
    parts = build(loaded)
    if dry_run:
        parts.actor.close()
        return plan(parts) if parts.fabric.is_global_zero else Result(out, False, (), 0)
    run = open_run(parts, out, found, sys.argv)
    try:
        result = train(Loop(parts, run), found, from_run)
    except UserError as error:
        run.log(f"stopped: {error}")
        if found is None:
            run.discard()
        raise
    except KeyboardInterrupt:  # the second one: it did not wait for the step's end
        raise KeyboardInterrupt(f"interrupted; go on from the last checkpoint with --resume {run.path}") from None
    finally:
        parts.actor.close()
        run.release()
    if not result.finished:
        raise KeyboardInterrupt(f"interrupted: saved at step {result.global_step}; go on with --resume {result.folder}")
    return result


def train(loop: Loop, found: Path | None, from_run: str | None) -> Result:
    """The loop, from where the run `found` stands, or from another run's weights, or from the start."""
    status = "failed"
    loop.run.log("started" if found is None else "opened again")
    try:
        path = None if found is None else checkpoint.latest(found / "checkpoints")
        if found is not None:
            loop.resume(path)
        if path is None and from_run is not None:
            restore_policy(Path(from_run), loop.module.policy)
        result = loop.fit()
        status = "success" if result.finished else "interrupted"
    except BaseException as error:  # boundary: callbacks hear of any failure, which then goes on
        loop.call("on_exception", exception=error)
        raise
    finally:
        loop.run.log(f"{status} at step {loop.global_step}")
        loop.close(status)
    return result


def only_stage(recipe: Recipe, stage: str | None) -> Recipe:
    """The recipe with one of its stages; all of them for None."""
    if stage is None:
        return recipe
    names = [config.name for config in recipe.stages]
    if stage not in names:
        expected = f"one of {', '.join(names)}"
        raise UserError(Problem(f"the recipe has no stage {stage!r}", "--stage", stage, expected, near(stage, names)))
    chosen = next(config for config in recipe.stages if config.name == stage)
    return replace(recipe, stages=(replace(chosen, extends=None),))  # what it extends is already merged in


def find_run(out: Path, name: str, resume: str | None) -> Path | None:
    """The folder to resume in; None starts a new run ("auto" without an earlier run does, too)."""
    if resume is None:
        return None
    return latest_run(out, name) if resume == "auto" else Path(resume)


def open_run(parts: Parts, out: Path, found: Path | None, command: Sequence[str]) -> RunFolder:
    """Rank 0 creates or opens the folder; the others are told its path."""
    run, error = None, None
    if parts.fabric.is_global_zero:
        try:
            run = RunFolder.create(out, parts.recipe, command) if found is None else RunFolder.open(found, command)
        except UserError as problem:  # told to the other ranks, which would wait for the path for ever
            error = problem
    path, error = parts.fabric.broadcast((None if run is None else str(run.path), error))
    if error is not None:
        raise error
    return run or RunFolder(Path(path))


def arguments(
    recipe: str | Path,
    overrides: Sequence[str],
    resume: str | None,
    dry_run: bool,
    stage: str | None,
    from_run: str | None,
) -> list[str]:
    """The command line that says the same."""
    options = [("--resume", resume), ("--stage", stage), ("--from", from_run)]
    given = [word for name, value in options if value is not None for word in (name, value)]
    return ["fit", str(recipe), *overrides, *given, *(["--dry-run"] if dry_run else [])]
