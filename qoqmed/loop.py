"""The one loop of every objective. Read `Loop.step` downwards: it is the life of one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from qoqmed import checkpoint
from qoqmed.alarms import WINDOW, alarms, count_invalid, drifts, invalid_share, refuse_invalid, refuse_not_finite
from qoqmed.build import Parts, Stage, callbacks, loggers
from qoqmed.callbacks.traces import Traces
from qoqmed.collecting import Collected, Collector
from qoqmed.dumping import keep_broken
from qoqmed.errors import UserError
from qoqmed.estimating import Estimate, Known, estimate
from qoqmed.evaluating import Evaluator
from qoqmed.feeding import Feeder
from qoqmed.interrupts import Interrupts
from qoqmed.notices import beginning, ending, opening
from qoqmed.parallel import FSDP2Strategy, add_up, gather
from qoqmed.run import RunFolder
from qoqmed.saving import Begun, Saver, TrainingState, training_state
from qoqmed.statistics import domain_steps, facts, metrics
from qoqmed.types import Evaluation, Group, StepReport
from qoqmed.updating import (
    Broken,
    Targets,
    Updater,
    build_optimizer,
    known,
    learning_rate,
    needs_old,
    score,
    set_learning_rate,
)


@dataclass(frozen=True)
class Result:
    """What `fit` gives back. finished: False when it was interrupted (resume with `--resume`)."""

    folder: Path
    finished: bool
    evaluations: tuple[Evaluation, ...]
    global_step: int


class Loop:
    """One run. Callbacks see it as their `trainer`."""

    def __init__(self, parts: Parts, run: RunFolder) -> None:
        self.parts, self.run, self.recipe = parts, run, parts.recipe
        self.fabric, self.module, self.actor = parts.fabric, parts.module, parts.actor
        self.is_global_zero = parts.fabric.is_global_zero
        self.saver = Saver(run, parts.fabric, parts.module, parts.recipe.trainer.keep)
        self.state = TrainingState()
        self.resumed: checkpoint.Loaded | None = None
        self.advantages: Sequence[Sequence[float]] = ()
        self.seconds: dict[str, float] = {}
        self.alarms: Sequence[str] = ()
        self.notices: Sequence[str] = ()
        self.loggers = loggers(self.recipe, run.path) if self.is_global_zero else []
        self.callbacks = [*callbacks(self.recipe), Traces(self.recipe.traces, parts.loaded.tokenizer.decode)]
        heard = partial(self.call, "on_validation_end")
        self.evaluator = Evaluator(
            self.actor, parts.splits, parts.sampling, run, parts.fabric, self.loggers, self.recipe, heard
        )

    @property
    def global_step(self) -> int:
        return self.state.global_step

    @property
    def evaluations(self) -> list[Evaluation]:
        return self.state.evaluations

    @property
    def should_stop(self) -> bool:
        """Set by a callback: the stage ends before its next step."""
        return self.state.stopping

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self.state.stopping = value

    def fit(self) -> Result:
        """All stages, from where the state stands. Ctrl-C ends the step, saves, and returns an unfinished result."""
        with Interrupts() as self.interrupts:
            self.tell("on_fit_start", opening(self.recipe, self.run.path))
            if not self.state.evaluations:
                self.evaluate("start")
            while self.state.stage < len(self.parts.stages) and not self.interrupted():
                self.run_stage(self.parts.stages[self.state.stage])
            finished = self.state.stage == len(self.parts.stages)
            if finished:
                self.call("on_fit_end")
        return Result(self.run.path, finished, tuple(self.evaluations), self.global_step)

    def run_stage(self, stage: Stage) -> None:
        """One stage: its trained parts, reference and optimizer; then its steps."""
        self.stage, self.steps = stage.config, stage.steps
        self.start_stage(stage)
        self.should_stop = self.should_stop and self.state.step > 0  # what was asked of an earlier stage is over
        self.tell("on_train_start", beginning(stage))
        if self.validate():  # owed by a run that was interrupted here
            self.save(stage, best=True)
        admit = partial(self.actor.admit_one, needs=stage.needs)
        with Feeder(admit, self.actor.workers, self.actor.media) as self.feeder:
            ranks = (self.fabric.global_rank, self.fabric.world_size)
            self.collector = Collector(
                self.actor, self.feeder, stage, self.parts.sampling, self.recipe.seed, *ranks, self.phase
            )
            while self.state.step < stage.steps and not self.should_stop and not stage.sampler.exhausted:
                self.step(stage)
                if self.interrupted():
                    return self.save(stage)
                better = self.validate()
                if better or self.due(self.recipe.trainer.checkpoint_every):
                    self.save(stage, best=better)
        better = self.evaluate(stage.config.name)
        self.tell("on_train_end", ending(stage, self.state.step, self.should_stop))
        self.state.stage, self.state.step, self.should_stop = self.state.stage + 1, 0, False
        return self.save(stage, best=better)

    def due(self, every: int) -> bool:
        """Whether something that comes every so many steps of a stage comes now, within it; 0 is never."""
        return every > 0 and 0 < self.state.step < self.steps and self.state.step % every == 0

    def validate(self) -> bool:
        """The pass over `valid` where it is due and not made yet; whether it is the best so far."""
        when = f"step {self.global_step}"
        made = any(evaluation.when == when for evaluation in self.evaluations)
        return self.due(self.recipe.evaluation.every) and not made and self.evaluate(when, ("valid",))

    def step(self, stage: Stage) -> None:
        """The life of one batch."""
        self.seconds, self.begun = {}, Begun.of(stage, self.state)
        lr = learning_rate(stage.config.optimizer, self.state.step, stage.steps)
        set_learning_rate(self.optimizer, lr)

        made = self.collect(stage)
        self.groups = groups = made.groups
        with self.phase("score"):
            temperature = self.recipe.rollout.temperature if stage.needs.rollouts else 1.0
            old = needs_old(stage, self.recipe.rollout, self.actor.engine)
            needs = {"old": old, "reference": stage.needs.reference}
            scored = score(self.module, groups, self.recipe.trainer.tokens_per_pack, temperature, **needs)
            if self.state.step == 0 and scored.reference and not self.module.adapted:
                # The policy still is the reference: their KL is 0, not the difference between two ways to compute it.
                scored = replace(scored, old=scored.reference)
        with self.phase("advantage"):
            estimated = self.estimate(stage, made, known(stage, groups, scored))
            own: Sequence[Sequence[float]] = estimated.advantages if estimated else ((),) * len(groups)
            self.advantages = (*own, *(() for _ in made.left_out))
        with self.phase("update"):
            targets = Targets(estimated.tokens, estimated.returns) if estimated else None
            updated = self.updater(stage, temperature)(groups, scored, targets, made.orders)
        with self.phase("sync"):
            failed = _errors(partial(self.actor.engine.sync, self.module.weights()))  # must not cost the update

        self.state.step += 1
        self.state.global_step += 1
        everyone = facts(made.judged)
        numbers = metrics(everyone, updated, estimated, lr, self.seconds) | self.counts(made)
        domains = domain_steps(everyone, estimated.all_ranks if estimated else None) if stage.advantage else {}
        step = StepReport(stage.config.name, self.state.step, stage.steps, self.global_step, numbers, domains)
        self.state.not_finite = self.state.not_finite + 1 if updated.skipped else 0
        dtype = self.module.trained_dtype
        self.alarms = alarms(self.state.step, numbers, self.recipe.rollout, self.state.drifting, dtype)
        self.state.drifting = drifts(numbers, self.recipe.rollout)
        for alarm in self.alarms:
            self.run.warn(f"step {self.global_step}: {alarm}")
        self.report(stage, made.traced, step)
        limit = self.recipe.trainer.max_skipped
        self.stop(stage, [*failed, *refuse_not_finite(self.state.not_finite, limit, stage.config.name)])

    def collect(self, stage: Stage) -> Collected:
        """The step's groups of this rank."""
        self.module.eval()
        made = self.collector(self.state.step)
        self.stop(stage, [*made.errors, *_errors(self.actor.engine.rest)], undo=True)
        for error in made.refused:
            self.run.skip(error)
        self.state.skipped += sum(gather(len(made.refused)))
        self.module.train()
        return made

    def counts(self, made: Collected) -> dict[str, float]:
        """What a step took, beside what it taught."""
        out = {"skipped_cases": float(self.state.skipped)} | self.feeder.figures()
        total = add_up(made.numbers)
        if total.get("rollouts/sampled"):
            out |= total | {"time/reward": total.get("time/reward", 0.0) / self.fabric.world_size}
            out["rollouts/left_out_groups"] = float(sum(gather(len(made.left_out))))
            out["rollouts/invalid_share"] = invalid_share(self.state.invalid)
        return out

    def stop(self, stage: Stage, errors: Sequence[UserError], undo: bool = False) -> None:
        """Where a rank has met what ends the run: save, so that nothing is lost, and raise it on every rank.

        undo: as if the step had not begun, for it is to be done again.
        """
        found = [error for part in gather(list(errors)) for error in part]
        if not found:
            return
        if undo:
            self.begun.restore(stage, self.state)
        self.state.invalid, self.state.not_finite = [], 0  # what is mended is counted afresh
        if self.state.step:
            self.save(stage)
        raise type(found[0])(list(dict.fromkeys(problem for error in found for problem in error.problems)))

    def estimate(self, stage: Stage, made: Collected, known: Known) -> Estimate | None:
        """Advantages of the step's groups; None where nothing estimates them, or no group is left on any rank."""
        groups = made.groups
        if not stage.needs.rollouts:
            return None
        invalid = count_invalid(made.judged)
        self.state.invalid = [*self.state.invalid, (invalid.rollouts, invalid.total)][-WINDOW:]
        self.stop(stage, refuse_invalid(invalid, self.state.invalid, self.recipe.trainer.max_invalid), undo=True)
        for warning in invalid.warnings:
            self.run.warn(f"step {self.global_step + 1}: {warning}")
        if stage.advantage is None or not any(gather(len(groups))):
            return None
        estimated = estimate(stage.advantage, groups, made.orders, known)
        for warning in estimated.all_ranks.warnings:
            self.run.warn(f"step {self.global_step + 1}: {warning}")
        return estimated

    def updater(self, stage: Stage, temperature: float) -> Updater:
        trainer = self.recipe.trainer
        return Updater(
            *(self.fabric, self.module, self.optimizer, stage.objective),
            *(trainer.tokens_per_pack, temperature, self.recipe.rollout.max_new_tokens, trainer.max_grad_norm),
            on_broken=self.dump,
        )

    def dump(self, broken: Sequence[Broken]) -> None:
        """Keep what an update that was left out had come from, as far as the recipe's `traces` let it be kept."""
        step, rank = self.global_step + 1, self.fabric.global_rank
        keep_broken(self.run, step, rank, broken, self.groups, self.recipe.traces)

    def report(self, stage: Stage, groups: Sequence[Group], step: StepReport) -> None:
        rows = dict(step.metrics)
        for domain, stats in step.domains.items():
            rows |= {f"domains/{domain}/{name}": value for name, value in asdict(stats).items() if value is not None}
        for logger in self.loggers:
            logger.log_metrics(rows, self.global_step)
        self.call("on_train_batch_end", outputs=step, batch=tuple(groups), batch_idx=step.step - 1)

    def evaluate(self, when: str, splits: Sequence[str] = ("valid", "test")) -> bool:
        """Metrics of each split that the recipe has; whether `evaluation.best` on `valid` is the best so far."""
        self.module.eval()
        try:
            better = self.evaluator(self.state, when, splits)
            self.actor.engine.rest()
        except UserError:
            if self.state.step and self.fabric.world_size == 1:  # among several ranks the others may not have met it
                self.save(self.parts.stages[self.state.stage])
            raise
        self.module.train()
        return better

    def start_stage(self, stage: Stage) -> None:
        """Choose what trains, freeze the reference (or take the stage's saved one), build the optimizer."""
        self.module.choose(stage.config.train, stage.needs.values)
        if stage.needs.reference:
            if self.state.step == 0:
                self.module.freeze_reference()
                self.run.save_reference(self.module, stage.config.name, self.is_global_zero)
            else:
                if self.module.reference is None:
                    self.module.freeze_reference()
                self.run.load_reference(self.module, stage.config.name)
        elif not isinstance(self.fabric.strategy, FSDP2Strategy):
            self.module.drop_reference()
        self.optimizer = self.fabric.setup_optimizers(build_optimizer(self.module, stage.config.optimizer))
        if self.resumed is not None and self.state.step:
            self.saver.restore_stage(self.resumed, stage, self.optimizer)
        self.resumed = None

    def resume(self, path: Path | None) -> None:
        """Stand where the checkpoint was made; at the start where the run ended before its first one."""
        if path is not None:
            self.resumed = self.saver.restore(path, self.callbacks)
            self.state = training_state(self.resumed.state["training"])
        self.run.rewrite_evaluations(self.evaluations)
        self.run.log(f"resumed from {path.name if path else 'the start: there is no checkpoint yet'}")
        for logger in self.loggers:
            if hasattr(logger, "rewind"):
                logger.rewind(self.global_step if path else -1)

    def save(self, stage: Stage, best: bool = False) -> None:
        """A checkpoint of everything that the next step depends on."""
        self.run.beat("checkpoint", self.global_step)
        self.saver.save(self.state, stage, self.optimizer, self.callbacks, best)

    def interrupted(self) -> bool:
        return any(gather(self.interrupts.asked))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times one phase of a step and names it in the heartbeat."""
        self.run.beat(name, self.global_step)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def call(self, hook: str, **arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(trainer=self, pl_module=self.module, **arguments)

    def tell(self, hook: str, notices: Sequence[str]) -> None:
        """A hook whose callbacks find in `notices` what the user should know now; log.txt has it, too."""
        self.notices = notices
        for notice in notices:
            self.run.warn(notice)
        self.call(hook)

    def close(self, status: str) -> None:
        """However the run ended. status: success, interrupted or failed."""
        for logger in self.loggers:
            logger.finalize(status)
        self.call("teardown", stage="fit")


def _errors(work: Callable[[], object]) -> list[UserError]:
    """What went wrong, for `Loop.stop` to tell on every rank; nothing where all went well."""
    try:
        work()
    except UserError as error:
        return [error]
    return []
