"""Any timm backbone as an encoder: features, preparation and weights against timm's own other ways to the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qoqmed import registry
from qoqmed.config.schema import Node
from qoqmed.encoders.timm_image import TimmImage
from qoqmed.errors import MediaError, UserError
from qoqmed.media.torchvision_ops import repair

repair()
timm = pytest.importorskip("timm")
SMALL = {  # tiny models of timm for tests, at 160 pixels -> (tokens, width)
    "test_vit": (10 * 10, 64),  # patches of 16 and a class token
    "test_vit_relpos": (10 * 10, 96),  # no class token
    "test_resnet": (5 * 5, 96),  # a map [D, h, w]
    "test_convnext": (5 * 5, 64),
    "test_mambaout": (5 * 5, 64),  # a map [h, w, D]
}


def encoder(model="test_vit", **arguments):
    torch.manual_seed(0)
    return TimmImage(model, **arguments)


def pictures(count=2, side=160):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("model", SMALL)
def test_features_equal_those_that_timm_gives_as_a_map(model):
    """`forward_intermediates` is timm's own way to a [B, D, h, w] map, whatever the model's format."""
    every, mean, batch = encoder(model, pool="none"), encoder(model), pictures()
    options = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    places = every.network.forward_intermediates(batch, **options)[-1]
    expected = torch.stack([places[:, :, y, x] for y in range(places.shape[2]) for x in range(places.shape[3])], dim=1)
    features, mask = every(batch)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert (every.num_tokens, every.width) == SMALL[model] == tuple(features.shape[1:])
    assert mask.shape == features.shape[:2] and mask.dtype == torch.bool and mask.all()
    pooled, mask = mean(batch)
    assert mean.num_tokens == 1 and mask.shape == (2, 1)
    torch.testing.assert_close(pooled, features.mean(1, keepdim=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])  # bicubic and bilinear
def test_a_picture_is_prepared_as_timm_does_without_its_crop(model):
    made = encoder(model)
    config = timm.data.resolve_model_data_config(made.network) | {"crop_pct": 1.0, "crop_mode": "squash"}
    transform = timm.data.create_transform(**config)
    for array in (noise(300, 120), noise(40, 160)):
        prepared = made.prepare(array)
        assert prepared.shape == (3, 160, 160) and prepared.dtype == torch.float32 and prepared.is_contiguous()
        torch.testing.assert_close(prepared, transform(Image.fromarray(array)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "array", [np.zeros((9, 9, 3), np.float32), np.zeros((9, 9), np.uint8), np.zeros((0, 9, 3), np.uint8)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(MediaError, match=r"uint8 \[H, W, 3\]"):
        encoder().prepare(array)


def test_a_file_is_loaded(tmp_path):
    array = noise(50, 30)
    Image.fromarray(array).save(tmp_path / "a.png")
    made = encoder()
    assert np.array_equal(made.load(tmp_path / "a.png", {}), array)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match="b.png"):
        made.load(tmp_path / "b.png", {})


@pytest.mark.real
def test_a_real_dicom_file_is_loaded(real_root):
    made = encoder()
    picture = made.load(real_root / "edge_cases" / "ct_16bit_signed.dcm", {})
    assert picture.dtype == np.uint8 and picture.std() > 1
    assert made(made.prepare(picture)[None])[0].isfinite().all()


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_a_picture_does_not_depend_on_its_batch_in_training_either(model):
    made, batch = encoder(model).train(), pictures(3)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    torch.testing.assert_close(made(batch)[0][1:2], made(batch[1:2])[0], rtol=1e-4, atol=1e-5)
    assert made.training and all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    (made(batch)[0] ** 3).sum().backward()
    weights = {name: parameter for name, parameter in made.named_parameters() if "fc_norm" not in name}
    assert all(parameter.grad is not None for parameter in weights.values())


def test_the_modality_is_one_of_its_own():
    made = encoder(modality="fundus_photo")
    assert (made.modality, made.placeholder) == ("fundus_photo", "<|fundus_photo_pad|>")
    with pytest.raises(UserError, match=r"vision tower reads this modality itself(.|\n)*image"):
        encoder(modality="image")
    with pytest.raises(UserError, match=r"no plain word(.|\n)*unknown pool(.|\n)*image_size is out of range"):
        encoder(modality="<|x|>", pool="max", image_size=0)


@pytest.mark.parametrize(("model", "tokens"), [("test_vit", 6 * 6), ("test_resnet", 3 * 3)])
def test_another_size_gives_another_number_of_tokens(model, tokens):
    made = encoder(model, pool="none", image_size=96)
    prepared = made.prepare(noise(200, 100))
    assert prepared.shape == (3, 96, 96) and made.num_tokens == tokens
    assert made(prepared[None])[0].shape[1] == tokens


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_weights_come_from_a_file_of_the_model_with_or_without_its_classifier(tmp_path, model):
    torch.manual_seed(5)
    whole, path = timm.create_model(model, num_classes=7), tmp_path / "w.safetensors"
    save_file(whole.state_dict(), path)
    first = encoder(model, weights=str(path), pool="none")
    batch = pictures()
    torch.testing.assert_close(first(batch)[0], encoder(model, pool="none", weights=str(path))(batch)[0])
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in first.network.state_dict().items())
    save_file(first.network.state_dict(), path)
    second = encoder(model, weights=str(path), pool="none")
    assert torch.equal(first(batch)[0], second(batch)[0])


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(UserError, match=r"are missing: cls_token(.|\n)*are unexpected: (.|\n)*conv1"):
        encoder(weights=str(path))


def test_a_shell_on_the_meta_device_prepares_and_is_filled_later():
    with torch.device("meta"):
        shell = TimmImage("test_vit", weights="not looked for")
    prepared, full = shell.prepare(noise(20, 20)), encoder()
    assert prepared.device.type == "cpu" and shell.num_tokens == 1
    shell.to_empty(device="cpu").load_state_dict(full.state_dict())
    assert torch.equal(shell(prepared[None])[0], full(prepared[None])[0])


@pytest.mark.parametrize("name", ["resnet_18", "hf-hub:timm/resnet18", "local-dir:here", "resnet18.no_such_tag"])
def test_names_that_timm_does_not_register_are_refused(name):
    with pytest.raises(UserError, match=r"unknown timm model|Invalid pretrained tag") as raised:
        encoder(name)
    assert "did you mean" in str(raised.value) or name != "resnet_18"


@pytest.mark.parametrize(
    ("model", "size", "cause"),
    [("coat_tiny", None, "neither a map nor a row of tokens"), ("test_vit", 100, "choose another model or image_size")],
)
def test_a_model_that_cannot_serve_is_told(model, size, cause):
    with pytest.raises(UserError, match=rf"cannot serve as an encoder(.|\n)*{cause}"):
        encoder(model, image_size=size)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'qoqmed\[timm\]'"):
        encoder()


def test_a_recipe_makes_one():
    node = Node("timm_image", {"model": "test_vit", "modality": "fundus_photo", "pool": "none"})
    assert registry.make("encoders", node).num_tokens == 100
