"""The mixture as a recipe gives it: its checks, the sampler that is built of it, stages whose data end, resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import RECIPE, command, metrics, place, read, same, weights

from qoqmed import config
from qoqmed.build import Source, sampler_of
from qoqmed.config import to_yaml
from qoqmed.config.schema import StageData
from qoqmed.datasets.synthetic import Synthetic
from qoqmed.errors import RecipeError
from qoqmed.fit import fit
from qoqmed.run import RunFolder

pytestmark = pytest.mark.usefixtures("tiny")

SFT = RECIPE["stages"][0]
EYES = {"name": "synthetic", "size": 24, "seed": 1, "domains": ["fundus"]}
HEARTS = {"name": "synthetic", "size": 12, "seed": 2, "domains": ["ecg"]}
PARTS = {"temperature": 2.0, "domain_weights": {"ecg": 1.5}, "domain_caps": {"fundus": 9}}


@pytest.mark.parametrize(
    ("override", "where", "text"),
    [
        ("data.train.0.cap=0", "data.train.0.cap", "above 0"),
        ("data.train.0.cap=1.5", "data.train.0.cap", "a whole number"),
        ("data.train.0.epochs=-1", "data.train.0.epochs", "above 0"),
        ("data.train.0.epochs=.inf", "data.train.0.epochs", "above 0"),
        ("data.train.0.epochs=many", "data.train.0.epochs", "above 0"),
        ("data.valid.0.cap=5", "data.valid.0.cap", "evaluation.limit"),
        ("stages.0.data.train=[{name: synthetic, size: 4, cap: -1}]", "stages.0.data.train.0.cap", "above 0"),
        ("stages.0.data.temperature=0", "stages.0.data.temperature", "0.1"),
        ("stages.0.data.domain_weights={fundos: 2.0}", "stages.0.data.domain_weights.fundos", "did you mean 'fundus'?"),
        ("stages.0.data.domain_caps={egc: 2}", "stages.0.data.domain_caps.egc", "did you mean 'ecg'?"),
        ("stages.0.data.domain_weights={ecg: -1.0}", "stages.0.data.domain_weights.ecg", "0 or more"),
        ("stages.0.data.domain_caps={ecg: 1.5}", "stages.0.data.domain_caps", "wrong type"),
        ("stages.0.data={domains: [ct], domain_caps: {ecg: 1}}", "stages.0.data.domain_caps.ecg", "draws no case"),
        ("stages.0.data={balanced: true, temperature: 2.0}", "stages.0.data.balanced", "given otherwise"),
    ],
)
def test_what_a_mixture_cannot_be(tmp_path: Path, override: str, where: str, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        config.load(place(tmp_path).recipe, [override])
    found = {problem.where.partition(" (")[0]: str(problem) for problem in caught.value.problems}
    assert list(found) == [where] and text in found[where]


def test_null_is_no_bound_and_what_is_shown_loads_back(tmp_path: Path) -> None:
    here = place(tmp_path, stages=[SFT | {"data": PARTS}], data=RECIPE["data"] | {"train": [EYES | {"cap": None}]})
    loaded = config.load(here.recipe, ["data.train.0.epochs=1.5"], deep=True)
    (tmp_path / "again.yaml").write_text(to_yaml(loaded))
    assert config.load(tmp_path / "again.yaml") == loaded
    data = loaded.stages[0].data
    assert (data.temperature, data.domain_weights, data.domain_caps) == (2.0, {"ecg": 1.5}, {"fundus": 9})


def test_the_sampler_gets_all_of_it() -> None:
    eyes, hearts = (Synthetic(**{key: one[key] for key in ("size", "seed", "domains")}) for one in (EYES, HEARTS))
    sources = [Source(eyes, 1.0, 8, None), Source(hearts, 2.0, None, 1.5)]
    plain = sampler_of(sources, StageData(), 0)
    assert [plain.size(epoch) for epoch in range(3)] == [8 + 18, 8, 8]  # 12 cases 1.5 times, 24 a round
    parted = sampler_of([Source(eyes, 1.0, None, None), Source(hearts, 1.0, None, None)], StageData(**PARTS), 0)
    domains = [(eyes, hearts)[source].domains[index] for source, index in parted.draw(100)]
    # 36 cases in parts as the roots of 24 and 12: 21.1 and 14.9, times 1 and 1.5, at most 9 of the first
    assert (domains.count("fundus"), domains.count("ecg")) == (9, 22)


def run(folder: Path, overrides: list[str], train: list[dict[str, Any]], stage: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    here = place(folder, data=RECIPE["data"] | {"train": train, "valid": []}, stages=[stage])
    return fit(here.recipe, overrides, resume="auto").folder


def test_a_stage_ends_with_its_data_and_says_so_before(tmp_path: Path, capsys: Any) -> None:
    train = [EYES | {"epochs": 0.5}, HEARTS | {"epochs": 1}]
    stage = {key: value for key, value in SFT.items() if key != "steps"}
    folder = run(tmp_path, [], train, stage | {"epochs": 5, "prompts": 8})
    told = "stage sft: every data set has had its own epochs after 3 steps, before the stage's 5 epochs"
    assert len(read(folder / "metrics.jsonl")) == 3  # 12 and 12 cases, 8 a step
    assert f"warning: {told}" in capsys.readouterr().out and told in (folder / "log.txt").read_text()
    for name, more in (("fewer", {"steps": 2, "epochs": 5}), ("whole", {"epochs": 1})):
        folder = run(tmp_path / name, [], train, stage | {"prompts": 8} | more)
        assert "every data set" not in (folder / "log.txt").read_text()


def test_a_cap_that_parts_of_domains_exceed_is_told(tmp_path: Path, capsys: Any) -> None:
    folder = run(tmp_path, [], [EYES, HEARTS | {"cap": 4}], SFT | {"steps": 1, "data": {"balanced": True}})
    told = "stage sft: an epoch has 14 cases of training data set 1, whose cap is 4"
    assert f"warning: {told}" in capsys.readouterr().out and told in (folder / "log.txt").read_text()


def test_further_draws_may_use_up_the_data(tmp_path: Path, capsys: Any) -> None:
    """`format` alone is 0 for random text: every group is equal, and every step draws twice."""
    stage = {
        "name": "rl",
        "objective": {"name": "policy_gradient", "kl_weight": 0.0},
        "advantage": "grpo",
        "equal_groups": "resample",
        "rounds": 2,
        "prompts": 4,
        "epochs": 1,
    }
    equal = ["rewards={format: {weight: 1.0}}", "rollout.max_new_tokens=2", "data.workers=1"]
    folder = run(tmp_path, equal, [HEARTS | {"epochs": 1}], stage)
    rows = read(folder / "metrics.jsonl")
    assert [row["rollouts/sampled"] for row in rows] == [16, 8]  # 12 cases of two responses: 4 and 4, then 4
    told = "stage rl ends after 2 of 3 steps: every data set has had its own epochs; equal_groups=resample took"
    assert told in capsys.readouterr().out and told in (folder / "log.txt").read_text()
    assert "success at step 2" in (folder / "log.txt").read_text()


def test_it_resumes_to_the_case(tmp_path: Path) -> None:
    train = [EYES | {"cap": 10}, HEARTS | {"epochs": 1.5, "weight": 0.5}]
    stage = SFT | {"data": PARTS, "epochs": 3, "steps": 9}
    whole = run(tmp_path / "whole", [], train, stage)
    for at in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "here", [f"callbacks=[{{name: stop, at: {at}}}]"], train, stage)
    here = run(tmp_path / "here", [], train, stage)
    assert len(metrics(whole)) == 9 and metrics(here) == metrics(whole) and same(weights(here), weights(whole))


@pytest.mark.parametrize("level", ["ids", "text", "full"])
def test_traces_that_hold_more_than_ids_are_told_first(tmp_path: Path, capsys: Any, level: str) -> None:
    here = place(tmp_path, stages=[SFT | {"steps": 1}])
    assert command("fit", here.recipe, f"traces={level}") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "patient" in line]
    assert len(said) == (level != "ids")
    if level != "ids":
        kept = "its question and prompt, and where its media lie" if level == "full" else "what was read in it"
        assert said[0].startswith(f"warning: traces={level} writes every response") and kept in said[0]
        assert str(here.run / "traces") in said[0] and "set traces=ids" in said[0]
        log = RunFolder(here.run).log_file.read_text().splitlines()
        assert "started" in log[0] and f"traces={level}" in log[1]
