"""LoRA: starts as the base, trains adapters alone, its reference is the base, and merges exactly."""

from __future__ import annotations

import copy

import pytest
import tiny_policy as tiny
import torch

from qoqmed.config.schema import LoraConfig, OptimizerConfig
from qoqmed.errors import UserError
from qoqmed.module import AdapterOff, ClinicalPolicyModule
from qoqmed.packing import Pack, pack
from qoqmed.policy import lora
from qoqmed.policy.loading import Loaded
from qoqmed.updating import build_optimizer

pytest.importorskip("peft")


@pytest.fixture
def loaded() -> Loaded:
    return tiny.load(tiny.SHARP)


@pytest.fixture
def item(loaded: Loaded) -> Pack:
    media = (tiny.picture(1, 56, 56), tiny.ecg(1))
    case = tiny.case("a", *media)
    (item,) = pack([tiny.group(case, tiny.prompter(loaded)(case), (5, 9))], 1000)
    return item


def disturb(module: ClinicalPolicyModule) -> None:
    """As a training step would: every trained parameter moves."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.trained().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_a_policy_with_fresh_adapters_is_its_base(loaded: Loaded, item: Pack) -> None:
    with torch.no_grad():
        before = loaded.policy(item).log_probs
        lora.add(loaded.policy, LoraConfig(rank=2), seed=1)
        assert torch.equal(loaded.policy(item).log_probs, before)


def test_adapters_train_and_nothing_else_of_their_part(loaded: Loaded) -> None:
    """Two layers of 7 linear layers, each with a pair of matrices; no optimizer state for the rest."""
    lora.add(loaded.policy, LoraConfig(rank=2), seed=1)
    module = ClinicalPolicyModule(loaded.policy)
    module.choose(["language_model", "projectors.*"])
    names = list(module.trained())
    assert len(names) == 2 * 7 * 2 + 2
    assert all(lora.MARK in name or ".projectors.ecg." in name for name in names)
    assert not any("lm_head" in name or "embed_tokens" in name for name in names)
    optimizer = build_optimizer(module, OptimizerConfig())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sum(p.numel() for p in held) == sum(p.numel() for p in module.trained().values())


def test_targets_choose_layers_by_name(loaded: Loaded) -> None:
    lora.add(
        loaded.policy, LoraConfig(rank=2, targets=("q_proj", "v_proj"), parts=("language_model", "vision")), seed=1
    )
    names = {name.rpartition(".")[2] for name in lora.layers(loaded.policy)}
    assert names == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match="no linear layer"):
        lora.add(tiny.load().policy, LoraConfig(targets=("nothing",)), seed=1)


def test_the_vision_part_takes_adapters(loaded: Loaded) -> None:
    lora.add(loaded.policy, LoraConfig(rank=2, parts=("vision",)), seed=1)
    module = ClinicalPolicyModule(loaded.policy)
    module.choose(["language_model", "vision"])
    trained = set(module.trained())
    assert {name for name in trained if ".visual." in name} == {name for name in trained if lora.MARK in name}
    assert any("embed_tokens" in name for name in trained)  # the language model has none: it trains whole


def test_the_reference_is_the_base(loaded: Loaded, item: Pack) -> None:
    """Also where a projector trains whole beside the adapters; the policy is bit for bit as before afterwards."""
    base = copy.deepcopy(loaded.policy)
    lora.add(loaded.policy, LoraConfig(rank=2), seed=1)
    module = ClinicalPolicyModule(loaded.policy)
    module.choose(["language_model", "projectors"])
    module.freeze_reference()
    assert isinstance(module.reference, AdapterOff)
    disturb(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    (scores,) = module.score([item], 1.0, old=True, reference=True)
    assert scores.reference is not None and scores.old is not None
    with torch.no_grad():
        torch.testing.assert_close(scores.reference, base(item).log_probs, rtol=0, atol=1e-6)
    assert (scores.old - scores.reference).abs().max() > 0.05
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert set(module.trained()) == {name for name, p in module.policy.named_parameters() if p.requires_grad}


def test_merged_weights_give_the_same_log_probs(loaded: Loaded, item: Pack) -> None:
    names = set(loaded.policy.model.state_dict())
    lora.add(loaded.policy, LoraConfig(rank=2), seed=1)
    module = ClinicalPolicyModule(loaded.policy)
    module.choose(["language_model"])
    disturb(module)
    with torch.no_grad():
        expected = loaded.policy(item).log_probs
        lora.merge(loaded.policy.model)
        found = loaded.policy(item).log_probs
    assert set(loaded.policy.model.state_dict()) == names and not lora.layers(loaded.policy)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_adapters_are_their_seed(loaded: Loaded) -> None:
    other, third = tiny.load(tiny.SHARP), tiny.load(tiny.SHARP)
    for policy, seed in ((loaded.policy, 1), (other.policy, 1), (third.policy, 2)):
        lora.add(policy, LoraConfig(rank=2), seed)
    one, same, different = (p.state_dict() for p in (loaded.policy, other.policy, third.policy))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, different[name]) for name, value in one.items())
