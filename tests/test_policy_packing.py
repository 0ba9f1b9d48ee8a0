"""Packed log-probs and gradients against each response alone under transformers' own forward; and what must differ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny_policy as tiny
import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from qoqmed.errors import UserError
from qoqmed.module import ClinicalPolicyModule, Scores, Totals
from qoqmed.objectives.policy_gradient import PolicyGradient
from qoqmed.packing import Layout, Pack, Prompt, lay_out, pack
from qoqmed.policy.loading import Loaded
from qoqmed.policy.policy import ClinicalPolicy
from qoqmed.policy.qwen2_5_vl import ClinicalQwen2_5_VL
from qoqmed.types import Group, Medium

PARTS = ("language_model", "vision", "encoders", "projectors")
ROW, ROWS = 100_000, 60  # tokens_per_pack: everything in one row; no group in one row
Logits = Callable[[ClinicalPolicy, Prompt, Sequence[int]], Tensor]

CASES: Mapping[str, tuple[Medium, ...]] = {
    "text": (),
    "image": (tiny.picture(1, 84, 84),),
    "images": (tiny.picture(2, 56, 112), tiny.picture(3, 84, 56), tiny.picture(4, 28, 84)),
    "ecg": (tiny.ecg(1),),
    "mixed": (tiny.picture(5, 84, 56), tiny.ecg(2), tiny.picture(6, 56, 56), tiny.ecg(3)),
}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    loaded = tiny.load(tiny.SHARP)
    loaded.policy.train()
    return loaded


@pytest.fixture(scope="module")
def policy(loaded: Loaded) -> ClinicalPolicy:
    return loaded.policy


@pytest.fixture(scope="module")
def plain(policy: ClinicalPolicy) -> ClinicalPolicy:
    return tiny.plain_copy(policy)


@pytest.fixture(scope="module")
def groups(loaded: Loaded) -> dict[str, Group]:
    encode = tiny.prompter(loaded)
    made = {}
    for seed, (name, media) in enumerate(CASES.items()):
        case = tiny.case(name, *media, text="What is on this? " * (1 + seed % 3))
        made[name] = tiny.group(case, encode(case), (17, 1, 9, 16), seed)
    return made


Gradients = dict[str, dict[str, Tensor]]  # by part and parameter


def gradients(policy: ClinicalPolicy) -> Gradients:
    """Taken off the policy, by part."""
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    out: Gradients = {part: {} for part in PARTS}
    for part in PARTS:
        for parameter in policy.part(part):
            if parameter.grad is not None:
                out[part][names[id(parameter)]] = parameter.grad
    policy.zero_grad()
    return out


def weights_of(groups: Sequence[Group]) -> dict[tuple[int, int], Tensor]:
    """What each token's log-prob counts in the objective, both signs."""
    generator = torch.Generator().manual_seed(7)
    return {
        (g, i): torch.randn(len(rollout.token_ids), generator=generator, dtype=torch.float64)
        for g, group in enumerate(groups)
        for i, rollout in enumerate(group.rollouts)
    }


def packed(policy: ClinicalPolicy, groups: Sequence[Group], budget: int = ROW) -> tuple[dict, Gradients]:
    """Log-probs by (group, rollout), and gradients of their weighted sum."""
    weights, log_probs = weights_of(groups), {}
    for item in pack(groups, budget):
        out = policy(item).log_probs
        for member, part in zip(item.members, out.split(item.lengths.tolist()), strict=True):
            log_probs[member] = part.detach()
        (out * torch.cat([weights[member] for member in item.members])).sum().backward()
    return log_probs, gradients(policy)


def alone(plain: ClinicalPolicy, groups: Sequence[Group], logits: Logits) -> tuple[dict, Gradients]:
    """The same, one response at a time."""
    weights, log_probs = weights_of(groups), {}
    for (g, i), weight in weights.items():
        response = groups[g].rollouts[i].token_ids
        values = tiny.chosen_log_probs(logits(plain, groups[g].prompt, response), response)
        log_probs[g, i] = values.detach()
        (values * weight).sum().backward()
    return log_probs, gradients(plain)


def deviation(one: Mapping[tuple[int, int], Tensor], other: Mapping[tuple[int, int], Tensor]) -> float:
    """Largest difference of a log-prob, nats."""
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def norm(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.double().square().sum() for tensor in tensors)) ** 0.5


def gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of `other`."""
    return norm(one[name] - other[name] for name in other) / norm(other.values()) if other else 0.0


def assert_same(one: tuple[dict, Gradients], other: tuple[dict, Gradients], tolerance: float) -> None:
    """Relative to the largest log-prob, and to the norm of each part's gradient."""
    assert deviation(one[0], other[0]) <= tolerance * max(float(value.abs().max()) for value in other[0].values())
    for part in PARTS:
        mine, theirs = one[1][part], other[1][part]
        assert mine.keys() == theirs.keys(), part
        assert gap(mine, theirs) <= tolerance, part


def logits_for(name: str) -> Logits:
    return tiny.plain_logits_by_hand if name in ("ecg", "mixed") else tiny.plain_logits


@pytest.mark.parametrize("name", list(CASES))
def test_packed_equals_each_response_alone(
    name: str, policy: ClinicalPolicy, plain: ClinicalPolicy, groups: dict[str, Group]
) -> None:
    expected = alone(plain, [groups[name]], logits_for(name))
    one, several = pack([groups[name]], ROW), pack([groups[name]], ROWS)
    assert len(one) == 1 < len(several)
    assert min(float(value.min()) for value in expected[0].values()) < -8  # the weights are sharp
    assert norm(expected[1]["language_model"].values()) > 1
    assert_same(packed(policy, [groups[name]]), expected, 1e-5)
    assert_same(packed(policy, [groups[name]], ROWS), expected, 1e-5)


@pytest.mark.parametrize(("budget", "rows"), [(ROW, 1), (300, 2), (1, 20)])
def test_packed_equals_alone_for_all_kinds_of_cases_together(
    budget: int, rows: int, policy: ClinicalPolicy, plain: ClinicalPolicy, groups: dict[str, Group]
) -> None:
    """One row for all; rows of several groups; a row for each response."""
    every = list(groups.values())
    expected = alone(plain, every, tiny.plain_logits_by_hand)
    assert len(pack(every, budget)) == rows
    assert all(expected[1][part] for part in PARTS)
    assert_same(packed(policy, every, budget), expected, 1e-5)


def test_packed_equals_alone_to_rounding_in_float64(
    policy: ClinicalPolicy, groups: dict[str, Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With transformers' own steps in float32 (norms, vision's rotary positions) made in float64 too."""
    monkeypatch.setattr(modeling_qwen2_5_vl.Qwen2_5_VLRMSNorm, "forward", precise_norm)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    every = [doubled(group) for group in groups.values()]
    double = copy.deepcopy(policy).double()
    expected = alone(tiny.plain_copy(policy, torch.float64), every, tiny.plain_logits_by_hand)
    assert_same(packed(double, every), expected, 1e-12)
    assert_same(packed(double, every, 300), expected, 1e-12)


def precise_norm(self: Any, hidden_states: Tensor) -> Tensor:
    return nn.functional.rms_norm(hidden_states, hidden_states.shape[-1:], self.weight, self.variance_epsilon)


def doubled(group: Group) -> Group:
    prompt = group.prompt
    return replace(
        group, prompt=replace(prompt, series={name: series.double() for name, series in prompt.series.items()})
    )


def test_the_oracle_by_hand_is_transformers_own_forward(plain: ClinicalPolicy, groups: dict[str, Group]) -> None:
    for name in ("text", "image", "images"):
        one = alone(plain, [groups[name]], tiny.plain_logits)
        assert_same(one, alone(plain, [groups[name]], tiny.plain_logits_by_hand), 1e-6)


def test_gradient_checkpointing_changes_nothing(policy: ClinicalPolicy, groups: dict[str, Group]) -> None:
    every = list(groups.values())
    saving = copy.deepcopy(policy)
    saving.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    calls = []
    for block in saving.model.language_part.layers:  # type: ignore[union-attr]
        block.self_attn.register_forward_hook(lambda *_: calls.append(1))
    result = packed(saving, every)
    assert len(calls) == 2 * 2  # two layers, once forward and once more in the backward
    assert_same(result, packed(policy, every), 1e-7)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_temperature_and_entropies(
    temperature: float, policy: ClinicalPolicy, plain: ClinicalPolicy, groups: dict[str, Group]
) -> None:
    group = groups["mixed"]
    (item,) = pack([group], ROW)
    with torch.no_grad():
        out = policy(item, temperature, entropy=True)
        for i, rollout in enumerate(group.rollouts):
            logits = tiny.plain_logits_by_hand(plain, group.prompt, rollout.token_ids)[:, ~plain.banned] / temperature
            log_p = logits.log_softmax(-1)
            assert out.entropies is not None
            torch.testing.assert_close(out.entropies[item.response == i], -(log_p.exp() * log_p).sum(-1))
            full = tiny.plain_logits_by_hand(plain, group.prompt, rollout.token_ids)
            expected = tiny.chosen_log_probs(full, rollout.token_ids, temperature)
            torch.testing.assert_close(out.log_probs[item.response == i], expected)


# ---- controls: each of these mistakes must show


def controlled(policy: ClinicalPolicy, group: Group, change: Callable[[Pack, Prompt], Pack]) -> float:
    """How far log-probs move, nats, when the pack is changed."""
    (item,) = pack([group], ROW)
    with torch.no_grad():
        return float((policy(item).log_probs - policy(change(item, group.prompt)).log_probs).abs().max())


def positions_from_prompt_length(item: Pack, prompt: Prompt) -> Pack:
    """A response begins at P, as if a picture took a position per token."""
    shift = len(prompt.token_ids) - prompt.start
    assert shift > 0
    positions = item.positions.clone()
    positions[:, len(prompt.token_ids) :] += shift
    return replace(item, positions=positions)


def positions_running_on(item: Pack, prompt: Prompt) -> Pack:
    """A response goes on where the one before it ended."""
    first = len(prompt.token_ids)
    running = prompt.start + torch.arange(len(item.token_ids) - first)
    return replace(item, positions=torch.cat([item.positions[:, :first], running.expand(3, -1)], 1))


def plainly_causal(item: Pack, prompt: Prompt) -> Pack:
    """All responses as one: each sees those before it."""
    layout: Layout = lay_out([len(prompt.token_ids)], [[int(item.lengths.sum())]])
    return replace(item, layout=layout)


def sequential_positions(item: Pack, prompt: Prompt) -> Pack:
    """As transformers gives them for pixel_values without mm_token_type_ids: the picture's tokens count as text."""
    positions = item.positions.clone()
    first = len(prompt.token_ids)
    positions[:, :first] = torch.arange(first)
    positions[:, first:] += first - prompt.start
    return replace(item, positions=positions)


CONTROLS = [positions_from_prompt_length, positions_running_on, plainly_causal, sequential_positions]


@pytest.mark.parametrize("change", CONTROLS)
def test_control(change: Callable[[Pack, Prompt], Pack], policy: ClinicalPolicy, groups: dict[str, Group]) -> None:
    assert controlled(policy, groups["image"], change) > 0.1
    assert controlled(policy, groups["image"], lambda item, _: replace(item)) == 0


def test_control_pixel_values_without_token_types_under_transformers(
    policy: ClinicalPolicy, plain: ClinicalPolicy, groups: dict[str, Group]
) -> None:
    """The mistake made in the plain forward, which raises no error, is the packed one with sequential positions."""
    group = groups["image"]
    prompt = group.prompt
    (item,) = pack([group], ROW)
    with torch.no_grad():
        right, wrong = policy(item).log_probs, policy(sequential_positions(item, prompt)).log_probs
        for i, rollout in enumerate(group.rollouts):
            response = torch.tensor(rollout.token_ids)
            plain.model.model.rope_deltas = None  # type: ignore[union-attr]
            logits = plain.model(
                input_ids=torch.cat([prompt.token_ids, response])[None],
                pixel_values=prompt.pixel_values,
                image_grid_thw=prompt.grids,
                use_cache=False,
            ).logits[0, len(prompt.token_ids) - 1 : -1]
            log_probs = tiny.chosen_log_probs(logits.masked_fill(plain.banned, -torch.inf), rollout.token_ids)
            torch.testing.assert_close(log_probs, wrong[item.response == i], rtol=1e-5, atol=1e-4)
            if len(response) > 5:
                assert (log_probs - right[item.response == i]).abs().max() > 0.1


# ---- media placeholders in responses


def test_a_placeholder_in_a_response_gets_no_features(loaded: Loaded, groups: dict[str, Group]) -> None:
    """With nothing banned; the oracle embeds a response's placeholders as any other token."""
    policy, group = copy.deepcopy(loaded.policy), groups["mixed"]
    policy.banned.zero_()
    ids = [int(loaded.tokenizer.convert_tokens_to_ids(token)) for token in ("<|image_pad|>", "<|ecg_pad|>")]
    rollouts = tuple(
        replace(rollout, token_ids=(*rollout.token_ids, *ids, 30, *ids, 31)) for rollout in group.rollouts[:2]
    )
    hostile = replace(group, rollouts=rollouts, trainable=(True, True))
    plain = tiny.plain_copy(policy)
    assert_same(packed(policy, [hostile]), alone(plain, [hostile], tiny.plain_logits_by_hand), 1e-5)


def test_a_placeholder_as_a_target_is_refused(loaded: Loaded, groups: dict[str, Group]) -> None:
    """Where a banned token was sampled all the same, engine and trainer disagree: better to stop."""
    banned = int(loaded.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    group = groups["image"]
    hostile = replace(group, rollouts=(replace(group.rollouts[0], token_ids=(20, banned)),), trainable=(True,))
    (item,) = pack([hostile], ROW)
    with pytest.raises(ValueError, match=f"token {banned} at position 1"):
        loaded.policy(item)


def test_eager_attention_gives_the_same_log_probs(policy: ClinicalPolicy, groups: dict[str, Group]) -> None:
    every = list(groups.values())
    (item,) = pack(every, 10_000)
    eager = copy.deepcopy(policy)
    eager.attention = "eager"
    with torch.no_grad():
        torch.testing.assert_close(eager(item).log_probs, policy(item).log_probs, rtol=0, atol=1e-5)


# ---- what is refused, what does not count


def test_sliding_window_attention_is_refused(policy: ClinicalPolicy) -> None:
    text = policy.model.config.text_config.to_dict()  # type: ignore[union-attr]
    del text["layer_types"]
    text |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    config = ClinicalQwen2_5_VL.config_class(text_config=text)
    assert config.text_config.layer_types == ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="sliding-window") as caught:
        ClinicalQwen2_5_VL(config)
    assert "use_sliding_window" in caught.value.problems[0].mend


def step_gradients(policy: ClinicalPolicy, groups: Sequence[Group], budget: int, advantages: dict) -> Gradients:
    """Of one policy-gradient loss whose totals are fixed, over as many packs as it takes."""
    module = ClinicalPolicyModule(policy)
    objective = PolicyGradient(kl_weight=0.0, entropy_weight=0.01)
    totals = Totals(sequences=5.0, tokens=60.0)
    for item in pack(groups, budget):
        weights = torch.tensor([advantages[groups[g].rollouts[i].text] for g, i in item.members])
        scores = Scores(None, None, advantages=weights[item.response])
        micro = module.training_step(item, scores, objective, totals, 1.0, 32)
        micro.loss.value.backward()
    return gradients(policy)


@pytest.mark.parametrize("budget", [ROW, 1])
def test_responses_that_do_not_train_contribute_nothing(
    budget: int, policy: ClinicalPolicy, groups: dict[str, Group]
) -> None:
    """As if they were not there, given the same totals. Budget 1: rows of their own, in which nothing trains."""
    named, left = [], []
    for name, keep in (("image", (True, False, True, False)), ("text", (False, True, True, True))):
        group = groups[name]
        rollouts = tuple(replace(rollout, text=f"{name} {i}") for i, rollout in enumerate(group.rollouts))
        kept = tuple(rollout for rollout, trains in zip(rollouts, keep, strict=True) if trains)
        named.append(replace(group, rollouts=rollouts, trainable=keep))
        left.append(replace(group, rollouts=kept, trainable=(True,) * len(kept)))
    advantages = {f"{name} {i}": (-1.0) ** i * (1 + i) for name in ("image", "text") for i in range(4)}
    found = step_gradients(policy, named, budget, advantages)
    expected = step_gradients(policy, left, ROW, advantages)
    for part in ("language_model", "vision"):
        assert gap(found[part], expected[part]) <= 1e-5


def test_features_are_computed_once_per_case(policy: ClinicalPolicy, groups: dict[str, Group]) -> None:
    calls = []
    hooks = [
        policy.model.vision_part.register_forward_hook(lambda *_: calls.append("vision")),
        policy.model.encoders["ecg"].register_forward_hook(lambda *_: calls.append("ecg")),
    ]
    (item,) = pack([groups["mixed"], groups["image"]], ROW)
    with torch.no_grad():
        policy(item)
    for hook in hooks:
        hook.remove()
    assert calls == ["vision", "ecg"]
    assert item.grids is not None and len(item.grids) == 3 and len(item.series["ecg"]) == 2
