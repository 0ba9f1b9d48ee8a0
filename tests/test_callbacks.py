"""Progress on a terminal and in a log, the tables, early stopping: with a fake trainer, hooks called by keyword."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from qoqmed import registry
from qoqmed.callbacks.early_stopping import EarlyStopping
from qoqmed.callbacks.progress import Progress
from qoqmed.config.schema import Node
from qoqmed.errors import RecipeError, UserError
from qoqmed.report.lookup import lookup
from qoqmed.report.progress import change_table, domain_table, evaluation_line, step_line
from qoqmed.types import DomainStep, Evaluation, StepReport

RL = {
    "reward": 0.4121,
    "loss": 0.01,
    "kl": 0.00134,
    "clip_ratio/low": 0.01,
    "clip_ratio/high": 0.02,
    "entropy": 1.25,
    "completions/mean_length": 34.06,
    "tokens_per_second": 1234.5,
    "time/collect": 2.0,
    "time/update": 1.5,
}
DOMAINS = {"chest_xray": DomainStep(12, 0.5, 1.73, 4, 0.25), "mri": DomainStep(3, 0.1, 0.2, None, 0.75)}
STEP = StepReport("drpo", 12, 80, 20, RL, DOMAINS)
SFT = StepReport("sft", 1, 3, 1, {"loss": 2.5, "time/update": 0.25}, {})


def results(overall, **domains):
    figures = {name: {"f1": value, "support": 50.0} for name, value in domains.items()}
    return {"overall": {"f1": overall, "support": 100.0}, "domains": figures, "datasets": {}}


def evaluation(when, overall, split="test", sampled=None, **domains):
    greedy = results(overall, **domains) if overall is not None else None
    return Evaluation(split, when, 0, 100, greedy, sampled, 2.0)


def shown(content, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(content)
    return console.file.getvalue()


def loop(tmp_path=Path("run"), **fields):
    known = {"is_global_zero": True, "evaluations": [], "stage": SimpleNamespace(name="drpo"), "should_stop": False}
    run = SimpleNamespace(path=tmp_path, checkpoints=tmp_path / "checkpoints")
    return SimpleNamespace(**{**known, "alarms": [], "notices": [], "run": run, "global_step": 0, **fields})


def call(callback, hook, trainer, **arguments):
    getattr(callback, hook)(trainer=trainer, pl_module=None, **arguments)


def test_the_step_line_has_what_one_watches():
    text = step_line(STEP, eta_s=3725).plain
    assert text == (
        "drpo 12/80  reward 0.412  KL 0.0013  clip 0.030  entropy 1.250  length 34.1  tokens/s 1,234  s/step 3.50"
        "  ETA 1:02:05"
    )
    assert step_line(SFT).plain == "sft 1/3  loss 2.500  s/step 0.25"


def test_nan_is_shown_as_it_is():
    assert "reward nan" in step_line(replace(STEP, metrics={"reward": float("nan")})).plain


def test_the_domain_table_leaves_out_empty_columns():
    text = shown(domain_table(STEP))
    assert all(word in text for word in ("chest_xray", "12", "0.500", "1.73", "25.0%", "75.0%", "share of |A|"))
    plain = shown(domain_table(replace(STEP, domains={"mri": DomainStep(3, 0.1)})))
    assert "mean reward" in plain and "share" not in plain and " k " not in plain


def test_before_and_after():
    moments = [
        evaluation("start", 0.2, ecg=0.1, mri=0.3),
        evaluation("start", 0.9, split="valid", ecg=0.9),
        evaluation("step 10", 0.9, ecg=0.9),
        evaluation("sft", 0.3, ecg=0.2, mri=0.4),
        evaluation("drpo", 0.55, ecg=0.7, mri=0.4, sampled=results(0.5, ecg=0.6, mri=0.4)),
    ]
    text = shown(change_table(moments, note="with 30% label noise in the warm start"))
    rows = {line.split("│")[1].strip(): line.split() for line in text.splitlines() if "│" in line}
    assert all(title in text for title in ("greedy", "start", "sft", "drpo", "gain", "sampled", "on test"))
    assert "step 10" not in text and "0.9" not in text and "with 30% label noise" in text
    numbers = {name: [cell for cell in cells if cell not in ("│", name)] for name, cells in rows.items()}
    assert numbers["ecg"] == ["50", "0.100", "0.200", "0.700", "+0.500", "0.600"]
    assert numbers["mri"] == ["50", "0.300", "0.400", "0.400", "+0.000", "0.400"]
    assert numbers["overall"] == ["100", "0.200", "0.300", "0.550", "+0.250", "0.500"]


def test_before_and_after_falls_back_to_valid_and_to_sampled():
    text = shown(change_table([evaluation("start", 0.2, split="valid", ecg=0.2)]))
    assert "on valid" in text and "gain" not in text
    only = [evaluation(when, None, sampled=results(0.1, ecg=0.1)) for when in ("start", "drpo")]
    assert "gain" in shown(change_table(only))
    assert change_table([]) is None


def test_a_domain_that_came_later_has_no_gain():
    text = shown(change_table([evaluation("start", 0.2, ecg=0.2), evaluation("sft", 0.3, ecg=0.3, mri=0.4)]))
    assert "0.400" in text and "+0.400" not in text


def test_the_evaluation_line():
    line = evaluation_line(evaluation("sft", 0.3, sampled=results(0.25), ecg=0.2)).plain
    assert line == "test, after sft:  f1 0.300 (greedy)  f1 0.250 (sampled)  100 cases, 2.0 s"


def play(progress, trainer):
    call(progress, "on_fit_start", trainer)
    call(progress, "on_train_start", trainer)
    for step in range(1, 81):
        report = replace(STEP, step=step)
        call(progress, "on_train_batch_end", trainer, outputs=report, batch=(), batch_idx=step - 1)
    trainer.evaluations += [evaluation("start", 0.2, ecg=0.2), evaluation("drpo", 0.3, ecg=0.3)]
    call(progress, "on_validation_end", trainer)
    call(progress, "on_train_end", trainer)
    call(progress, "on_fit_end", trainer)


def test_in_a_log_there_are_plain_lines_and_few(tmp_path):
    progress = Progress(note="a note", every_s=1000, console=Console(file=io.StringIO(), width=160))
    play(progress, loop(tmp_path))
    text = progress.console.file.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert f"run folder: {tmp_path}" in text and "a note" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("drpo ")] == ["1/80", "80/80"]
    assert all("tokens/s" in line and "ETA" in line for line in text.splitlines() if line.startswith("drpo "))
    assert "test, after drpo:" in text and "share of |A|" in text and "+0.100" in text


def test_on_a_terminal_the_line_is_live_and_the_cursor_comes_back(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=120)
    progress = Progress(console=console)
    play(progress, loop(tmp_path))
    text = console.file.getvalue()
    assert "\x1b[?25l" in text and text.count("\x1b[?25h") == 1 and "80/80" in text
    call(progress, "on_train_start", loop(tmp_path))
    call(progress, "on_exception", loop(tmp_path), exception=KeyboardInterrupt())
    assert console.file.getvalue().count("\x1b[?25h") == 2
    call(progress, "teardown", loop(tmp_path), stage="fit")


def test_other_ranks_are_silent(tmp_path):
    progress = Progress(console=Console(file=io.StringIO()))
    play(progress, loop(tmp_path, is_global_zero=False))
    assert progress.console.file.getvalue() == ""


def test_stopping_early():
    stop, trainer = EarlyStopping(patience=2), loop()
    call(stop, "on_train_start", trainer)
    for value, expected in ((0.5, False), (0.4, False), (0.6, False), (0.6, False), (float("nan"), True)):
        trainer.evaluations.append(evaluation("step 1", value, split="valid"))
        call(stop, "on_validation_end", trainer)
        trainer.evaluations.append(evaluation("step 1", 0.0))  # of another split: not counted
        call(stop, "on_validation_end", trainer)
        assert trainer.should_stop is expected


def test_stopping_early_goes_on_after_a_resumption_and_starts_afresh_in_a_stage():
    stop, trainer = EarlyStopping(patience=2, mode="min", min_delta=0.1), loop()
    call(stop, "on_train_start", trainer)
    for value in (0.5, 0.45):
        trainer.evaluations.append(evaluation("step 1", value, split="valid"))
        call(stop, "on_validation_end", trainer)
    again = EarlyStopping(patience=2, mode="min", min_delta=0.1)
    again.load_state_dict(stop.state_dict())
    again.load_state_dict({})
    call(again, "on_train_start", trainer)
    call(again, "on_validation_end", trainer)
    assert trainer.should_stop
    trainer.should_stop, trainer.stage = False, SimpleNamespace(name="next")
    call(again, "on_train_start", trainer)
    call(again, "on_validation_end", trainer)
    assert not trainer.should_stop and again.state_dict() == {"stage": "next", "best": 0.45, "waited": 0}


@pytest.mark.parametrize("first", [float("nan"), 0.9])
def test_the_pass_before_the_first_stage_stops_nothing_and_is_no_mark_to_reach(first):
    stop, trainer = EarlyStopping(patience=1), loop(evaluations=[evaluation("start", first, split="valid")])
    call(stop, "on_validation_end", trainer)
    call(stop, "on_train_start", trainer)
    assert not trainer.should_stop
    trainer.evaluations.append(evaluation("step 1", 0.2, split="valid"))
    call(stop, "on_validation_end", trainer)
    assert not trainer.should_stop


def test_what_the_user_should_see_at_once_is_shown(tmp_path):
    progress = Progress(every_s=1000, console=Console(file=io.StringIO(), width=160))
    play(progress, loop(tmp_path, alarms=["95% of the responses were cut off"]))
    assert "warning: step 20: 95% of the responses were cut off\n" in progress.console.file.getvalue()


def test_wrong_arguments_and_metrics_are_told():
    with pytest.raises(UserError, match="did you mean 'max'"):
        EarlyStopping(mode="maxx")
    stop, trainer = EarlyStopping(monitor="overall/f11"), loop(evaluations=[evaluation("start", 0.1, split="valid")])
    with pytest.raises(RecipeError, match="did you mean 'overall/f1'"):
        call(stop, "on_validation_end", trainer)


def test_paths_of_metrics():
    found = replace(
        evaluation("start", None), greedy=results(0.5, ecg=0.25) | {"datasets": {"ecg/ptbxl": {"f1": 0.125}}}
    )
    assert (
        lookup(found, "overall/f1") == 0.5
        and lookup(found, "ecg/f1") == 0.25
        and lookup(found, "ecg/ptbxl/f1") == 0.125
    )
    sampled = replace(found, greedy=None, sampled=results(0.75))
    assert lookup(sampled, "overall/f1") == 0.75
    empty = replace(found, greedy={"overall": {}, "domains": {}, "datasets": {}})
    with pytest.raises(RecipeError, match="no labelled case"):
        lookup(empty, "overall/f1")


@pytest.mark.parametrize("name", ["progress", "early_stopping"])
def test_callbacks_are_lightning_callbacks_found_by_name(name):
    from lightning.pytorch import Callback  # qoqmed.callbacks has mended this import where torchvision breaks it

    assert isinstance(registry.make("callbacks", Node(name)), Callback)
