"""The clinical models by transformers' AutoClasses: saved, loaded, generating; media in any order, any left out."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy as tiny
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import qoqmed.hf  # noqa: F401
from qoqmed.config.schema import Node
from qoqmed.errors import PluginError, UserError
from qoqmed.policy.loading import Loaded, load_path
from qoqmed.policy.processor import ClinicalProcessor

KINDS = ("qwen2_5_vl", "qwen3_vl")
SIDE = {"qwen2_5_vl": 56, "qwen3_vl": 64}  # of a picture of 2 x 2 tokens


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(kind: str) -> Loaded:
    loaded = tiny.load(tiny.SHARP, backbone=kind)
    loaded.processor.resize_between(28 * 28, 96 * 96)
    loaded.policy.eval()
    return loaded


@pytest.fixture(scope="module")
def folder(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clinical")
    loaded.policy.model.save_pretrained(path)
    loaded.processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


def picture(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def ecg(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((12, 200)).astype(np.float32)


def message(*content: Any) -> list[dict[str, Any]]:
    """Texts are strings, pictures [H, W, 3], ECGs [12, T]."""
    items = []
    for part in content:
        if isinstance(part, str):
            items.append({"type": "text", "text": part})
        else:
            name = "image" if part.ndim == 3 else "ecg"
            items.append({"type": name, name: part})
    return [{"role": "user", "content": items}]


def inputs(processor: Any, *content: Any) -> Any:
    return processor.apply_chat_template(message(*content), add_generation_prompt=True)


def conversations(side: int) -> dict[str, tuple[Any, ...]]:
    return {
        "text": ("What is on this?",),
        "ecg": (ecg(1), "Which rhythm?"),
        "image": (picture(1, side), "What is on this?"),
        "interleaved": ("First ", ecg(1), " then ", picture(1, side), " and ", ecg(2), picture(2, side), " at last."),
    }


# ---- saving and loading


def test_auto_classes_load_the_same_weights_bit_for_bit(loaded: Loaded, found: tuple[Any, Any]) -> None:
    model, processor = found
    assert type(model) is type(loaded.policy.model) and isinstance(processor, ClinicalProcessor)
    expected = loaded.policy.model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert processor.encoders == loaded.processor.encoders
    assert processor.pixel_bounds == (784, 96 * 96) and processor.frames == 4
    assert processor.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


def test_the_config_says_what_the_encoders_are(folder: Path, kind: str) -> None:
    config = AutoConfig.from_pretrained(folder)
    spec = config.encoders["ecg"]
    assert config.model_type == f"qoqmed_{kind}" and spec["name"] == "ecg_conv"
    assert (spec["distribution"], spec["version"]) == ("qoqmed", qoqmed.__version__)
    assert spec["arguments"]["rate_hz"] == 50.0 and spec["arguments"]["leads"][:2] == ["I", "II"]  # defaults too
    raw = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in raw and not list(folder.glob("*.py")) and not list(folder.glob("*.bin"))


def test_a_second_save_is_the_same_file(found: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    found[0].save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_weights_keep_the_plain_names_on_disk(loaded: Loaded, tmp_path: Path) -> None:
    """What reads the plain model's folders finds ours under the same names."""
    from safetensors import safe_open

    plain = tiny.plain_model(loaded.policy.model)
    plain.save_pretrained(tmp_path / "plain")
    loaded.policy.model.save_pretrained(tmp_path / "ours")
    names = {}
    for which in ("plain", "ours"):
        with safe_open(tmp_path / which / "model.safetensors", "pt") as file:
            names[which] = set(file.keys())
    ours = {name for name in names["ours"] if not name.startswith(("encoders.", "projectors."))}
    assert ours == names["plain"]


def test_a_plain_folder_keeps_its_weights_and_gets_encoders(loaded: Loaded, tmp_path: Path) -> None:
    """Encoders start as their constructors make them, projectors as transformers' linear layers."""
    plain = tiny.plain_model(loaded.policy.model)
    plain.save_pretrained(tmp_path)
    model_class = type(loaded.policy.model)
    torch.manual_seed(3)
    model = model_class.from_pretrained(tmp_path, encoders=loaded.policy.model.config.encoders)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    norm = model.encoders["ecg"].norm
    assert torch.equal(norm.weight, torch.ones(8)) and torch.equal(norm.bias, torch.zeros(8))
    first = model.encoders["ecg"].convolutions[0].weight
    bound = 1 / (12 * 15) ** 0.5  # torch's own start of a convolution: uniform within 1 / sqrt(fan in)
    assert 0.9 * bound < first.abs().max() <= bound
    assert model.projectors["ecg"].bias.abs().max() == 0 and 0 < model.projectors["ecg"].weight.std() < 0.1
    assert model.config.encoders == loaded.policy.model.config.encoders


def test_a_missing_encoder_names_its_package(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["encoders"]["ecg"] |= {"name": "heart_net", "distribution": "acme-hearts", "version": "2.1"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for file in folder.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(PluginError) as caught:
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    (problem,) = caught.value.problems
    assert "heart_net" in problem.what and "acme-hearts 2.1" in problem.mend and "encoders.ecg" in problem.where


def test_an_encoder_keeps_what_is_not_saved(loaded: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers outside the state dict survive transformers' loading on the meta device."""
    from qoqmed.encoders.ecg_conv import EcgConv

    start = EcgConv.__init__

    def with_buffer(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self.register_buffer("window", torch.arange(5, dtype=torch.float32), persistent=False)

    monkeypatch.setattr(EcgConv, "__init__", with_buffer)
    with_buffer.__signature__ = __import__("inspect").signature(start)  # type: ignore[attr-defined]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.encoders["ecg"].window.tolist() == [0, 1, 2, 3, 4]
    expected = loaded.policy.model.encoders["ecg"].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.encoders["ecg"].state_dict().items())


def test_loading_in_bfloat16(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}


def test_a_clean_process_needs_transformers_and_one_import(loaded: Loaded, folder: Path) -> None:
    code = (
        "import sys, torch, qoqmed.hf\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1])\n"
        "message = [{'role': 'user', 'content': [{'type': 'text', 'text': 'What is on this?'}]}]\n"
        "batch = processor.apply_chat_template(message, add_generation_prompt=True)\n"
        "with torch.no_grad(): print(model.eval()(**batch).logits[0, -1].double().sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    model = tiny.plain_copy(loaded.policy).model
    with torch.no_grad():
        logits = model(**inputs(loaded.processor, "What is on this?")).logits[0, -1]
    assert abs(float(done.stdout) - float(logits.double().sum())) < 1e-4


# ---- the forward


def by_hand(model: Any, batch: Any) -> Tensor:
    """Logits from embeddings put together by hand; pictures as transformers' plain model places them."""
    ids = batch["input_ids"]
    embeds = model.get_input_embeddings()(ids).clone()
    for modality, values in batch.get("series", {}).items():
        features, _ = model.encoders[modality](values)
        pad = model.config.encoders[modality]["token_id"]
        embeds[ids == pad] = model.projectors[modality](features).flatten(0, 1)
    plain = tiny.plain_model(model).eval()
    plain.get_input_embeddings().register_forward_hook(lambda *_: embeds)
    media = {k: batch[k] for k in ("pixel_values", "image_grid_thw", "mm_token_type_ids") if k in batch}
    return plain(input_ids=ids, **media).logits


@pytest.mark.parametrize("name", ["text", "ecg", "image", "interleaved"])
def test_the_forward_is_the_plain_models_with_features_in_place(name: str, found: tuple[Any, Any], kind: str) -> None:
    model, processor = found
    batch = inputs(processor, *conversations(SIDE[kind])[name])
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, by_hand(model, batch), rtol=0, atol=1e-5)


def test_packs_agree_with_the_models_own_forward(loaded: Loaded, kind: str) -> None:
    """Log-probs of a pack against transformers' forward of prompt and response alone: ECG, image and text."""
    from qoqmed.packing import pack

    encode = tiny.prompter(loaded, max_pixels=96 * 96)
    media = (tiny.ecg(1), tiny.picture(1, SIDE[kind], SIDE[kind]), tiny.ecg(2))
    case = tiny.case("a", *media, text="Compare <ecg> with <image>. Then say which rhythm it is.")
    group = tiny.group(case, encode(case), (7, 3, 12))
    (item,) = pack([group], 10_000)
    with torch.no_grad():
        packed = loaded.policy(item).log_probs.split(item.lengths.tolist())
    plain = tiny.plain_copy(loaded.policy)
    for rollout, log_probs in zip(group.rollouts, packed, strict=True):
        prompt = group.prompt
        assert prompt.pixel_values is not None
        ids = torch.cat([prompt.token_ids, torch.tensor(rollout.token_ids)])[None]
        with torch.no_grad():
            logits = plain.model(
                input_ids=ids,
                pixel_values=prompt.pixel_values,
                image_grid_thw=prompt.grids,
                mm_token_type_ids=(ids == loaded.processor.image_token_id).int(),
                series=dict(prompt.series),
            ).logits[0, len(prompt.token_ids) - 1 : -1]
        allowed = logits.masked_fill(plain.banned, -torch.inf)
        torch.testing.assert_close(log_probs, tiny.chosen_log_probs(allowed, rollout.token_ids), rtol=0, atol=1e-5)


def test_gradients_reach_encoder_and_projector(found: tuple[Any, Any], kind: str) -> None:
    model, processor = copy.deepcopy(found[0]).train(), found[1]
    batch = inputs(processor, *conversations(SIDE[kind])["interleaved"])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for part in (model.encoders["ecg"], model.projectors["ecg"], model.vision_part):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters() if p.ndim > 1)


def test_a_batch_gives_what_its_rows_give(found: tuple[Any, Any], kind: str) -> None:
    """Rows of different length, padded at the left: the same next token's logits."""
    model, processor = found
    rows = [message(*content) for content in conversations(SIDE[kind]).values()]
    batch = processor.apply_chat_template(rows, add_generation_prompt=True)
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        alone = [model(**processor.apply_chat_template(row, add_generation_prompt=True)).logits[0, -1] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["ecg", "interleaved"])
def test_generate_uses_the_cache(name: str, found: tuple[Any, Any], kind: str) -> None:
    """Greedy tokens with a cache equal those of whole forwards."""
    model, processor = found
    batch = inputs(processor, *conversations(SIDE[kind])[name])
    made = model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None)
    made = made[0, batch["input_ids"].shape[1] :]
    for token in made.tolist():
        with torch.no_grad():
            logits = model(**batch).logits[0, -1]
        assert logits[token] >= logits.max() - 1e-4
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[token]])], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, 1))


def test_several_sequences_of_a_prompt_see_their_own_series(found: tuple[Any, Any]) -> None:
    model, processor = found
    rows = [message(ecg(1), ecg(2), "Which rhythm?"), message("Which rhythm?"), message(ecg(3), "Which rhythm?")]
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    batch = processor.apply_chat_template(rows, add_generation_prompt=True)
    beams = model.generate(**batch, num_beams=2, num_return_sequences=2, **options)[:, batch["input_ids"].shape[1] :]
    for i, row in enumerate(rows):
        one = processor.apply_chat_template(row, add_generation_prompt=True)
        alone = model.generate(**one, num_beams=2, num_return_sequences=2, **options)[:, one["input_ids"].shape[1] :]
        assert torch.equal(beams[2 * i : 2 * i + 2], alone)


def test_an_ecg_after_an_image_has_positions_of_its_own(found: tuple[Any, Any], kind: str) -> None:
    """Transformers keeps the offset of the last picture; text and ECG alone must not take it over."""
    model, processor = found
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    alone = inputs(processor, *conversations(SIDE[kind])["ecg"])
    expected = model.generate(**alone, **options)
    model.generate(**inputs(processor, *conversations(SIDE[kind])["image"]), **options)
    assert torch.equal(model.generate(**alone, **options), expected)


def test_placeholders_and_features_that_do_not_match_are_refused(found: tuple[Any, Any]) -> None:
    model, processor = found
    batch = inputs(processor, ecg(1), "Which rhythm?")
    batch["series"] = {"ecg": batch["series"]["ecg"].repeat(2, 1, 1)}
    with pytest.raises(ValueError, match="ecg: 3 placeholders and 6 features for 2 items"):
        model(**batch)
    with pytest.raises(ValueError, match="needs `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 3, 64), series=batch["series"])


# ---- the processor


def test_paths_and_arrays_are_the_same(found: tuple[Any, Any], kind: str, tmp_path: Path) -> None:
    _, processor = found
    array = picture(1, SIDE[kind])
    Image.fromarray(array).save(tmp_path / "x.png")
    by_path = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "x.png")}]}]
    )
    by_array = processor.apply_chat_template(message(array))
    by_pil = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(array)}]}]
    )
    assert torch.equal(by_path["pixel_values"], by_array["pixel_values"])
    assert torch.equal(by_pil["pixel_values"], by_array["pixel_values"])


def test_a_pil_image_that_needs_rules_is_refused(found: tuple[Any, Any]) -> None:
    """16 bits and transparency are read by the rules of media, from a path."""
    for mode in ("I;16", "RGBA", "P"):
        with pytest.raises(UserError, match=f"a PIL image of mode {mode}"):
            found[1].apply_chat_template(
                [{"role": "user", "content": [{"type": "image", "image": Image.new(mode, (64, 64))}]}]
            )


def test_unknown_inputs_are_not_swallowed(found: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="videos"):
        found[1]("x", videos=[1])
    with pytest.raises(ValueError, match="one text at a time, got 2"):
        found[1](["x", "y"])
    with pytest.raises(ValueError, match="'image' has no 'image' and no path"):
        found[1].apply_chat_template([{"role": "user", "content": [{"type": "image", "pixels": "x"}]}])
    with pytest.raises(UserError, match="URL"):
        found[1].apply_chat_template([{"role": "user", "content": [{"type": "image", "url": "https://a.b/c.png"}]}])


def test_an_encoder_that_breaks_its_word_is_named(loaded: Loaded) -> None:
    model = copy.deepcopy(loaded.policy.model)
    start = type(model.encoders["ecg"]).forward
    for broken in (
        lambda self, x: tuple(torch.cat([part, part[:, :1]], 1) for part in start(self, x)),  # one more feature
        lambda self, x: (start(self, x)[0], torch.zeros(len(x), 3, dtype=torch.bool)),  # none of them real
    ):
        model.encoders["ecg"].forward = broken.__get__(model.encoders["ecg"])
        with pytest.raises(PluginError, match="encoder of 'ecg' gives other features"):
            model.series_features("ecg", torch.zeros(2, 12, 200))


def test_a_volume_and_a_video_are_their_frames(found: tuple[Any, Any], kind: str) -> None:
    _, processor = found
    slices = np.stack([picture(i, SIDE[kind]) for i in range(9)])
    for name in ("volume", "video"):
        batch = processor.apply_chat_template([{"role": "user", "content": [{"type": name, name: slices}]}])
        assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 4


def test_a_url_is_refused(found: tuple[Any, Any]) -> None:
    url = "https://example.org/x.png"
    with pytest.raises(UserError, match="URL"):
        found[1].apply_chat_template([{"role": "user", "content": [{"type": "image", "image": url}]}])


def test_a_call_with_text_expands_placeholders(found: tuple[Any, Any], kind: str) -> None:
    _, processor = found
    text = processor.apply_chat_template(
        message(ecg(1), picture(1, SIDE[kind]), "x"), add_generation_prompt=True, tokenize=False
    )
    assert text.count("<|ecg_pad|>") == text.count("<|image_pad|>") == 1
    called = processor(text, images=[picture(1, SIDE[kind])], series={"ecg": [ecg(1)]})
    expected = inputs(processor, ecg(1), picture(1, SIDE[kind]), "x")
    assert called.keys() == expected.keys() and torch.equal(called["input_ids"], expected["input_ids"])
    with pytest.raises(ValueError, match="1 placeholders <\\|ecg_pad\\|> for 0 media"):
        processor(text, images=[picture(1, SIDE[kind])])


# ---- a recipe's model


def test_a_second_encoder_joins_an_exported_model(loaded: Loaded, folder: Path) -> None:
    pytest.importorskip("timm")
    added = {"picture": Node("timm_image", {"model": "test_vit", "pool": "mean"})}
    more = load_path(folder, added, seed=5)
    kept, expected = more.policy.model.state_dict(), loaded.policy.model.state_dict()
    assert all(torch.equal(kept[f"{name}"], value) for name, value in expected.items() if "embed_tokens" not in name)
    assert set(more.policy.model.encoders) == set(more.processor.encoders) == {"ecg", "picture"}
    batch = inputs(more.processor, ecg(1), "and")
    tokens = more.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "picture", "picture": picture(1, 64)}, {"type": "text", "text": "x"}]}]
    )
    with torch.no_grad():
        assert (
            more.policy.model(**tokens).logits.isfinite().all() and more.policy.model(**batch).logits.isfinite().all()
        )


def test_a_recipe_starts_from_an_exported_model(loaded: Loaded, folder: Path) -> None:
    """Its encoders come from the folder; the recipe may name them again, or add others, but not change them."""
    again = load_path(folder, {}, seed=5)
    expected = loaded.policy.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.policy.model.state_dict().items())
    assert load_path(folder, {"ecg": tiny.ECG}, seed=5).processor.encoders == loaded.processor.encoders
    with pytest.raises(UserError, match="reads another modality"):
        load_path(folder, {"holter": Node("ecg_conv")}, seed=5)
    with pytest.raises(UserError, match=r"encoders.ecg.*already has another encoder"):
        load_path(folder, {"ecg": Node("ecg_conv", {"width": 9})}, seed=5)
    with pytest.raises(UserError, match=r"encoders.ecg.*already has another encoder"):
        load_path(folder, {"ecg": Node("ecg_conv", {"weights": "other.safetensors"})}, seed=5)
