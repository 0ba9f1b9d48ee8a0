"""Estimators over whole responses: by hand, against the oracles in numpy (`oracles/`), and by property.

Those over tokens, and what every registered one promises: `test_advantages_tokens.py`.
"""

from __future__ import annotations

import json
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.advantages import of_groups
from oracles.drpo import drpo as oracle

from qoqmed.advantages.dr_grpo import DrGRPO
from qoqmed.advantages.drpo import DRPO
from qoqmed.advantages.exchange import from_rows, to_result
from qoqmed.advantages.grpo import GRPO
from qoqmed.advantages.rloo import RLOO
from qoqmed.advantages.table import Advantages, RewardTable
from qoqmed.errors import DataError, UserError

Rewards = list[list[float | None]]


def table_of(
    rewards: Rewards,
    domains: list[str],
    kl: list[list[float]] | None = None,
    difficulty: list[list[float]] | None = None,
) -> RewardTable:
    rows = []
    for q, (row, domain) in enumerate(zip(rewards, domains, strict=True)):
        for i, reward in enumerate(row):
            rows.append({"question": f"q{q}", "domain": domain, "reward": reward})
            rows[-1] |= {} if kl is None else {"kl": kl[q][i]}
            rows[-1] |= {} if difficulty is None else {"difficulty": difficulty[q][i]}
    return from_rows(rows)


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def separated(seed: int, sizes: dict[str, tuple[int, int, int]], zero: int = 0) -> tuple[Rewards, list[str]]:
    """Questions of three well separated kinds in each domain (hard, middling, easy), `zero` of all equal rewards."""
    rng = np.random.default_rng(seed)
    kinds = np.array([[0.0, 0.0, 0.0, 0.3], [0.0, 0.6, 0.6, 0.0], [1.0, 1.0, 1.0, 0.7]])
    rows, domains = [], []
    for domain, counts in sizes.items():
        for kind, count in zip(kinds, counts, strict=True):
            rows += [(kind + rng.uniform(0, 0.02, 4)).tolist() for _ in range(count)]
            domains += [domain] * count
    for _ in range(zero):
        rows.append([0.31] * 4)
        domains.append(next(iter(sizes)))
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], [domains[i] for i in order]


SIZES = {"chest_xray": (8, 9, 7), "ecg": (3, 2, 4), "ultrasound": (1, 2, 1)}


# --- GRPO, Dr. GRPO, RLOO
def test_grpo_by_hand() -> None:
    """Rewards 0, 1, 2: mean 1, unbiased standard deviation 1. Rewards 0, 1: std sqrt(1/2)."""
    found = GRPO().estimate(table_of([[0, 1, 2], [0, 1]], ["a", "b"]))
    half = 0.5 / (sqrt(0.5) + 1e-6)
    assert found.values.tolist() == pytest.approx([-1 / (1 + 1e-6), 0, 1 / (1 + 1e-6), -half, half], abs=1e-12)
    assert found.diagnostics.domains["a"].n == 1
    assert found.diagnostics.domains["a"].mean_reward == 1.0
    assert sum(stats.share for stats in found.diagnostics.domains.values()) == pytest.approx(1)


def test_dr_grpo_by_hand() -> None:
    found = DrGRPO().estimate(table_of([[0, 1, 2], [0, 1]], ["a", "b"]))
    assert found.values.tolist() == [-1, 0, 1, -0.5, 0.5]
    assert found.diagnostics.scalars["top_question_share"] == pytest.approx(2 / 3)


def test_rloo_by_hand() -> None:
    """0, 1, 2: the others' means are 3/2, 1, 1/2. Of 1 and 0, beside an invalid one, each is the other's baseline."""
    found = RLOO().estimate(table_of([[0, 1, 2], [1, None, 0]], ["a", "b"]))
    assert found.values.tolist() == pytest.approx([-1.5, 0, 1.5, 1, 0, -1], abs=1e-15)


@given(st.integers(0, 2**16))
def test_groups_as_the_oracle(seed: int) -> None:
    """Groups of one to six, one rollout in five invalid."""
    rng = np.random.default_rng(seed)
    rewards: Rewards = [
        [None if rng.random() < 0.2 else float(rng.integers(0, 6)) / 5 for _ in range(rng.integers(1, 7))]
        for _ in range(6)
    ]
    for kind, estimator in {"grpo": GRPO(), "dr_grpo": DrGRPO(), "rloo": RLOO()}.items():
        found = estimator.estimate(table_of(rewards, ["a", "b"] * 3)).values
        np.testing.assert_allclose(found.numpy(), flat(of_groups(rewards, kind)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", [GRPO(), DrGRPO(), RLOO(), DRPO()])
def test_equal_rewards_give_exactly_zero(estimator: Any) -> None:
    """0.1 three times has a mean that is not 0.1: rounding must not become an advantage."""
    found = estimator.estimate(table_of([[0.1, 0.1, 0.1], [0.7, 0.7, 0.7]], ["a", "a"]))
    assert found.values.tolist() == [0.0] * 6
    assert found.diagnostics.scalars["frac_reward_zero_std"] == 1.0


@pytest.mark.parametrize("estimator", [GRPO(), DrGRPO(), RLOO(), DRPO()])
def test_invalid_rollouts_and_small_groups(estimator: Any) -> None:
    """q0 counts without its invalid rollout; q1 has one valid rollout and q2 none: dropped."""
    rewards: Rewards = [[0.0, None, 1.0], [1.0, None, None], [None, None, None]]
    found = estimator.estimate(table_of(rewards, ["a", "a", "b"]))
    assert found.values[1] == 0.0
    assert found.values[3:].tolist() == [0.0] * 6
    assert found.values[0] == -found.values[2] != 0.0
    assert found.diagnostics.scalars["dropped_groups"] == 2.0
    assert list(found.diagnostics.domains) == ["a"]
    assert found.diagnostics.domains["a"].n == 1


def test_nothing_valid_at_all() -> None:
    found = DRPO().estimate(table_of([[None, None]], ["a"]))
    assert found.values.tolist() == [0.0, 0.0]
    assert found.diagnostics.domains == {}


# --- DRPO by hand
def test_one_domain_of_one_kind() -> None:
    """One domain, one cluster: every scale is the same, so only GRPO's values divided by their spread are left."""
    rewards: Rewards = [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    found = DRPO().estimate(table_of(rewards, ["a"] * 3))
    # six values of +-s: unbiased standard deviation s sqrt(6/5)
    assert found.values.tolist() == pytest.approx([-sqrt(5 / 6), sqrt(5 / 6)] * 3)
    stats = found.diagnostics.domains["a"]
    assert (stats.n, stats.mean_reward, len(stats.clusters)) == (3, 0.5, 1)
    assert stats.temperature == pytest.approx(sqrt(3) * 0.5)
    assert stats.clusters[0].temperature == pytest.approx(sqrt(3) * 0.5)
    assert stats.clusters[0].questions == ("q0", "q1", "q2")


def test_two_domains_without_clusters_by_hand() -> None:
    """a: 4 questions of mean 1/2: T = 1. b: 1 question of mean 1/4: T = 1/4, so b counts four times as much."""
    rewards: Rewards = [[0.0, 1.0]] * 4 + [[0.0, 0.5]]
    found = DRPO(cluster=False).estimate(table_of(rewards, ["a"] * 4 + ["b"]))
    values = found.values.tolist()
    assert values[9] / values[1] == pytest.approx(4.0, rel=1e-5)
    assert found.diagnostics.scalars["scale_ratio"] == pytest.approx(4.0)
    # the squares: 8 of 1 and 2 of 16, mean 0, over 9
    assert values[1] == pytest.approx(1 / sqrt(40 / 9), rel=1e-5)
    assert found.diagnostics.domains["b"].share == pytest.approx(8 / 16, rel=1e-5)
    assert found.diagnostics.scalars["top_question_share"] == pytest.approx(8 / 16, rel=1e-5)


def test_clusters_by_hand() -> None:
    """One domain: 4 hard questions (mean 1/4), 1 easy (mean 3/4): T_c = 1/2 and 3/4; T_g is the same for all."""
    rewards: Rewards = [[0.0, 0.5]] * 4 + [[0.5, 1.0]]
    found = DRPO().estimate(table_of(rewards, ["a"] * 5))
    hard, easy = found.diagnostics.domains["a"].clusters
    assert (hard.n, hard.mean_reward, hard.temperature) == (4, 0.25, pytest.approx(0.5))
    assert (easy.n, easy.mean_reward, easy.temperature) == (1, 0.75, pytest.approx(0.75))
    assert easy.questions == ("q4",)
    assert found.diagnostics.domains["a"].temperature == pytest.approx(sqrt(5) * 0.35)
    assert float(found.values[1] / found.values[9]) == pytest.approx(1.5)


def test_a_domain_of_zeros_has_the_least_temperature_and_no_advantage() -> None:
    found = DRPO().estimate(table_of([[0.0, 1.0], [0.0, 0.0]], ["a", "zeros"]))
    assert found.values[2:].tolist() == [0.0, 0.0]
    stats = found.diagnostics.domains["zeros"]
    assert (stats.temperature, stats.clusters[0].temperature, stats.share) == (1e-6, 1e-6, 0.0)
    assert found.diagnostics.scalars["scale_ratio"] == 1.0  # a scale that acts on nothing is no extreme
    assert len(found.warnings) == 1  # only: no KL


def test_kl_zero_leaves_all_as_it_is() -> None:
    rewards: Rewards = [[0.0, 1.0, 0.5], [0.2, 0.0, 1.0]]
    with_kl = DRPO().estimate(table_of(rewards, ["a", "b"], kl=[[0.0] * 3] * 2))
    without = DRPO(kl_damping=False).estimate(table_of(rewards, ["a", "b"]))
    assert with_kl.values.tolist() == without.values.tolist()
    assert with_kl.diagnostics.kl_threshold == 0.0
    assert without.diagnostics.kl_threshold is None
    assert with_kl.diagnostics.scalars["damped"] == 0.0


def test_a_kl_outlier_is_damped_by_hand() -> None:
    """Ten like questions of one domain, no clusters; one has k = 100, the others k = 1.

    s' is +-u throughout. z: 9 of u, 1 of 100 u, 9 of -u, 1 of -100 u. The 0.9 quantile of 20 values lies at position
    17.1, among the nine u: t = u. The outlier's success becomes u / (1 + 100), the others' u / 2; failures stay.
    """
    rewards: Rewards = [[0.0, 1.0]] * 10
    kl = [[50.0, 50.0]] + [[0.4, 0.6]] * 9
    found = DRPO(cluster=False).estimate(table_of(rewards, ["a"] * 10, kl=kl))
    values = found.values
    u = -values[0]
    assert float(values[1] / u) == pytest.approx(1 / 101)
    assert (values[3::2] / u).tolist() == pytest.approx([0.5] * 9)
    assert (values[::2] / u).tolist() == pytest.approx([-1.0] * 10)
    assert float(values.std()) == pytest.approx(1)
    unit = (0.5 / (sqrt(0.5) + 1e-6)) / (sqrt(10) * 0.5)
    assert found.diagnostics.kl_threshold == pytest.approx(unit)
    assert found.diagnostics.scalars["damped"] == 0.5


def test_missing_kl_is_told() -> None:
    found = DRPO().estimate(table_of([[0.0, 1.0]], ["a"]))
    assert found.diagnostics.kl_threshold is None
    assert "none" in found.warnings[0]


def test_extreme_scales_are_told() -> None:
    """a: T = 1e-4 / 2 twice (T_g T_c); b: 1/2 twice: a ratio of 1e8."""
    found = DRPO().estimate(table_of([[0.0, 1e-4], [0.0, 1.0]], ["a", "b"], kl=[[0.0, 0.0]] * 2))
    assert found.diagnostics.scalars["scale_ratio"] == pytest.approx(1e8)
    assert found.warnings == ("DRPO weighs question 'q0' (a) 1e+08 times as much as 'q1' (b)",)


def test_negative_rewards_need_a_difficulty() -> None:
    rewards: Rewards = [[-0.5, 0.5], [0.0, 1.0]]
    with pytest.raises(UserError, match=r"question 'q0'[\s\S]*-0.5"):
        DRPO().estimate(table_of(rewards, ["a", "a"]))
    difficulty = [[0.0, 1.0], [0.0, 1.0]]
    found = DRPO(cluster=False).estimate(table_of(rewards, ["a", "a"], difficulty=difficulty))
    assert found.diagnostics.domains["a"].mean_reward == 0.5
    assert found.values.tolist() == pytest.approx(flat(oracle(rewards, ["a", "a"], None, difficulty, cluster=False)[0]))


def test_ragged_groups() -> None:
    rewards: Rewards = [[0.0, 1.0], [0.0, 1.0, 0.5]]
    assert len(GRPO().estimate(table_of(rewards, ["a", "a"])).values) == 5
    assert len(DRPO(cluster=False).estimate(table_of(rewards, ["a", "a"])).values) == 5
    with pytest.raises(UserError, match="'q0' has 2, 'q1' has 3"):
        DRPO().estimate(table_of(rewards, ["a", "a"]))


def test_no_clusters_is_one_cluster_at_most() -> None:
    rewards, domains = separated(0, SIZES)
    a = DRPO(cluster=False).estimate(table_of(rewards, domains))
    b = DRPO(max_clusters=1).estimate(table_of(rewards, domains))
    assert a.values.tolist() == b.values.tolist()
    assert a.diagnostics.domains["ecg"].clusters[0].temperature == 1.0


# --- against the oracle
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"cluster": False},
        {"max_clusters": 3},
        {"kl_damping": False},
        {"kl_quantile": 0.5},
        {"sort_rewards": True},
        {"max_ratio": 3.0},
        {"max_ratio": 1.0},
        {"cluster": False, "max_ratio": 1.5},
    ],
)
def test_drpo_as_the_oracle(seed: int, variant: dict[str, Any]) -> None:
    rewards, domains = separated(seed, SIZES, zero=2)
    kl = np.random.default_rng(seed).exponential(1.0, (len(rewards), 4)).tolist()
    found = DRPO(**variant).estimate(table_of(rewards, domains, kl=kl))
    expected, threshold = oracle(
        rewards,
        domains,
        kl if variant.get("kl_damping", True) else None,
        cluster=variant.get("cluster", True),
        k_max=variant.get("max_clusters", 10),
        quantile=variant.get("kl_quantile", 0.9),
        ordered=variant.get("sort_rewards", False),
        max_ratio=variant.get("max_ratio"),
    )
    np.testing.assert_allclose(found.values.numpy(), flat(expected), rtol=1e-9, atol=1e-12)
    assert found.diagnostics.kl_threshold == (None if threshold is None else pytest.approx(threshold))


def test_invalid_rollouts_as_the_oracle() -> None:
    rewards, domains = separated(4, SIZES)
    kl = np.random.default_rng(4).exponential(1.0, (len(rewards), 4)).tolist()
    rewards[3][1] = rewards[10][0] = rewards[20][3] = rewards[20][2] = None
    rewards[5] = [None, None, None, 0.4]
    found = DRPO(max_clusters=3).estimate(table_of(rewards, domains, kl=kl))
    expected, _ = oracle(rewards, domains, kl, k_max=3)
    np.testing.assert_allclose(found.values.numpy(), flat(expected), rtol=1e-9, atol=1e-12)


# --- sort_rewards, max_ratio, window
def test_sorted_rewards_by_hand() -> None:
    """One success of two, first or second: two kinds of question as they were sampled, one kind when sorted."""
    rewards: Rewards = [[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 2
    apart = DRPO().estimate(table_of(rewards, ["a"] * 6)).diagnostics.domains["a"]
    together = DRPO(sort_rewards=True).estimate(table_of(rewards, ["a"] * 6)).diagnostics.domains["a"]
    assert sorted(cluster.n for cluster in apart.clusters) == [2, 4]
    assert [cluster.n for cluster in together.clusters] == [6]


@given(st.integers(0, 2**16))
def test_sorted_rewards_take_rollouts_in_any_order(seed: int) -> None:
    rewards, domains = separated(seed, SIZES)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(4).tolist() for _ in rewards]
    estimator = DRPO(sort_rewards=True, restarts=3)
    plain = estimator.estimate(table_of(rewards, domains)).values.view(-1, 4)
    shuffled: Rewards = [[row[i] for i in order] for row, order in zip(rewards, orders, strict=True)]
    found = estimator.estimate(table_of(shuffled, domains)).values.view(-1, 4)
    torch.testing.assert_close(found, plain.gather(1, torch.tensor(orders)), rtol=1e-9, atol=1e-12)


def test_a_cap_on_the_ratio_by_hand() -> None:
    """T is 1 in a and 1/4 in b: scales 1 and 4. Capped at 2 times the smallest; at 1 nothing is left but GRPO."""
    rewards: Rewards = [[0.0, 1.0]] * 4 + [[0.0, 0.5]]
    table = table_of(rewards, ["a"] * 4 + ["b"])
    found = DRPO(cluster=False, max_ratio=2).estimate(table)
    assert float(found.values[9] / found.values[1]) == pytest.approx(2.0, rel=1e-5)
    assert found.diagnostics.scales is not None
    assert found.diagnostics.scales.tolist() == [1, 1, 1, 1, 2]
    assert found.diagnostics.scalars["scale_ratio"] == 2.0
    assert found.diagnostics.domains["b"].temperature == 0.25
    flat_scales = DRPO(cluster=False, max_ratio=1).estimate(table).values
    grpo = GRPO().estimate(table).values
    torch.testing.assert_close(flat_scales, grpo / grpo.std())


def test_a_cap_asks_only_scales_that_act() -> None:
    """c is the easiest, T = 2, but its rewards are equal: the smallest scale that acts is a's."""
    rewards: Rewards = [[0.0, 1.0]] * 4 + [[0.0, 0.5]] + [[1.0, 1.0]] * 4
    found = DRPO(cluster=False, max_ratio=2).estimate(table_of(rewards, ["a"] * 4 + ["b"] + ["c"] * 4))
    assert found.diagnostics.scales is not None
    assert found.diagnostics.scales.tolist() == [1, 1, 1, 1, 2, 0.5, 0.5, 0.5, 0.5]


def test_a_window_by_hand() -> None:
    """a has 4 questions of mean 1/2 in every step, b one of mean 1/2 in the second: T_a = sqrt(4 + 4) / 2, T_b = 1/2.

    In the third step the first is forgotten: T_b = sqrt(1 + 1) / 2.
    """
    four: Rewards = [[0.0, 1.0]] * 4
    estimator = DRPO(cluster=False, window=1, kl_damping=False)
    steps = [(four, ["a"] * 4), *[([*four, [0.0, 1.0]], ["a"] * 4 + ["b"])] * 2]
    found = [estimator.estimate(table_of(*step)) for step in steps]
    domains = [one.diagnostics.domains for one in found]
    assert [one["a"].n for one in domains] == [4, 8, 8]
    assert [one["a"].temperature for one in domains] == pytest.approx([1, sqrt(2), sqrt(2)])
    assert [one["b"].temperature for one in domains[1:]] == pytest.approx([0.5, sqrt(0.5)])
    assert float(found[1].values[9] / found[1].values[1]) == pytest.approx(sqrt(2) / 0.5)
    assert domains[1]["a"].clusters[0].questions == ("q0", "q1", "q2", "q3")  # of this step


@pytest.mark.parametrize("variant", [{}, {"sort_rewards": True}, {"cluster": False}, {"max_ratio": 4.0}])
def test_a_window_as_the_oracle(variant: dict[str, Any]) -> None:
    """Four steps, two past ones each; ecg is not in all of them, and some rollouts are invalid."""
    estimator, past = DRPO(window=2, **variant), []
    for seed in range(4):
        rewards, domains = separated(seed, SIZES if seed % 2 else {"chest_xray": (3, 4, 2), "ct": (1, 2, 3)}, zero=1)
        rewards[2][1] = rewards[4][0] = rewards[4][2] = rewards[4][3] = None
        kl = np.random.default_rng(seed).exponential(1.0, (len(rewards), 4)).tolist()
        found = estimator.estimate(table_of(rewards, domains, kl=kl))
        expected, _ = oracle(
            rewards,
            domains,
            kl,
            cluster=variant.get("cluster", True),
            ordered=variant.get("sort_rewards", False),
            past=past[-2:],
            max_ratio=variant.get("max_ratio"),
        )
        np.testing.assert_allclose(found.values.numpy(), flat(expected), rtol=1e-9, atol=1e-12)
        past.append((rewards, domains, None))


def test_a_window_resumes_exactly() -> None:
    def step(seed: int) -> RewardTable:
        rng = np.random.default_rng(seed)
        return table_of(rng.random((20, 4)).tolist(), rng.choice(["a", "b"], 20).tolist())

    whole = DRPO(window=2)
    for seed in range(3):
        whole.estimate(step(seed))
    state = json.loads(json.dumps(whole.state_dict()))
    assert len(state["past"]) == 2
    resumed = DRPO(window=2)
    resumed.load_state_dict(state)
    for seed in range(3, 6):
        one, other = whole.estimate(step(seed)), resumed.estimate(step(seed))
        assert one.values.tolist() == other.values.tolist()
        assert one.diagnostics.domains == other.diagnostics.domains


def test_a_window_of_groups_of_other_sizes() -> None:
    estimator = DRPO(window=1)
    estimator.estimate(table_of([[0.0, 1.0]], ["a"]))
    with pytest.raises(UserError, match="3 rollouts a question, 2 in an earlier step"):
        estimator.estimate(table_of([[0.0, 1.0, 0.5]], ["a"]))


def test_what_the_damping_removed() -> None:
    """In the unit of the advantages: only where the KL acts do the two differ."""
    table = table_of([[0.0, 1.0]] * 10, ["a"] * 10, kl=[[50.0, 50.0]] + [[0.4, 0.6]] * 9)
    found = DRPO(cluster=False).estimate(table)
    assert found.diagnostics.undamped is not None
    removed = found.diagnostics.undamped - found.values
    assert removed[::2].tolist() == [0.0] * 10  # failures
    assert float(found.values[1] / found.diagnostics.undamped[1]) == pytest.approx(1 / 101)
    assert DRPO(cluster=False, kl_damping=False).estimate(table).diagnostics.undamped is None


# --- properties
reward_values = st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 0.6, 0.8, 1.0])
reward_rows = st.lists(st.lists(reward_values, min_size=3, max_size=3), min_size=1, max_size=12)


@given(reward_rows, st.integers(0, 2**16))
def test_standard_deviation_is_one_and_flat_groups_are_zero(rows: Rewards, seed: int) -> None:
    rng = np.random.default_rng(seed)
    domains = rng.choice(["a", "b", "c"], len(rows)).tolist()
    kl = rng.exponential(1.0, (len(rows), 3)).tolist()
    values = DRPO(restarts=2).estimate(table_of(rows, domains, kl=kl)).values.view(len(rows), 3)
    some = False
    for row, found in zip(rows, values, strict=True):
        if len(set(row)) == 1:
            assert found.tolist() == [0.0] * 3
        some |= len(set(row)) > 1
    assert float(values.std()) == (pytest.approx(1.0) if some else 0.0)


@given(st.integers(0, 2**16))
def test_questions_may_come_in_any_order(seed: int) -> None:
    rewards, domains = separated(seed, SIZES, zero=1)
    rng = np.random.default_rng(seed)
    kl = rng.exponential(1.0, (len(rewards), 4)).tolist()
    order = rng.permutation(len(rewards)).tolist()

    def values(at: list[int]) -> torch.Tensor:
        some = DRPO(restarts=3).estimate(
            table_of([rewards[i] for i in at], [domains[i] for i in at], kl=[kl[i] for i in at])
        )
        return some.values.view(-1, 4)

    torch.testing.assert_close(values(order), values(list(range(len(rewards))))[order], rtol=1e-9, atol=1e-12)


def test_the_same_twice() -> None:
    rng = np.random.default_rng(0)
    rewards = rng.random((40, 5)).tolist()
    domains = rng.choice(["a", "b"], 40).tolist()
    once, again = (DRPO().estimate(table_of(rewards, domains)) for _ in range(2))
    assert once.values.tolist() == again.values.tolist()
    assert once.diagnostics.domains == again.diagnostics.domains
    assert once.diagnostics.scalars["hit_cap"] > 0


# --- constructors
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DRPO(max_ratio=0.5), "max_ratio[\\s\\S]*at least 1"),
        (lambda: DRPO(window=-1), "window[\\s\\S]*at least 0"),
        (lambda: DRPO(max_clusters=0), "max_clusters"),
        (lambda: DRPO(kl_quantile=1.5), "at least 0, at most 1"),
        (lambda: DRPO(restarts=0, elbow_tolerance=-1), "elbow_tolerance[\\s\\S]*restarts"),
    ],
)
def test_wrong_arguments_are_told(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_needs() -> None:
    assert GRPO.needs.group == 2
    assert DRPO().needs.kl
    assert DRPO().needs.reference
    assert not DRPO(kl_damping=False).needs.reference
    assert DRPO().state_dict() == {}
    assert DRPO(window=1).state_dict() == {"past": []}


# --- exchange
def test_exchange_keeps_the_order_of_the_rows() -> None:
    rows = [
        {"question": "x", "domain": "ecg", "reward": 0, "kl": 0.1},
        {"question": "y", "domain": "ct", "reward": 1.0, "kl": 0.1},
        {"question": "x", "domain": "ecg", "reward": 1, "kl": 0.2},
        {"question": "y", "domain": "ct", "reward": 0.0, "kl": 0.0},
    ]
    table = from_rows(rows)
    result = to_result(table, DRPO().estimate(table))
    assert set(result) == {"advantages", "domains", "kl"}
    assert [value > 0 for value in result["advantages"]] == [False, True, True, False]
    assert list(result["domains"]) == ["ecg", "ct"]
    assert result["domains"]["ecg"] == {
        "n": 1,
        "mean_reward": 0.5,
        "temperature": 0.5,
        "clusters": [{"n": 1, "mean_reward": 0.5, "temperature": 0.5, "questions": ["x"]}],
    }
    assert result["kl"]["threshold"] > 0
    without = to_result(table, GRPO().estimate(table))
    assert without["kl"] == {"threshold": None}
    assert without["domains"]["ct"]["clusters"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": float("nan")}, "row 2: reward is not a finite number"),
        ({"reward": "1"}, "row 2: reward is not a finite number"),
        ({"reward": True}, "row 2: reward is not a finite number"),
        ({"question": 3}, "row 2: question is missing or not a text"),
        ({"domain": "b"}, "row 2: question 'x' is in two domains"),
        ({"kl": None}, "row 2: kl is missing"),
        ({"kl": -1.0}, "row 2: kl is negative"),
    ],
)
def test_wrong_rows_are_named(change: dict[str, Any], message: str) -> None:
    row = {"question": "x", "domain": "a", "reward": 1.0, "kl": 0.0}
    with pytest.raises(DataError, match=message):
        from_rows([row, row | change])


def test_missing_keys_and_no_rows() -> None:
    with pytest.raises(DataError, match=r"domain is missing[\s\S]*reward is missing"):
        from_rows([{"question": "x"}])
    with pytest.raises(DataError, match="no rows"):
        from_rows([])


def test_advantages_are_frozen() -> None:
    found = GRPO().estimate(table_of([[0, 1]], ["a"]))
    assert isinstance(found, Advantages)
    with pytest.raises(AttributeError):
        found.values = torch.zeros(2)  # type: ignore[misc]
