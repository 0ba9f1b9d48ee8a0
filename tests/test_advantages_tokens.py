"""Estimators over tokens or with a greedy baseline, by hand and by the oracles; what every registered one promises.

The oracles (`oracles/advantages.py`) are written from the papers, in loops.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import advantages as oracle

from qoqmed import registry
from qoqmed.advantages.gae import GAE
from qoqmed.advantages.reinforce_pp import ReinforcePP
from qoqmed.advantages.remax import ReMax
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.config.schema import Node
from qoqmed.errors import UserError
from qoqmed.types import Needs


@dataclass(frozen=True)
class Question:
    """rewards: None where invalid. penalty, values: of the tokens of each rollout."""

    name: str
    domain: str
    rewards: list[float | None]
    penalty: list[list[float]]
    values: list[list[float]]
    greedy: float = nan

    @property
    def lengths(self) -> list[int]:
        return [len(values) for values in self.values]


def table_of(questions: Sequence[Question]) -> RewardTable:
    """Of invalid rollouts reward, difficulty and KL are NaN: nothing may look at them."""
    rewards = [reward for question in questions for reward in question.rewards]
    numbers = torch.tensor([nan if reward is None else reward for reward in rewards], dtype=torch.float64)
    sums = [sum(map(abs, penalty)) for question in questions for penalty in question.penalty]
    return RewardTable(
        questions=tuple(question.name for question in questions),
        domains=tuple(question.domain for question in questions),
        question=torch.tensor([q for q, one in enumerate(questions) for _ in one.rewards], dtype=torch.long),
        reward=numbers,
        valid=numbers.isfinite(),
        kl=torch.where(numbers.isfinite(), torch.tensor(sums, dtype=torch.float64), nan),
        difficulty=numbers.abs(),
        baseline=torch.tensor([question.greedy for question in questions], dtype=torch.float64),
        lengths=torch.tensor([n for question in questions for n in question.lengths], dtype=torch.long),
        penalty=flat(question.penalty for question in questions),
        values=flat(question.values for question in questions),
    )


def flat(rows: Any) -> torch.Tensor:
    return torch.tensor([x for question in rows for rollout in question for x in rollout], dtype=torch.float64)


def random_question(name: str, rng: np.random.Generator, size: int, invalid: float = 0.2) -> Question:
    lengths = rng.integers(1, 7, size).tolist()
    return Question(
        name,
        str(rng.choice(["ct", "ecg", "mri"])),
        [None if rng.random() < invalid else float(rng.integers(0, 6)) / 5 for _ in range(size)],
        [rng.normal(0, 0.1, length).tolist() for length in lengths],
        [rng.normal(0.5, 0.3, length).tolist() for length in lengths],
        float(rng.choice([0.0, 0.5, 1.0, nan])),
    )


def one(rewards: list[float | None], lengths: list[int], **fields: Any) -> Question:
    zeros = [[0.0] * length for length in lengths]
    return Question(**{"name": "q", "domain": "ct", "rewards": rewards, "penalty": zeros, "values": zeros} | fields)


# ---- ReMax
def test_remax_by_hand() -> None:
    """r has no greedy reward and s no valid rollout: dropped. One valid rollout is enough."""
    questions = [
        one([1.0, 0.0, None], [1, 2, 1], greedy=0.25),
        one([1.0], [1], name="r"),
        one([None], [1], name="s", greedy=0.5),
        one([0.3], [1], name="t", greedy=0.3),
    ]
    found = ReMax().estimate(table_of(questions))
    assert found.values.tolist() == [0.75, -0.25, 0.0, 0.0, 0.0, 0.0]
    assert found.diagnostics.scalars["dropped_groups"] == 2
    assert found.diagnostics.scalars["frac_reward_zero_std"] == 0.5  # t, a group of one
    assert found.diagnostics.domains["ct"].n == 2


@given(st.integers(0, 2**16))
def test_remax_as_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    questions = [random_question(f"q{q}", rng, int(rng.integers(1, 5))) for q in range(6)]
    expected = oracle.remax([question.rewards for question in questions], [question.greedy for question in questions])
    found = ReMax().estimate(table_of(questions)).values
    np.testing.assert_allclose(found.numpy(), [x for row in expected for x in row], rtol=1e-12, atol=1e-12)


# ---- REINFORCE++
def test_reinforce_pp_by_hand() -> None:
    """Token rewards -0.1, 0.8 and -0.3; returns at a discount of 1/2: 0.3, 0.8 and -0.3; mean 4/15, variance 0.91/3."""
    question = one([1.0, 0.0], [2, 1], penalty=[[0.1, 0.2], [0.3]])
    found = ReinforcePP(discount=0.5).estimate(table_of([question]))
    spread = sqrt(0.91 / 3 + 1e-8)
    tokens = [1 / 30 / spread, 16 / 30 / spread, -17 / 30 / spread]
    assert found.tokens is not None
    assert found.tokens.tolist() == pytest.approx(tokens, abs=1e-12)
    assert found.values.tolist() == pytest.approx([(tokens[0] + tokens[1]) / 2, tokens[2]], abs=1e-12)
    assert found.returns is None


def test_reinforce_pp_weighs_by_tokens() -> None:
    """Three tokens of 1 and one of 0: mean 3/4, unbiased variance 1/4, so 1/2 and -3/2."""
    found = ReinforcePP().estimate(table_of([one([1.0], [3]), one([0.0], [1], name="r")]))
    assert found.values.tolist() == pytest.approx([0.5, -1.5], abs=1e-6)


def test_the_mean_of_a_question_as_baseline() -> None:
    """Easy and hard questions: 1, 0.5 and 0.5, 0 become +-1/4 both; single tokens; variance 1/12."""
    questions = [one([1.0, 0.5], [1, 1]), one([0.5, 0.0], [1, 1], name="r"), one([0.7, None], [1, 1], name="s")]
    found = ReinforcePP(baseline="group").estimate(table_of(questions))
    assert found.values.tolist() == pytest.approx([sqrt(3) / 2, -sqrt(3) / 2] * 2 + [0, 0], abs=1e-6)
    assert found.diagnostics.scalars["dropped_groups"] == 1


@pytest.mark.parametrize("baseline", ["none", "group"])
@given(st.integers(0, 2**16), st.sampled_from([1.0, 0.9, 0.0]), st.booleans())
def test_reinforce_pp_as_the_oracle(baseline: str, seed: int, discount: float, penalised: bool) -> None:
    rng = np.random.default_rng(seed)
    questions = [random_question(f"q{q}", rng, int(rng.integers(2, 5))) for q in range(4)]
    questions.append(one([0.2, 0.9], [2, 3], name="last"))
    table = table_of(questions)
    found = ReinforcePP(discount, baseline).estimate(table if penalised else replace(table, penalty=None)).tokens
    expected = oracle.reinforce_pp(
        [question.rewards for question in questions],
        [question.lengths for question in questions],
        [question.penalty for question in questions] if penalised else None,
        discount,
        baseline,
    )
    assert found is not None
    np.testing.assert_allclose(found.numpy(), flat(expected).numpy(), rtol=1e-9, atol=1e-9)


# ---- GAE
def test_gae_by_hand() -> None:
    """delta = 0.9/4 - 1/2 = -0.275, then 1 - 1/4 = 0.75; A = -0.275 + 0.45 * 0.75 = 0.0625; returns A + V."""
    question = one([1.0, None], [2, 1], values=[[0.5, 0.25], [0.4]])
    found = GAE(discount=0.9, lam=0.5, whiten=False).estimate(table_of([question]))
    assert found.tokens is not None
    assert found.returns is not None
    assert found.tokens.tolist() == pytest.approx([0.0625, 0.75, 0.0], abs=1e-12)
    assert found.returns.tolist() == pytest.approx([0.5625, 1.0, 0.4], abs=1e-12)
    assert found.values.tolist() == pytest.approx([0.40625, 0.0], abs=1e-12)


def test_values_that_are_right_explain_everything() -> None:
    """lam = 1: A is the return less V. Where V is the return, nothing is left, and whitening leaves exact zeros."""
    right = one([1.0, 0.0], [2, 2], values=[[1.0, 1.0], [0.0, 0.0]])
    found = GAE().estimate(table_of([right]))
    assert found.values.tolist() == [0.0, 0.0]
    assert found.diagnostics.scalars["explained_variance"] == 1.0
    blind = GAE().estimate(table_of([one([1.0, 0.0], [2, 2])]))
    assert blind.diagnostics.scalars["explained_variance"] == 0.0
    assert blind.returns is not None
    assert blind.returns.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("whiten", [True, False])
@given(st.integers(0, 2**16), st.sampled_from([1.0, 0.95]), st.sampled_from([1.0, 0.95, 0.0]), st.booleans())
def test_gae_as_the_oracle(whiten: bool, seed: int, discount: float, lam: float, penalised: bool) -> None:
    rng = np.random.default_rng(seed)
    questions = [random_question(f"q{q}", rng, int(rng.integers(1, 4))) for q in range(4)]
    questions.append(one([0.2, 0.9], [2, 3], name="last"))
    table = table_of(questions)
    found = GAE(discount, lam, whiten).estimate(table if penalised else replace(table, penalty=None))
    tokens, returns = oracle.gae(
        [question.rewards for question in questions],
        [question.lengths for question in questions],
        [question.penalty for question in questions] if penalised else None,
        [question.values for question in questions],
        discount,
        lam,
        whiten,
    )
    assert found.tokens is not None
    assert found.returns is not None
    np.testing.assert_allclose(found.tokens.numpy(), flat(tokens).numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.returns.numpy(), flat(returns).numpy(), rtol=1e-9, atol=1e-9)


# ---- what both do
@pytest.mark.parametrize("estimator", [ReinforcePP(), ReinforcePP(baseline="group"), GAE()])
def test_equal_rewards_of_all_tokens_give_exactly_zero(estimator: Any) -> None:
    found = estimator.estimate(table_of([one([0.1, 0.1, 0.1], [1, 4, 2])]))
    assert found.values.tolist() == [0.0] * 3
    assert found.diagnostics.domains["ct"].share == 0.0


def test_a_share_is_of_absolute_advantages_of_tokens() -> None:
    """The response of ct has tokens of both signs, whose mean hides their size: 1 and -1 beside one of 1."""
    values = [[-1.0, 1.0]]
    questions = [one([0.0], [2], values=values), one([1.0], [1], name="r", domain="ecg", values=[[0.0]])]
    found = GAE(whiten=False).estimate(table_of(questions))
    assert found.values.tolist() == [0.0, 1.0]
    assert {name: stats.share for name, stats in found.diagnostics.domains.items()} == {"ct": 0.5, "ecg": 0.5}


@pytest.mark.parametrize(
    ("estimator", "column", "key"),
    [
        (ReMax(), "baseline", "baseline"),
        (ReinforcePP(), "lengths", "tokens"),
        (GAE(), "lengths", "tokens"),
        (GAE(), "values", "values"),
    ],
)
def test_a_table_without_what_is_needed_is_refused(estimator: Any, column: str, key: str) -> None:
    table = replace(table_of([one([0.0, 1.0], [1, 2])]), **{column: None})
    with pytest.raises(UserError, match=f"needs[\\s\\S]*'{key}'[\\s\\S]*mend: "):
        estimator.estimate(table)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReinforcePP(discount=1.5), "discount"),
        (lambda: ReinforcePP(baseline="groups"), "did you mean 'group'"),
        (lambda: GAE(discount=-1, lam=2), "discount[\\s\\S]*lam"),
    ],
)
def test_wrong_arguments_are_told(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_needs() -> None:
    assert ReMax.needs == Needs(greedy=True)
    assert GAE.needs == Needs(tokens=True, values=True)
    assert ReinforcePP().needs == Needs(tokens=True)
    assert ReinforcePP(baseline="group").needs == Needs(tokens=True, group=2)


# ---- what every registered estimator promises
REGISTERED = [info.name for info in registry.available("advantages") if info.distribution == "qoqmed"]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in REGISTERED),
    ("drpo", {"window": 2}),
    ("drpo", {"window": 2, "cluster": False, "max_ratio": 3.0}),
    ("drpo", {"sort_rewards": True, "max_clusters": 3, "kl_damping": False}),
    ("reinforce_pp", {"baseline": "group", "discount": 0.9}),
    ("gae", {"lam": 0.95, "whiten": False}),
]
every = pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=lambda value: str(value))


def made(name: str, arguments: dict[str, Any]) -> Any:
    return registry.make("advantages", Node(name, arguments))


def step(seed: int) -> list[Question]:
    """Twelve questions of four; one without a valid rollout, one with a single one, one of equal rewards."""
    rng = np.random.default_rng(seed)
    questions = [random_question(f"q{q}", rng, 4) for q in range(12)]
    changed: dict[int, list[float | None]] = {1: [None] * 4, 4: [None, 0.4, None, None], 7: [0.1] * 4}
    return [replace(one, rewards=changed.get(q, one.rewards)) for q, one in enumerate(questions)]


def check(found: Advantages, table: RewardTable) -> None:
    """Shapes, finiteness, zeros of invalid rollouts, diagnostics."""
    assert table.lengths is not None
    assert found.values.shape == table.reward.shape
    assert found.values.dtype == torch.float64
    assert found.values.isfinite().all()
    assert not found.values[~table.valid].any()
    of_token = torch.arange(len(table.lengths)).repeat_interleave(table.lengths)
    if found.tokens is not None:
        assert found.tokens.isfinite().all()
        assert not found.tokens[~table.valid[of_token]].any()
        means = [float(part.mean()) for part in found.tokens.split_with_sizes(table.lengths.tolist())]
        assert found.values.tolist() == pytest.approx(means, abs=1e-12)
    if found.returns is not None:
        assert table.values is not None
        assert found.returns.isfinite().all()
        own = ~table.valid[of_token]
        assert found.returns[own].tolist() == table.values[own].tolist()
    diagnostics = found.diagnostics
    assert {"frac_reward_zero_std", "dropped_groups"} <= set(diagnostics.scalars)
    assert all(isfinite(value) for value in diagnostics.scalars.values())
    assert all(isfinite(stats.mean_reward) and stats.n > 0 for stats in diagnostics.domains.values())
    assert sum(stats.share for stats in diagnostics.domains.values()) == pytest.approx(float(found.values.any()))


def test_all_estimators_of_the_papers_are_registered() -> None:
    assert {"grpo", "dr_grpo", "rloo", "reinforce_pp", "remax", "gae", "drpo"} <= set(REGISTERED)


@every
def test_what_an_estimator_returns(name: str, arguments: dict[str, Any]) -> None:
    table = table_of(step(0))
    found = made(name, arguments).estimate(table)
    check(found, table)
    assert found.values.any()
    assert len(found.diagnostics.domains) == 3
    assert 1 <= found.diagnostics.scalars["dropped_groups"] < 12


@every
def test_the_order_of_questions_does_not_matter(name: str, arguments: dict[str, Any]) -> None:
    questions = step(1)
    order = np.random.default_rng(1).permutation(len(questions)).tolist()
    plain = made(name, arguments).estimate(table_of(questions)).values.view(-1, 4)
    found = made(name, arguments).estimate(table_of([questions[q] for q in order])).values.view(-1, 4)
    torch.testing.assert_close(found, plain[order], rtol=1e-9, atol=1e-12)


@every
def test_the_state_survives_json(name: str, arguments: dict[str, Any]) -> None:
    whole, resumed = made(name, arguments), made(name, arguments)
    for seed in range(3):
        whole.estimate(table_of(step(seed)))
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict(), allow_nan=False)))
    for seed in range(3, 6):
        one, other = (estimator.estimate(table_of(step(seed))) for estimator in (whole, resumed))
        assert one.values.tolist() == other.values.tolist()
    assert whole.state_dict() == resumed.state_dict()


@every
@pytest.mark.parametrize("rewards", [[None, None], [0.5, None], [0.5], [0.1, 0.1, 0.1], []], ids=str)
def test_little_to_estimate_from(name: str, arguments: dict[str, Any], rewards: list[float | None]) -> None:
    """Nothing valid, one rollout, equal rewards, no question at all."""
    questions = [one(rewards, [2] * len(rewards), greedy=0.0)] if rewards else []
    estimator = made(name, arguments)
    table = table_of(questions)
    found = estimator.estimate(table)
    check(found, table)
    if name not in ("remax", "gae"):  # which have other baselines
        assert not found.values.any()
    if not table.valid.any():
        assert found.diagnostics.domains == {}


@every
def test_no_penalty_is_a_penalty_of_nothing(name: str, arguments: dict[str, Any]) -> None:
    table = table_of(step(2))
    assert table.penalty is not None
    without, nothing = replace(table, penalty=None), replace(table, penalty=torch.zeros_like(table.penalty))
    first, second = (made(name, arguments).estimate(one).values.tolist() for one in (without, nothing))
    assert first == second


@pytest.mark.parametrize("name", [name for name in REGISTERED if name != "drpo"])
def test_groups_of_unequal_sizes(name: str) -> None:
    rng = np.random.default_rng(3)
    table = table_of([random_question(f"q{q}", rng, 1 + q % 4) for q in range(12)])
    check(made(name, {}).estimate(table), table)
