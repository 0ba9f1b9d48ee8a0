"""Rewards by domain and shared weights: in the recipe, in the judge, in the combined reward. Values by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qoqmed import config
from qoqmed.actor import Actor, Admitted
from qoqmed.build import routing
from qoqmed.config.schema import RewardConfig
from qoqmed.errors import RecipeError
from qoqmed.rewards.combine import combine, judge
from qoqmed.rewards.routing import Routing
from qoqmed.types import Case, Group, Reading, Rollout, Sampling, Status, Target, Verdict

RECIPE: dict[str, Any] = {
    "name": "routed",
    "model": {"name": "tiny"},
    "encoders": {"ecg": {"name": "ecg_conv"}},
    "data": {"train": [{"name": "synthetic", "size": 9}]},
    "stages": [{"name": "s", "objective": "sft"}],
}
NONE = Verdict.not_applicable("")


def loaded(rewards: Any) -> Any:
    return config.load({**RECIPE, "rewards": rewards}, deep=True).rewards


def case(domain: str) -> Case:
    return Case(f"of {domain}", domain, "d", "t", "", (), ("x",), Target(labels=("x",)))


class Asked:
    low, high = 0.0, 1.0

    def __init__(self, value: float = 1.0) -> None:
        self.value, self.calls = value, list[list[str]]()

    def score(self, cases: Any, rollouts: Any, readings: Any) -> list[Verdict]:
        self.calls.append([case.domain for case in cases])
        return [Verdict(self.value * rollout.index) for rollout in rollouts]


def test_a_recipe_with_domains_shares_and_processes() -> None:
    rewards = loaded(
        {
            "accuracy": 0.6,
            "iou": {"weight": 0.2, "domains": {"ecg": 0.0, "ct": 1}},
            "format": {"weight": 0.2, "share": "auxiliary", "workers": 2, "timeout_s": 1.5},
        }
    )
    assert (rewards["iou"].domains, rewards["iou"].arguments) == ({"ecg": 0.0, "ct": 1}, {})
    assert (rewards["format"].workers, rewards["format"].timeout_s) == (2, 1.5)
    assert routing(rewards) == Routing({"iou": {"ecg": 0.0, "ct": 1}}, {"format": "auxiliary"})
    assert config.load(config.to_dict(config.load({**RECIPE, "rewards": {"iou": {"domains": {"ecg": 0.5}}}}))).rewards


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        ({"domains": {"egc": 0.0}}, r"rewards.iou.domains.egc: no such domain(.|\n)*did you mean 'ecg'"),
        ({"domains": {"ecg": -1.0}}, r"rewards.iou.domains.ecg: out of range(.|\n)*at least 0"),
        ({"domains": {"ecg": float("nan")}}, r"rewards.iou.domains.ecg: out of range"),
        ({"domains": {"ecg": "none"}}, r"rewards.iou.domains: wrong type"),
        ({"domains": ["ecg"]}, r"rewards.iou.domains: wrong type"),
        ({"domains": {"ecg": 0}}, r"rewards.iou.domains.ecg: no reward counts in the domain ecg"),
        ({"weight": 0}, r"rewards: every reward has the weight 0"),
        ({"workers": -1}, r"rewards.iou.workers: out of range"),
        ({"timeout_s": 0}, r"rewards.iou.timeout_s: out of range(.|\n)*above 0"),
        ({"time_out_s": 1}, r"rewards.iou.time_out_s: unknown argument(.|\n)*did you mean 'timeout_s'"),
    ],
)
def test_wrong_recipes(reward: Any, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        loaded({"iou": reward})


def test_a_reward_that_counts_in_one_domain_alone() -> None:
    assert loaded({"iou": {"weight": 0.0, "domains": {"ct": 1.0}}})["iou"].domains == {"ct": 1.0}


def test_a_reward_is_asked_where_it_counts() -> None:
    reward, all_ecg = Asked(), Asked()
    cases = [case("ecg"), case("ct"), case("ecg"), case("mri")]
    rollouts = [Rollout("c", 1, (), "") for _ in cases]
    routes = Routing({"a": {"ecg": 0.0, "ct": 0.3}, "b": dict.fromkeys(("ecg", "ct", "mri"), 0.0)})
    verdicts = judge({"a": reward, "b": all_ecg}, cases, rollouts, [Reading()] * 4, routes)
    assert (reward.calls, all_ecg.calls) == ([["ct", "mri"]], [])
    assert [one["a"].value for one in verdicts] == [None, 1.0, None, 1.0]
    assert verdicts[0]["a"] == Verdict.not_applicable("a has the weight 0 in ecg")
    assert [routes.weights({"a": 0.6, "c": 1.0}, name)["a"] for name in ("ct", "mri")] == [0.3, 0.6]


WEIGHTS = {"accuracy": 0.6, "iou": 0.2, "format": 0.2, "views": 0.2}
AUXILIARY = {"format": "auxiliary", "views": "auxiliary"}


@pytest.mark.parametrize(
    ("form", "views", "value"),
    [
        (Verdict(1.0), Verdict(0.5), 0.6 * 1 + 0.2 * 0.5 + 0.2 * 0.75),  # the mean of both
        (Verdict(1.0), NONE, 0.6 * 1 + 0.2 * 0.5 + 0.2 * 1),  # of the one that applies
        (NONE, NONE, (0.6 * 1 + 0.2 * 0.5) / 0.8),
    ],
)
def test_the_papers_auxiliary_term(form: Verdict, views: Verdict, value: float) -> None:
    """QoQ-Med: accuracy 0.6, IoU 0.2, auxiliary 0.2, the mean of the terms that apply."""
    verdicts = {"accuracy": Verdict(1.0), "iou": Verdict(0.5), "format": form, "views": views}
    assert combine(verdicts, WEIGHTS, AUXILIARY) == pytest.approx(value)


def test_a_share_is_by_weight() -> None:
    verdicts = {"accuracy": Verdict(0.0), "format": Verdict(1.0), "views": Verdict(0.0)}
    weights = {"accuracy": 0.5, "format": 0.3, "views": 0.1}
    assert combine(verdicts, weights, AUXILIARY) == pytest.approx(0.15 / (0.5 + 0.15 + 0.05))
    assert combine(verdicts, {**weights, "views": 0.0}, AUXILIARY) == pytest.approx(0.3 / 0.8)  # logged only


def test_a_share_named_like_a_reward_is_not_that_rewards() -> None:
    verdicts = {"accuracy": Verdict(0.0), "format": Verdict(1.0)}
    assert combine(verdicts, {"accuracy": 0.5, "format": 0.5}, {"format": "accuracy"}) == pytest.approx(0.5)


class Penalty(Asked):
    low, high = -1.0, 0.0


def test_groups_are_judged_by_their_domain() -> None:
    """Rollout 1 has task 1 and penalty -1; in ct the penalty is not asked. Closing ends the engine."""
    task = SimpleNamespace(read=lambda text, case, frame: Reading())
    prompter: Any = SimpleNamespace(task=lambda case: task, frame=lambda prompt: None)
    nothing: Any = None
    closed = list[bool]()
    engine: Any = SimpleNamespace(close=lambda: closed.append(True))
    rewards: Any = {"task": Asked(), "penalty": Penalty(-1.0)}
    routes = Routing({"penalty": {"ct": 0.0}, "task": {"mri": 3.0}})
    actor = Actor(nothing, prompter, engine, rewards, {"task": 1.0, "penalty": 1.0}, nothing, routing=routes)
    step = actor.at(Admitted((), (), ()), Sampling())
    groups = [Group(case(name), nothing, (Rollout(name, 1, (), ""),)) for name in ("ct", "mri", "ecg")]
    judged = step.judge(groups)
    assert [group.rewards[0] for group in judged] == [1.0, pytest.approx(0.5), 0.0]
    assert [group.difficulty for group in judged] == [(1.0,)] * 3
    assert judged[0].verdicts[0]["penalty"].status is Status.NOT_APPLICABLE
    actor.close()
    assert closed == [True]


def test_a_processed_reward_has_the_range_of_its_plugin() -> None:
    from qoqmed.build import make_reward

    reward = make_reward("mine", RewardConfig("accuracy", timeout_s=3.0))
    assert (reward.low, reward.high) == (0.0, 1.0)
