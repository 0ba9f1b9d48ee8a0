"""The sampler: how often cases come, and that a run goes on where it stopped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qoqmed.datasets.sampler import Sampler
from qoqmed.errors import DataError, RunError


@dataclass
class Source:
    domains: list[str]
    fingerprint: str = ""

    def __len__(self):
        return len(self.domains)


def source(size, domains=("ct", "ecg")):
    return Source([domains[i % len(domains)] for i in range(size)])


def epoch(sampler, count=7):
    drawn, start = [], sampler.epoch
    while sampler.epoch == start:
        drawn += sampler.draw(count)
    return drawn


def test_weights_say_how_often_a_case_comes():
    sampler = Sampler([source(10), source(6), source(9)], [1.0, 2.0, 0.5], seed=3)
    first, second = epoch(sampler), epoch(sampler)
    for drawn in (first, second):
        times = Counter(drawn)
        assert all(times[0, i] == 1 for i in range(10)) and all(times[1, i] == 2 for i in range(6))
    halves = [sorted(i for s, i in drawn if s == 2) for drawn in (first, second)]
    assert [len(half) for half in halves] == [4, 5] and sorted(halves[0] + halves[1]) == list(range(9))
    assert first != second


def test_a_weight_of_a_tenth_is_exact():
    sampler = Sampler([source(100)], [0.29])
    assert [sampler.size(i) for i in range(3)] == [29, 29, 29]


def test_the_last_draw_of_an_epoch_is_short():
    sampler = Sampler([source(10)])
    assert [len(sampler.draw(4)) for _ in range(6)] == [4, 4, 2, 4, 4, 2]
    assert sampler.epoch == 2 and sampler.position == 0 and sampler.steps_per_epoch(4) == 3


def test_order_depends_on_seed_and_epoch_only():
    state = np.random.get_state()[1].tolist()
    orders = [epoch(Sampler([source(50)], seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == epoch(Sampler([source(50)], seed=0), count=3)
    assert np.random.get_state()[1].tolist() == state


def test_domains_are_filtered():
    sampler = Sampler([source(10), source(4, ("mri",))], domains=["ecg"])
    assert sorted(epoch(sampler)) == [(0, i) for i in range(1, 10, 2)]
    assert len(epoch(Sampler([source(10)], domains="ct"))) == 5


SKEWED = ["xray"] * 60 + ["ct"] * 25 + ["ecg"] * 4 + ["mri"]


def shares(drawn, *sources):
    return Counter(sources[s].domains[i] for s, i in drawn)


def test_balanced_domains_have_equal_parts_of_an_epoch_that_is_as_long_as_ever():
    mixed = Source(SKEWED)
    sampler = Sampler([mixed], seed=3, balanced=True)
    assert sampler.size() == 90 and sampler.steps_per_epoch(7) == 13
    seen = Counter()
    for _ in range(8):
        drawn = epoch(sampler)
        assert len(drawn) == 90
        parts = shares(drawn, mixed)
        assert set(parts) == set(SKEWED) and max(parts.values()) - min(parts.values()) <= 1
        seen.update(drawn)
    assert set(shares(seen.elements(), mixed).values()) == {8 * 90 // 4}
    for name in set(SKEWED):  # within a domain, every case as often as any other
        times = [seen[0, i] for i, domain in enumerate(SKEWED) if domain == name]
        assert max(times) - min(times) <= 1


def test_a_common_domain_is_spread_over_epochs_before_a_case_comes_again():
    sampler = Sampler([Source(SKEWED)], balanced=True)
    first = [pair for _ in range(2) for pair in epoch(sampler) if pair[1] < 60]
    assert len(first) == 45 == len(set(first))


def test_balanced_draws_are_shuffled_and_depend_on_seed_and_epoch_only():
    orders = [epoch(Sampler([Source(SKEWED)], seed=seed, balanced=True)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == epoch(Sampler([Source(SKEWED)], seed=0, balanced=True), count=3)
    sampler = Sampler([Source(SKEWED)], balanced=True)
    assert epoch(sampler) != epoch(sampler)
    assert len({SKEWED[i] for _, i in Sampler([Source(SKEWED)], balanced=True).draw(20)}) == 4


def test_weights_act_within_a_balanced_domain():
    first, second, third = Source(["ct"] * 8 + ["ecg"] * 2), Source(["ct"] * 4), Source(["mri"] * 5)
    sampler = Sampler([first, second, third], [1.0, 2.0, 0.0], balanced=True)
    assert sampler.size() == 18
    seen = Counter()
    for _ in range(16):  # 9 * 16 draws of ct: nine rounds of 8 + 2 * 4
        drawn = epoch(sampler)
        assert shares(drawn, first, second, third) == {"ct": 9, "ecg": 9}  # mri weighs nothing
        seen.update(drawn)
    assert [seen[0, i] for i in range(8)] == [9] * 8 and [seen[1, i] for i in range(4)] == [18] * 4


def test_balanced_domains_are_filtered():
    sampler = Sampler([Source(SKEWED)], domains=["ecg", "mri"], balanced=True)
    assert sampler.size() == 5
    drawn = epoch(sampler) + epoch(sampler)
    assert shares(drawn, Source(SKEWED)) == {"ecg": 5, "mri": 5}


def test_a_state_of_before_balancing_goes_on_unbalanced():
    sampler = Sampler([source(10)])
    sampler.draw(4)
    state = sampler.state_dict()
    del state["fingerprint"]["balanced"]
    resumed = Sampler([source(10)])
    resumed.load_state_dict(state)
    assert resumed.draw(6) == sampler.draw(6)
    with pytest.raises(RunError, match="balanced"):
        Sampler([source(10)], balanced=True).load_state_dict(state)


# ---------------------------------------------------------------- temperature, caps, epochs
def test_a_temperature_goes_from_sizes_to_equal_parts():
    mixed = Source(["xray"] * 64 + ["ct"] * 16 + ["ecg"] * 4 + ["mri"] * 1)  # 85; square roots 8, 4, 2, 1: 15
    seen = Counter()
    sampler = Sampler([mixed], seed=3, temperature=2.0)
    for _ in range(30):
        seen.update(epoch(sampler))
    parts = shares(seen.elements(), mixed)
    for name, root in (("xray", 8), ("ct", 4), ("ecg", 2), ("mri", 1)):  # by hand: 85 * root / 15 an epoch
        assert abs(parts[name] - 30 * 85 * root / 15) <= 1
        times = [seen[0, i] for i, domain in enumerate(mixed.domains) if domain == name]
        assert max(times) - min(times) <= 1
    assert abs(sampler.size() - 85) <= 4
    equal = shares(epoch(Sampler([mixed], temperature=float("inf"))), mixed)
    assert set(equal.values()) == {21}  # 85 / 4
    assert epoch(Sampler([mixed], temperature=1.0)) == epoch(Sampler([mixed]))


def test_domains_have_weights_and_caps():
    mixed = Source(["xray"] * 40 + ["ct"] * 10)
    drawn = epoch(Sampler([mixed], domain_weights={"ct": 2.0}))
    assert shares(drawn, mixed) == {"xray": 40, "ct": 20} and all(Counter(drawn)[0, i] == 2 for i in range(40, 50))
    sampler = Sampler([mixed], domain_caps={"xray": 16})
    epochs = [epoch(sampler) for _ in range(5)]
    assert all(shares(drawn, mixed) == {"xray": 16, "ct": 10} for drawn in epochs)
    assert set(Counter(pair for drawn in epochs for pair in drawn if pair[1] < 40).values()) == {2}  # 5 * 16 / 40


def test_a_data_set_has_a_cap_and_a_number_of_epochs():
    sampler = Sampler([source(10), source(6)], [1.0, 3.0], caps=[4, None], epochs=[None, 4])
    seen = [epoch(sampler) for _ in range(5)]
    assert [Counter(s for s, _ in drawn) for drawn in seen] == [{0: 4, 1: 18}, {0: 4, 1: 6}, {0: 4}, {0: 4}, {0: 4}]
    times = Counter(pair for drawn in seen for pair in drawn)
    assert all(times[0, i] == 2 for i in range(10)) and all(times[1, i] == 4 for i in range(6))
    assert [sampler.size(i) for i in range(3)] == [22, 10, 4]


def test_parts_of_domains_multiply_what_a_capped_data_set_brings():
    eyes, hearts = Source(["fundus"] * 90), Source(["ecg"] * 40)
    assert Sampler([eyes, hearts], caps=[None, 10]).beyond_caps == {}
    for parts in ({"balanced": True}, {"temperature": float("inf")}, {"domain_weights": {"ecg": 5.0}}):
        sampler = Sampler([eyes, hearts], caps=[None, 10], **parts)
        assert sampler.beyond_caps == {1: (50, 10)} and Counter(s for s, _ in epoch(sampler))[1] == 50
    assert Sampler([eyes, hearts], caps=[None, 10], temperature=2.0, domain_caps={"ecg": 10}).beyond_caps == {}


@pytest.mark.parametrize("more", [{}, {"balanced": True}, {"temperature": 3.0}])
def test_when_all_epochs_have_been_had_nothing_is_drawn(more):
    sampler = Sampler([Source(SKEWED)], epochs=[1.5], **more)
    seen = Counter(epoch(sampler))
    with pytest.raises(DataError, match="had all its epochs"):
        for _ in range(200):
            seen.update(sampler.draw(50))
    assert max(seen.values()) <= 2 and sum(sampler.size(i) for i in range(500)) == seen.total() <= 135
    if not more:
        assert seen.total() == 135  # 1.5 times 90


def test_epochs_without_a_case_are_passed_over():
    sampler = Sampler([source(6), source(1)], [1.0, 0.25], epochs=[1, 2])
    assert [sampler.size(i) for i in range(9)] == [6, 0, 0, 1, 0, 0, 0, 1, 0]
    drawn = []
    while not sampler.exhausted:
        drawn.append((sampler.epoch, sampler.draw(4)))
    assert [(at, len(pairs)) for at, pairs in drawn] == [(0, 4), (0, 2), (1, 1), (4, 1)]
    assert [pairs for _, pairs in drawn[2:]] == [[(1, 0)]] * 2 and sampler.over(8) and not sampler.over(7)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"domains": ["ecgs"]}, "did you mean 'ecg'"),
        ({"weights": [0.0]}, "no case is left"),
        ({"weights": [-1.0]}, "out of range"),
        ({"weights": [float("nan")]}, "out of range"),
        ({"weights": [1.0, 2.0]}, "2 weights for 1 data sets"),
        ({"caps": [0]}, "caps hold one out of range"),
        ({"epochs": [1, 2]}, "2 limits of epochs for 1"),
        ({"temperature": 0.0}, "temperature is out of range"),
        ({"temperature": 2.0, "balanced": True}, "given otherwise"),
        ({"domain_weights": {"ecgs": 1.0}}, "did you mean 'ecg'"),
        ({"domain_caps": {"ecg": -1}}, "cap is out of range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, said):
    with pytest.raises(DataError, match=said):
        Sampler([source(10)], **arguments)


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    weight=st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.0]),
    seed=st.integers(0, 2**40),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    stop=st.integers(0, 11),
    parts=st.sampled_from([
        {}, {"balanced": True}, {"temperature": 2.0}, {"domain_weights": {"ct": 1.5}}, {"domain_caps": {"ct": 2}},
        {"caps": [3]}, {"epochs": [7]}, {"temperature": 5.0, "epochs": [9.5]},
    ]),
)  # fmt: skip
def test_a_resumed_sampler_goes_on_where_it_stopped(sizes, weight, seed, counts, stop, parts):
    def fresh():
        weights = [weight, *[1.0] * (len(sizes) - 1)]
        rest = [None] * (len(sizes) - 1)
        own = {name: value + rest if isinstance(value, list) else value for name, value in parts.items()}
        return Sampler([source(size) for size in sizes], weights, seed, **own)

    if sizes == [size for size in sizes if size * weight < 1][:1]:
        return  # an epoch without cases
    if "domain_weights" in parts and weight < 1 and max(sizes) * weight < 2:
        return
    if "epochs" in parts:
        counts, stop = counts[:2], min(stop, 1)  # no more than there is
    whole = fresh()
    expected = [whole.draw(count) for count in counts]
    part = fresh()
    drawn = [part.draw(count) for count in counts[:stop]]
    resumed = fresh()
    resumed.load_state_dict(part.state_dict())
    assert drawn + [resumed.draw(count) for count in counts[stop:]] == expected
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "seed"),
        ({"weights": [2.0]}, "weights"),
        ({"domains": ["ct"]}, "domains"),
        ({"balanced": True}, "balanced"),
        ({"temperature": 2.0}, "temperature"),
        ({"caps": [4]}, "caps"),
        ({"epochs": [4]}, "epochs"),
        ({"datasets": [source(11)]}, "sizes"),
        ({"datasets": [Source(source(10).domains, "other")]}, "contents"),
    ],
)
def test_a_state_of_other_data_is_refused(changed, said):
    state = Sampler([source(10)]).state_dict()
    with pytest.raises(RunError, match=said):
        Sampler(**{"datasets": [source(10)], **changed}).load_state_dict(state)
