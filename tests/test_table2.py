"""The suite of `benchmarks/table2`: its methods bind, a tiny seed runs, is resumed and rendered, figures by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import OPTIONS

from qoqmed import config, registry
from qoqmed.errors import UserError

BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")
sys.path.insert(0, BENCHMARKS)
from table2 import suite as suites  # noqa: E402
from table2.curves import binned  # noqa: E402
from table2.forms import FORMS, Form  # noqa: E402
from table2.methods import METHODS, WARM_START, Method  # noqa: E402
from table2.rendering import render  # noqa: E402
from table2.results import Curve, Result, curve_of, figures_of  # noqa: E402
from table2.suite import RECIPE, Suite, main, run  # noqa: E402
from table2.summary import figure, gain, of_domains, paired, vision  # noqa: E402

sys.path.remove(BENCHMARKS)

pytestmark = pytest.mark.usefixtures("tiny")
NAMED = {method.name: method for method in METHODS}
TINY = Form(
    "tiny",
    16,  # two steps of four prompts and two responses
    (
        "model.options={" + ", ".join(f"{name}: {size}" for name, size in OPTIONS.items()) + "}",
        "data.train.0.domains=[fundus, ecg]",
        "data.test.0.size=4",
        "data.test.0.domains=[fundus, ecg]",
        "rollout.n=2",
        "stages.training.objective.minibatch=2",
        "rollout.prompts=4",
        "rollout.max_new_tokens=8",
        "trainer.checkpoint_every=0",
        "trainer.threads=1",
        "stages.warm_start.steps=2",
        "rewards.accuracy={name: vowels}",  # random text earns different amounts
        "callbacks=[{name: stop, at: 1}]",  # Ctrl-C after the first step of every run
    ),
)


@pytest.fixture(scope="module")
def tiny_suite(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A seed of two methods, each of its three runs interrupted once."""
    here = tmp_path_factory.mktemp("table2")
    made = Suite(TINY, (1,), (NAMED["sft"], NAMED["drpo"]), here / "out", here / "tables")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt, match="saved at step 1"):
            run(made)
    assert run(made) == 0
    return made


def test_names_are_their_own_and_steps_spend_the_budget() -> None:
    assert len(NAMED) == len(METHODS) and WARM_START.name not in NAMED
    small = Suite(FORMS[0], (1,), METHODS, Path("out"), Path("tables"))
    assert FORMS[0].name == "small" and FORMS[0].budget == 4096
    last = {name: small.overrides(1, method)[-1] for name, method in NAMED.items()}
    assert last["drpo"] == last["ppo"] == "stages.training.steps=16"  # 4096 / (32 prompts x 8 responses)
    assert last["remax"] == "stages.training.steps=14"  # / (32 x 9): the greedy response counts
    assert last["sft"] == last["sft_focal"] == "stages.training.steps=128"  # / 32 gold responses


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_method_binds_and_costs_what_its_estimator_asks_for(form: Form, tmp_path: Path) -> None:
    made = Suite(form, (1,), METHODS, tmp_path / "out", tmp_path)
    made.check()
    for method in METHODS:
        stage = config.load(RECIPE, made.overrides(1, method)).stages[1]
        assert (stage.advantage is None) == method.gold, method.name
        if stage.advantage is not None:
            assert registry.make("advantages", stage.advantage).needs.greedy == bool(method.greedy), method.name


def test_a_killed_suite_goes_on_and_ends_with_a_result_of_each(tiny_suite: Suite) -> None:
    found = {result.method: result for result in tiny_suite.results()}
    assert list(found) == ["warm_start", "sft", "drpo"]
    assert [found[name].steps for name in found] == [2, 4, 2] and found["sft"].samples == found["drpo"].samples == 16
    assert found["drpo"].start == found["sft"].start == found["warm_start"].end  # one start for all
    assert set(found["drpo"].end) == {"fundus", "ecg"} and set(found["drpo"].end["ecg"]) == {
        "accuracy",
        "f1",
        "exact_match",
    }
    assert found["sft"].curve == Curve() and found["drpo"].curve.samples == (8, 16)
    assert found["drpo"].figures["hit_cap"] >= 0 and "hit_cap" not in found["sft"].figures
    runs = tiny_suite.out / "seed-1"
    assert (runs / "warm_start" / "checkpoints").exists() and not (runs / "drpo" / "checkpoints").exists()


def test_what_is_there_is_not_run_again_and_other_settings_are_refused(tiny_suite: Suite, capsys) -> None:
    path = tiny_suite.path(1, NAMED["drpo"])
    before = path.stat().st_mtime_ns
    assert run(tiny_suite) == 0 and path.stat().st_mtime_ns == before and "run 1 of" not in capsys.readouterr().out
    other = replace(tiny_suite, form=replace(TINY, overrides=(*TINY.overrides, "rollout.top_k=5")))
    with pytest.raises(UserError, match=r"drpo\.json: a result of other settings(.|\n)*--out"):
        other.check()


def test_a_method_that_fails_is_told_and_the_others_go_on(tiny_suite: Suite, monkeypatch) -> None:
    train = suites.train

    def broken(suite: Suite, seed: int, method: Method) -> Result:
        if method.name == "grpo":
            raise RuntimeError("not today")
        return train(suite, seed, method)

    monkeypatch.setattr(suites, "train", broken)
    assert run(replace(tiny_suite, methods=(NAMED["grpo"],))) == 1
    failed = tiny_suite.path(1, NAMED["grpo"]).with_suffix(".failed.txt")
    assert (
        "not today" in failed.read_text()
        and "Failed: seed-1, grpo" in (tiny_suite.tables / "table2_tiny.md").read_text()
    )
    failed.unlink()


def test_the_tables_hold_every_result(tiny_suite: Suite) -> None:
    render(tiny_suite)
    page = (tiny_suite.tables / "table2_tiny.md").read_text(encoding="utf-8")
    assert "| SFT | 1 | 4 | 16 |" in page and "| DRPO | 1 | 2 | 16 |" in page and "| warm start |" in page
    assert (tiny_suite.tables / "table2_tiny_curves.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tiny_suite.tables / "table2_tiny.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in data["results"]] == ["warm_start", "sft", "drpo"]
    assert data["methods"]["drpo"]["curves"]["fundus"]["samples"] == [8, 16]
    assert "stages.training.steps=2" in data["settings"]["overrides"]["drpo"]


def test_wrong_words_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "drpoo"])
    assert "did you mean 'drpo'" in capsys.readouterr().err


# ---------------------------------------------------------------- figures, computed by hand
PHASES = {"data": 1.0, "collect": 5.0, "score": 2.0, "advantage": 0.5, "update": 1.0, "sync": 0.5}  # 10 s
STEP = {f"time/{phase}": seconds for phase, seconds in PHASES.items()}
ROWS = [
    STEP
    | {"time/reward": 0.1, "reward": 0.2, "advantage/scale_ratio": 10.0, "advantage/hit_cap": 0.5}
    | {"domains/ct/n": 3, "domains/ct/mean_reward": 0.1, "domains/ct/share": 0.4},
    STEP
    | {"time/reward": 0.3, "reward": 0.6, "advantage/scale_ratio": 40.0, "advantage/hit_cap": 1.0}
    | {"domains/ecg/n": 1, "domains/ecg/mean_reward": 0.9, "domains/ecg/share": 1.0},
]


def test_figures_and_curve_of_steps() -> None:
    found = figures_of(ROWS)
    assert found["step_s"] == 10.0 and found["reward_share"] == pytest.approx(0.4 / 20)
    assert found["advantage_share"] == pytest.approx(1 / 20) and found["hit_cap"] == 0.75
    assert (found["scale_ratio_median"], found["scale_ratio_most"]) == (25.0, 40.0)
    assert (found["share/ct"], found["share/ecg"]) == (0.2, 0.5)
    assert (found["reward_first"], found["reward_last"]) == (0.2, 0.6)
    without = figures_of([{key: value for key, value in row.items() if key != "time/reward"} for row in ROWS])
    assert "reward_share" not in without and "advantage_share" in without
    assert curve_of(ROWS, 256) == Curve((256, 512), (0.2, 0.6), {"ct": ((3, 0.1), None), "ecg": (None, (1, 0.9))})


def result(seed: int, method: str, ct: float, ecg: float, curve: Curve | None = None) -> Result:
    start, end = ({name: {"f1": f1} for name, f1 in (("ct", a), ("ecg", b))} for a, b in ((0.1, 0.1), (ct, ecg)))
    return Result(method, seed, "tiny", "", "", 1, 8, 1.0, 1.0, start, end, curve or Curve(), {}, {})


def test_means_errors_and_paired_differences() -> None:
    mine, others = [result(s, "drpo", f, 0.5) for s, f in ((1, 0.4), (2, 0.6), (3, 0.8))], [
        result(s, "grpo", f, 0.5) for s, f in ((1, 0.3), (2, 0.6), (4, 0.0))
    ]  # fmt: skip
    whole = figure(map(vision("f1"), mine))  # the ECG is no vision domain
    assert (whole.mean, whole.error, whole.seeds) == (pytest.approx(0.6), pytest.approx(0.2 / 3**0.5), 3)
    assert whole.text() == "0.600 ± 0.115"
    assert figure(map(of_domains("f1"), mine)).mean == pytest.approx(0.55)
    assert figure(map(gain("f1"), mine)).mean == pytest.approx(0.5)
    difference = paired(mine, others, vision("f1"))  # seeds 1 and 2: 0.1 and 0.0
    assert (difference.mean, difference.error, difference.seeds) == (pytest.approx(0.05), pytest.approx(0.05), 2)
    assert difference.text("+.3f") == "+0.050 ± 0.050"
    assert figure([]) is None and figure([0.5]).text() == "0.500"


def test_curves_weigh_questions_over_steps_and_seeds() -> None:
    points = ((3, 0.1), None, (1, 0.5), (1, 0.9))
    one = result(1, "drpo", 0, 0, Curve((8, 16, 24, 32), (0.0,) * 4, {"ct": points}))
    two = result(2, "drpo", 0, 0, Curve((8, 16, 24, 32), (0.0,) * 4, {"ct": ((1, 0.5), None, None, None)}))
    assert binned([one, two], "ct", bins=2) == ([12.0, 28.0], [pytest.approx((0.3 + 0.5) / 4), pytest.approx(0.7)])
    assert binned([one], "mri") == ([], [])
