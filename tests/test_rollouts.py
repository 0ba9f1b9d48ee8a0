"""The engine `torch` against a naive sampler over transformers' own forward, and its parts by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny_policy as tiny
import torch
from torch import Tensor

from qoqmed.contracts import PolicyHandle, Rollouts
from qoqmed.packing import Prompt, pack
from qoqmed.policy.attention import Decode
from qoqmed.policy.handle import LivePolicy
from qoqmed.policy.loading import Loaded
from qoqmed.policy.policy import ClinicalPolicy, Prefix
from qoqmed.rollouts.torch import TorchRollouts, grid, restrict, sample, streams
from qoqmed.types import Case, Group, Rollout, Sampling

SEEDS = (11, 22, 33, 44)


class Hasty(LivePolicy):
    """Adds to the stop token's logit, so that responses end early, and counts how the cache shrinks."""

    def __init__(self, policy: ClinicalPolicy, tokenizer: Any, bonus: float) -> None:
        super().__init__(policy, tokenizer)
        self.bonus = bonus
        self.sizes: list[int] = []  # rows of the grid, after each change

    def logits(self, hidden: Tensor) -> Tensor:
        return hasten(super().logits(hidden), self)

    def decoder(self, prefix: Prefix, n: int, capacity: int) -> Decode:
        cache = super().decoder(prefix, n, capacity)
        self.sizes.append(len(cache.keys[0]))
        keep = cache.keep

        def counted(prompts: Tensor, rows: Tensor, n: int) -> None:
            keep(prompts, rows, n)
            self.sizes.append(len(cache.keys[0]))

        cache.keep = counted  # type: ignore[method-assign]
        return cache


def hasten(logits: Tensor, handle: LivePolicy) -> Tensor:
    (stop,) = handle.stop_token_ids
    bonus = torch.zeros(logits.shape[-1])
    bonus[stop] = getattr(handle, "bonus", 0.0)
    return logits + bonus


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    loaded = tiny.load(tiny.SHARP)
    loaded.policy.eval()
    return loaded


@pytest.fixture(scope="module")
def plain(loaded: Loaded) -> ClinicalPolicy:
    return tiny.plain_copy(loaded.policy)


@pytest.fixture(scope="module")
def handle(loaded: Loaded) -> LivePolicy:
    return LivePolicy(loaded.policy, loaded.tokenizer)


@pytest.fixture(scope="module")
def prompts(loaded: Loaded) -> list[Prompt]:
    """Text, a picture, an ECG, and both; of unlike lengths."""
    encode = tiny.prompter(loaded)
    cases = [
        tiny.case("text", text="Say something, please."),
        tiny.case("image", tiny.picture(1)),
        tiny.case("ecg", tiny.ecg(1), text="Which rhythm does this ECG show? Reason."),
        tiny.case("mixed", tiny.picture(2, 56, 84), tiny.ecg(2)),
    ]
    return [encode(case) for case in cases]


def engine(handle: PolicyHandle, batch: int = 512) -> TorchRollouts:
    made = TorchRollouts(batch)
    made.start(handle)
    return made


def tokens(out: Sequence[Sequence[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in group] for group in out]


def naive(
    plain: ClinicalPolicy, handle: LivePolicy, prompt: Prompt, uniform: Tensor, sampling: Sampling
) -> tuple[list[int], list[float]]:
    """One response alone, the whole sequence anew for every token; by inversion of the softmax's cumulative sum."""
    (stop,) = handle.stop_token_ids
    ids: list[int] = []
    log_probs: list[float] = []
    while len(ids) < sampling.max_new_tokens and stop not in ids:
        with torch.no_grad():
            last = tiny.plain_logits_by_hand(plain, prompt, [*ids, 0])[-1]
        logits = hasten(last, handle) / (sampling.temperature or 1.0)
        log_p = logits.log_softmax(-1)
        if sampling.temperature == 0:
            drawn = int(logits.argmax())
        else:
            above = log_p.double().exp().cumsum(0) > uniform[len(ids)]
            drawn = int(above.nonzero()[0])
        ids.append(drawn)
        log_probs.append(float(log_p[drawn]))
    return ids, log_probs


def test_the_engine_keeps_the_contract(handle: LivePolicy) -> None:
    policy: PolicyHandle = handle
    made: Rollouts = TorchRollouts()
    made.start(policy)
    made.sync([])
    assert made.generate([], Sampling(), []) == []
    made.close()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollouts_equal_a_naive_sampler_where_many_end_early(
    temperature: float, loaded: Loaded, plain: ClinicalPolicy, prompts: list[Prompt]
) -> None:
    """Tokens and log-probs, while finished rows are dropped from the cache again and again."""
    handle = Hasty(loaded.policy, loaded.tokenizer, bonus=3.2 * temperature)
    sampling = Sampling(n=6, temperature=temperature, max_new_tokens=18)
    out = engine(handle).generate(prompts, sampling, SEEDS)
    lengths = sorted(len(rollout.token_ids) for group in out for rollout in group)
    assert lengths[0] == 1 and lengths[-1] == 18 and len(set(lengths)) >= 6
    assert len(handle.sizes) >= 3  # the cache shrank twice
    uniform = streams(SEEDS, 6, 18).view(4, 6, 18)
    for p, prompt in enumerate(prompts):
        for i, rollout in enumerate(out[p]):
            ids, log_probs = naive(plain, handle, prompt, uniform[p, i], sampling)
            assert list(rollout.token_ids) == ids
            torch.testing.assert_close(torch.tensor(rollout.log_probs), torch.tensor(log_probs), rtol=0, atol=2e-5)


def test_the_cache_is_copied_only_to_shrink(loaded: Loaded, prompts: list[Prompt]) -> None:
    """One group that goes on whole keeps the grid as wide as it was: nothing is won by copying it every step."""
    handle = Hasty(loaded.policy, loaded.tokenizer, bonus=3.5)
    engine(handle).generate(prompts, Sampling(n=6, max_new_tokens=24), SEEDS)
    assert len(handle.sizes) >= 3
    for before, after in zip(handle.sizes, handle.sizes[1:], strict=False):
        assert after <= 0.75 * before


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_log_probs_are_those_of_the_packed_forward(
    temperature: float, handle: LivePolicy, prompts: list[Prompt]
) -> None:
    out = engine(handle).generate(prompts, Sampling(n=3, temperature=temperature, max_new_tokens=24), SEEDS)
    groups = [Group(fake_case(prompt), prompt, tuple(group)) for prompt, group in zip(prompts, out, strict=True)]
    (item,) = pack(groups, 10**6)
    with torch.no_grad():
        expected = handle.policy(item, temperature).log_probs
    found = torch.tensor([value for group in out for rollout in group for value in rollout.log_probs])
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def fake_case(prompt: Prompt) -> Case:
    return tiny.case(prompt.case_id)


def test_greedy_takes_the_largest_logit_step_by_step(
    handle: LivePolicy, plain: ClinicalPolicy, prompts: list[Prompt]
) -> None:
    """Its log-probs are those at temperature 1."""
    sampling = Sampling(n=1, temperature=0.0, max_new_tokens=10)
    out = engine(handle).generate(prompts, sampling, SEEDS)
    for prompt, (rollout,) in zip(prompts, out, strict=True):
        ids, log_probs = naive(plain, handle, prompt, torch.zeros(10), sampling)
        assert list(rollout.token_ids) == ids
        assert rollout.log_probs == pytest.approx(log_probs, abs=2e-5)


def test_greedy_equals_transformers_own_argmax_with_a_picture(
    handle: LivePolicy, plain: ClinicalPolicy, prompts: list[Prompt]
) -> None:
    ((rollout,),) = engine(handle).generate(prompts[1:2], Sampling(1, 0.0, max_new_tokens=10), SEEDS[1:2])
    with torch.no_grad():
        logits = tiny.plain_logits(plain, prompts[1], rollout.token_ids)
    assert list(rollout.token_ids) == logits.argmax(-1).tolist()


def test_top_k_of_one_is_greedy(handle: LivePolicy, prompts: list[Prompt]) -> None:
    made = engine(handle)
    narrow = made.generate(prompts, Sampling(n=2, top_k=1, max_new_tokens=12), SEEDS)
    greedy = made.generate(prompts, Sampling(n=1, temperature=0.0, max_new_tokens=12), SEEDS)
    for pair, (best,) in zip(narrow, greedy, strict=True):
        assert [rollout.token_ids for rollout in pair] == [best.token_ids] * 2
        assert set(pair[0].log_probs) == {0.0}  # nothing else could be drawn


def test_truncated_sampling_reports_the_truncated_distribution(handle: LivePolicy, prompts: list[Prompt]) -> None:
    """Whole probability over truncated probability is the mass that was kept: at least top_p."""
    out = engine(handle).generate(prompts, Sampling(n=4, top_p=0.6, max_new_tokens=12), SEEDS)
    groups = [Group(fake_case(prompt), prompt, tuple(group)) for prompt, group in zip(prompts, out, strict=True)]
    (item,) = pack(groups, 10**6)
    with torch.no_grad():
        whole = handle.policy(item).log_probs
    mass = (whole - torch.tensor([value for g in out for rollout in g for value in rollout.log_probs])).exp()
    assert mass.min() >= 0.6 - 1e-5 and mass.max() <= 1 + 1e-5
    assert mass.min() < 0.95


# ---- a response does not depend on its batch


@pytest.fixture(scope="module")
def together(handle: LivePolicy, prompts: list[Prompt]) -> list[list[tuple[int, ...]]]:
    return tokens(engine(handle).generate(prompts, Sampling(n=3, max_new_tokens=20), SEEDS))


def test_alone_as_in_a_batch(handle: LivePolicy, prompts: list[Prompt], together: list[list[tuple[int, ...]]]) -> None:
    for prompt, seed, expected in zip(prompts, SEEDS, together, strict=True):
        assert tokens(engine(handle).generate([prompt], Sampling(n=3, max_new_tokens=20), [seed])) == [expected]


def test_in_another_order(handle: LivePolicy, prompts: list[Prompt], together: list[list[tuple[int, ...]]]) -> None:
    out = engine(handle).generate(prompts[::-1], Sampling(n=3, max_new_tokens=20), SEEDS[::-1])
    assert tokens(out) == together[::-1]


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_under_a_batch_limit(
    batch: int, handle: LivePolicy, prompts: list[Prompt], together: list[list[tuple[int, ...]]]
) -> None:
    """1: fewer than a group, which still runs whole."""
    assert tokens(engine(handle, batch).generate(prompts, Sampling(n=3, max_new_tokens=20), SEEDS)) == together


def test_in_a_larger_group(handle: LivePolicy, prompts: list[Prompt], together: list[list[tuple[int, ...]]]) -> None:
    out = tokens(engine(handle).generate(prompts, Sampling(n=5, max_new_tokens=20), SEEDS))
    assert [group[:3] for group in out] == together


def test_seeds_decide(handle: LivePolicy, prompts: list[Prompt], together: list[list[tuple[int, ...]]]) -> None:
    """The same ones give the same rollouts whatever torch's own stream; another one changes its own group only."""
    torch.manual_seed(123)
    again = engine(handle).generate(prompts, Sampling(n=3, max_new_tokens=20), SEEDS)
    assert tokens(again) == together
    assert [rollout.seed for group in again for rollout in group] == [seed for seed in SEEDS for _ in range(3)]
    other = tokens(engine(handle).generate(prompts, Sampling(n=3, max_new_tokens=20), (11, 99, 33, 44)))
    assert [mine == theirs for mine, theirs in zip(other, together, strict=True)] == [True, False, True, True]
    assert all(len(set(group)) == 3 for group in together)  # the rollouts of a group differ


# ---- what may be sampled, and how responses end


@pytest.fixture(scope="module")
def blunt() -> Loaded:
    """Nearly uniform: every id that is not banned comes up."""
    loaded = tiny.load()
    loaded.policy.eval()
    return loaded


def test_banned_ids_are_never_sampled(blunt: Loaded) -> None:
    handle = LivePolicy(blunt.policy, blunt.tokenizer)
    prompt = tiny.prompter(blunt)(tiny.case("image", tiny.picture(1)))
    (group,) = engine(handle).generate([prompt], Sampling(n=200, max_new_tokens=10), [5])
    drawn = {token for rollout in group for token in rollout.token_ids}
    vocabulary = len(blunt.policy.banned)
    assert len(handle.banned_token_ids) >= 10 and len(blunt.tokenizer) < vocabulary
    assert handle.banned_token_ids >= set(range(len(blunt.tokenizer), vocabulary))
    assert {blunt.tokenizer.decode([token]) for token in handle.banned_token_ids} >= {
        "<|image_pad|>",
        "<|ecg_pad|>",
        "<|im_start|>",
    }
    assert not drawn & handle.banned_token_ids
    assert len(drawn) > 0.9 * (vocabulary - len(handle.banned_token_ids))


def test_a_stop_token_ends_a_response(loaded: Loaded, prompts: list[Prompt]) -> None:
    handle = Hasty(loaded.policy, loaded.tokenizer, bonus=3.5)
    (stop,) = handle.stop_token_ids
    out = engine(handle).generate(prompts, Sampling(n=6, max_new_tokens=8), SEEDS)
    reasons = set()
    for group, prompt in zip(out, prompts, strict=True):
        for i, rollout in enumerate(group):
            reasons.add(rollout.finish_reason)
            assert (rollout.case_id, rollout.index) == (prompt.case_id, i)
            assert len(rollout.token_ids) == len(rollout.log_probs)
            assert stop not in rollout.token_ids[:-1]
            assert (rollout.token_ids[-1] == stop) == (rollout.finish_reason == "stop")
            assert rollout.finish_reason == "stop" or len(rollout.token_ids) == 8
            assert rollout.text == loaded.tokenizer.decode([token for token in rollout.token_ids if token != stop])
    assert reasons == {"stop", "length"}


def test_a_stop_token_in_the_last_place_is_a_stop(loaded: Loaded, prompts: list[Prompt]) -> None:
    certain = Hasty(loaded.policy, loaded.tokenizer, bonus=1e4)
    ((rollout,), *_) = engine(certain).generate(prompts, Sampling(n=1, max_new_tokens=1), SEEDS)
    assert rollout.token_ids == tuple(certain.stop_token_ids)
    assert (rollout.finish_reason, rollout.text, rollout.log_probs) == ("stop", "", (0.0,))


# ---- the parts by hand


def test_streams_depend_on_seed_and_number_only() -> None:
    both = streams([5, 7], 3, 40)
    assert both.shape == (6, 40) and both.dtype == torch.float64
    assert torch.equal(both[3:], streams([7], 3, 40))
    assert torch.equal(both[3:4], streams([7], 1, 40))
    assert len({tuple(row.tolist()) for row in both}) == 6


def test_streams_are_uniform() -> None:
    """20,000 numbers of 200 streams in ten bins: chi-square of 9 degrees, below 30 in 99.96 % of cases. So are the
    first numbers alone, whose seeds are neighbours."""
    numbers = streams(list(range(20)), 10, 100)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert chi_square(torch.histc(numbers, 10, 0, 1), torch.full((10,), 2000.0)) < 30
    assert chi_square(torch.histc(streams(list(range(1000)), 2, 1), 10, 0, 1), torch.full((10,), 200.0)) < 30


def chi_square(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).square() / expected).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_frequencies_are_the_softmax(temperature: float) -> None:
    """20,000 draws of 7 tokens, one of them banned: chi-square of 5 degrees, below 25 in 99.99 % of cases."""
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0, 0.5, 0.2])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn, log_probs = sample(logits.expand(20_000, 7), uniform, Sampling(temperature=temperature))
    expected = (logits / temperature).softmax(0)
    counts = drawn.bincount(minlength=7).float()
    allowed = expected > 0
    assert counts[2] == 0
    assert chi_square(counts[allowed], 20_000 * expected[allowed]) < 25
    torch.testing.assert_close(log_probs, expected.log()[drawn])


def test_sampling_by_inversion_by_hand() -> None:
    """Probabilities 0, 1/4, 1/2, 1/4, 0 (banned at both ends): the ends of [0, 1) too give tokens that may be drawn."""
    logits = torch.tensor([-torch.inf, 0.0, math.log(2), 0.0, -torch.inf]).expand(7, 5)
    nearly_one = 1 - 2**-53
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 0.999999999, nearly_one], dtype=torch.float64)
    drawn, log_probs = sample(logits, uniform, Sampling())
    assert drawn.tolist() == [1, 1, 2, 2, 3, 3, 3]
    assert log_probs.exp().tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.25, 0.25, 0.25])


def test_temperature_zero_by_hand() -> None:
    drawn, log_probs = sample(torch.tensor([[0.0, math.log(3)]]), torch.zeros(1), Sampling(temperature=0.0))
    assert (drawn.item(), log_probs.item()) == (1, pytest.approx(math.log(0.75)))


@pytest.mark.parametrize(
    ("top_p", "top_k", "expected"),
    [
        (1.0, 0, [0.3, 0.05, 0.5, 0.15]),
        (1.0, 2, [0.375, 0, 0.625, 0]),
        (0.6, 0, [0.375, 0, 0.625, 0]),  # the token that crosses 0.6 stays
        (0.81, 0, [0.3 / 0.95, 0, 0.5 / 0.95, 0.15 / 0.95]),
        (0.45, 0, [0, 0, 1, 0]),
        (0.6, 2, [0, 0, 1, 0]),  # top-k first: 0.5 of 0.8 is 0.625 already
        (1.0, 9, [0.3, 0.05, 0.5, 0.15]),
        (1e-9, 0, [0, 0, 1, 0]),
    ],
)
def test_restrict_by_hand(top_p: float, top_k: int, expected: list[float]) -> None:
    log_probs = torch.tensor([[0.3, 0.05, 0.5, 0.15], [0.25, 0.25, 0.25, 0.25]]).log()
    assert restrict(log_probs, top_p, top_k)[0].exp().tolist() == pytest.approx(expected)


def test_restrict_never_brings_banned_tokens_back() -> None:
    log_probs = torch.tensor([[0.5, 0.0, 0.5]]).log()
    assert restrict(log_probs, 1.0, 3)[0].exp().tolist() == pytest.approx([0.5, 0.0, 0.5])


@pytest.mark.parametrize(
    ("alive", "prompts", "rows", "n"),
    [
        ([[1, 1], [1, 1]], [0, 1], [0, 1, 2, 3], 2),
        ([[0, 1], [1, 0]], [0, 1], [1, 2], 1),
        ([[0, 0, 0], [0, 1, 0]], [1], [4], 1),
        ([[0, 1, 1], [0, 0, 0], [0, 0, 1]], [0, 2], [1, 2, 8, 6], 2),  # prompt 2 is filled up with row 6
    ],
)
def test_grid_by_hand(alive: list[list[int]], prompts: list[int], rows: list[int], n: int) -> None:
    found = grid(torch.tensor(alive, dtype=torch.bool))
    assert (found[0].tolist(), found[1].tolist(), found[2]) == (prompts, rows, n)


def test_two_cases_of_one_question_draw_from_their_own_streams(handle: LivePolicy, prompts: list[Prompt]) -> None:

    twice = [prompts[0], replace(prompts[0], case_id="again")]
    one, other = engine(handle).generate(twice, Sampling(n=2, max_new_tokens=12), [1, 2])
    assert {rollout.case_id for rollout in other} == {"again"}
    assert tokens([one]) != tokens([other])
