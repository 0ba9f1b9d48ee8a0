"""The ECG-JEPA encoder: the published shape and names, and the numbers of a second implementation (tests/oracles)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from oracles import ecg_jepa as oracle
from safetensors.torch import save_file

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.encoders.ecg_jepa import LEADS, EcgJepa
from qoqmed.errors import MediaError, UserError

HEADS = 2


def small(seed=0, **arguments):
    """Weights far from their initial values, or positions and biases would hardly count."""
    torch.manual_seed(seed)
    encoder = EcgJepa(**{"width": 24, "depth": 3, "heads": HEADS, **arguments})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def ecgs(count=2, leads=8, seed=1):
    return torch.randn(count, leads, 2500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return EcgJepa()


def test_the_published_size_has_the_published_parameters(published):
    assert sum(parameter.numel() for parameter in published.parameters() if parameter.requires_grad) == 85_067_520
    assert len(published.state_dict()) == 137
    assert (published.width, published.num_tokens, published.placeholder) == (768, 1, "<|ecg_pad|>")


def test_names_and_shapes_are_the_published_ones(published):
    expected = {"pos_embed": (400, 768), "W_P.weight": (768, 50), "W_P.bias": (768,)}
    expected |= {"norm.weight": (768,), "norm.bias": (768,)}
    for number in range(12):
        here = f"encoder_blocks.blocks.{number}."
        expected[here + "attn.qkv.weight"] = (2304, 768)
        layers = {"norm1": (768,), "norm2": (768,), "attn.proj": (768, 768)}
        layers |= {"mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
        expected |= {f"{here}{layer}.weight": shape for layer, shape in layers.items()}
        expected |= {f"{here}{layer}.bias": shape[:1] for layer, shape in layers.items()}
    assert {name: tuple(tensor.shape) for name, tensor in published.state_dict().items()} == expected
    assert "pos_embed" not in dict(published.named_parameters())


def test_positions_by_hand():
    """192 frequencies, sines first; the time patch in the first half of the width, the lead in the second."""
    places = EcgJepa(depth=1).pos_embed.double()
    assert places[0, :192].abs().max() == 0 and places[0, 192:384].min() == 1
    token, time, lead = places[2 * 50 + 3], 3, 2
    assert token[0].item() == pytest.approx(0.1411200081)  # sin 3
    assert token[192].item() == pytest.approx(-0.9899924966)  # cos 3
    assert token[384].item() == pytest.approx(0.9092974268)  # sin 2
    assert token[576].item() == pytest.approx(-0.4161468365)  # cos 2
    assert token[96].item() == pytest.approx(math.sin(time / 100))  # 10000^(-96/192) is 1/100
    assert token[384 + 191].item() == pytest.approx(math.sin(lead * 10000 ** (-191 / 192)))
    assert token[767].item() == pytest.approx(math.cos(lead * 10000 ** (-191 / 192)))


def test_a_forward_equals_the_reference_in_every_pool():
    encoder, batch = small(pool="none").double(), ecgs()
    expected = oracle.tokens(encoder.state_dict(), batch, HEADS)
    features, mask = encoder(batch)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-10)
    assert features.shape == (2, 400, 24) and mask.shape == (2, 400) and mask.dtype == torch.bool and mask.all()
    pooled = {
        "mean": expected.mean(1, keepdim=True),
        "lead": sum(expected[:, 50 * i : 50 * i + 50] for i in range(8)) / 8,
    }
    for pool, tokens in pooled.items():
        other = small(pool=pool).double()
        features, mask = other(batch)
        torch.testing.assert_close(features, tokens, rtol=1e-9, atol=1e-10)
        assert features.shape[1] == mask.shape[1] == other.num_tokens == {"mean": 1, "lead": 50}[pool]


@pytest.mark.parametrize("leads", [("V6", "II"), ("V3",), tuple(reversed(LEADS))])
def test_some_leads_in_any_order_equal_the_restricted_reference(leads):
    encoder, batch = small(pool="none", leads=leads).double(), ecgs(leads=len(leads))
    features, _ = encoder(batch)
    expected = oracle.tokens(encoder.state_dict(), batch, HEADS, [LEADS.index(lead) for lead in leads])
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-10)
    assert encoder.num_tokens == 50 * len(leads) and encoder.pos_embed.shape == (400, 24)


def test_the_order_of_leads_does_not_matter_to_the_mean():
    batch = ecgs(1)
    turned = small(leads=LEADS[::-1]).double()(batch.flip(1))[0]
    torch.testing.assert_close(turned, small().double()(batch)[0], rtol=1e-9, atol=1e-10)


def test_a_patch_reaches_its_lead_and_its_time_only():
    encoder, batch = small(pool="none", depth=1).double(), ecgs(1)
    changed = batch.clone()
    changed[0, 3, 50 * 7 + 10] += 1
    differs = (encoder(changed)[0] - encoder(batch)[0]).abs().amax(-1)[0].reshape(8, 50) > 0
    expected = torch.zeros(8, 50, dtype=torch.bool)
    expected[3], expected[:, 7] = True, True
    assert torch.equal(differs, expected)


def test_an_ecg_does_not_depend_on_its_batch():
    encoder, batch = small(), ecgs(3).float()
    torch.testing.assert_close(encoder(batch)[0][1:2], encoder(batch[1:2])[0], rtol=1e-5, atol=1e-5)


def test_half_precision_stays_near():
    torch.manual_seed(0)
    encoder, batch = EcgJepa(width=96, depth=4, heads=HEADS), ecgs().float()
    exact = encoder(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(batch)[0]
    half = encoder.to(torch.bfloat16)(batch.to(torch.bfloat16))[0]
    assert half.dtype == torch.bfloat16
    for other in (mixed, half):
        assert torch.nn.functional.cosine_similarity(other.float(), exact, dim=-1).min() > 0.999
        assert (other.float() - exact).abs().max() < 0.05


def test_gradients_reach_every_weight_and_no_position():
    encoder = small(pool="lead")
    (encoder(ecgs().float())[0] ** 3).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    encoder.requires_grad_(True)  # as a stage does that trains encoders.ecg
    assert not encoder.pos_embed.requires_grad


def test_weights_come_back_bit_for_bit(tmp_path):
    first = small(seed=3)
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    second = EcgJepa(str(tmp_path / "w.safetensors"), width=24, depth=3, heads=HEADS)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_weights_that_do_not_fit_are_told_whole(tmp_path):
    state = small().state_dict()
    state["norm.scale"] = state.pop("norm.weight")
    state["W_P.weight"] = state["W_P.weight"][:, :10].contiguous()
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(UserError) as raised:
        small(weights=str(path))
    told = str(raised.value)
    assert "1 of the weights are missing: norm.weight" in told and "1 of the weights are unexpected: norm.scale" in told
    assert "have another shape: W_P.weight [24, 10] instead of [24, 50]" in told and str(path) in told
    with pytest.raises(UserError, match="no such weights file"):
        small(weights=str(tmp_path / "none"))
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"cannot be read(.|\n)*qoqmed convert ecg-jepa"):
        small(weights=str(tmp_path / "w.pth"))


def test_a_shell_on_the_meta_device_prepares_and_is_filled_later():
    """As transformers' from_pretrained does: built without memory, filled from a state dict."""
    with torch.device("meta"):
        shell = EcgJepa(weights="not looked for", pool="lead", width=24, depth=3, heads=HEADS)
    prepared = shell.prepare(np.ones((12, 2000), dtype=np.float32))
    assert prepared.shape == (8, 2500) and prepared.device.type == "cpu"
    full, batch = small(pool="lead"), ecgs().float()
    shell.to_empty(device="cpu").load_state_dict(full.state_dict())
    assert torch.equal(shell(batch)[0], full(batch)[0])
    assert not dict(shell.named_buffers()).keys() - full.state_dict().keys()


def test_arrays_are_cropped_padded_and_checked():
    encoder = small(leads=["V1", "I"])
    array = np.arange(12, dtype=np.float64)[:, None].repeat(3000, axis=1)
    prepared = encoder.prepare(array)
    assert prepared.shape == (2, 2500) and prepared.dtype == torch.float32 and prepared[:, 0].tolist() == [6, 0]
    assert encoder.prepare(array[:2, :10])[:, 10:].abs().max() == 0
    array[6, 5] = np.nan
    with pytest.raises(MediaError, match="V1: 1, of 3000"):
        encoder.prepare(array)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"pool": "max"}, "unknown pool"),
        ({"leads": ["III"]}, "unknown lead"),
        ({"leads": []}, "leads is out of range"),
        ({"leads": ["I", "I"]}, "named twice"),
        ({"width": 26, "heads": 3}, r"a multiple of 4(.|\n)*a multiple of 3"),
        ({"depth": 0, "heads": 0}, r"depth is out of range(.|\n)*heads is out of range"),
    ],
)
def test_wrong_arguments_are_told(arguments, told):
    with pytest.raises(UserError, match=told):
        small(**arguments)


def test_a_recipe_makes_one():
    node = Node("ecg_jepa", {"pool": "none", "leads": ["II"], "width": 24, "depth": 1, "heads": 2})
    assert registry.make("encoders", node).num_tokens == 50


@pytest.mark.real
def test_a_real_record_equals_scipy_resampling_of_wfdb(real_root):
    wfdb, signal = pytest.importorskip("wfdb"), pytest.importorskip("scipy.signal")
    rows = [json.loads(line) for line in (real_root / "manifest.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["domain"] == "ecg" and row["fs"] == 500)
    path = real_root / row["files"]["ecg"].removesuffix(".hea")
    encoder = small(pool="lead")
    loaded = encoder.prepare(encoder.load(path, {}))
    record = wfdb.rdrecord(str(path), sampto=5000)
    expected = signal.resample(record.p_signal[:, [record.sig_name.index(lead) for lead in LEADS]].T, 2500, axis=1)
    assert set(record.units) == {"mV"}
    torch.testing.assert_close(loaded, torch.from_numpy(expected).float(), rtol=0, atol=1e-5)
    assert encoder(loaded[None])[0].isfinite().all()
