"""A checkpoint folder of transformers and the tiny policy: the same weights, the same numbers, nothing by chance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_policy as tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from qoqmed.errors import UserError
from qoqmed.packing import Pack, Prompt, pack
from qoqmed.policy.loading import Loaded, load_path, load_tiny
from qoqmed.policy.tiny import TEMPLATE
from qoqmed.types import Medium

MEDIA: tuple[Medium, ...] = (tiny.picture(1, 56, 84), tiny.ecg(1))


@pytest.fixture(scope="module")
def source() -> Loaded:
    return tiny.load(tiny.SHARP)


@pytest.fixture(scope="module")
def folder(source: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(source, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "spoilt"))


def save(loaded: Loaded, path: Path) -> Path:
    """As a plain backbone's folder, without our encoders."""
    tiny.plain_model(loaded.policy.model).save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    loaded.processor.image_processor.save_pretrained(path)
    return path


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def load(path: Path, **options: Any) -> Loaded:
    return load_path(path, {"ecg": tiny.ECG}, **({"seed": 0} | options))


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    """Those of the backbone."""
    state = loaded.policy.model.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(("encoders.", "projectors."))}


def prompt_of(loaded: Loaded, *media: Medium) -> Prompt:
    return tiny.prompter(loaded)(tiny.case("a", *media))


def pack_of(loaded: Loaded, *media: Medium) -> Pack:
    prompt = prompt_of(loaded, *media)
    (item,) = pack([tiny.group(tiny.case("a", *media), prompt, (9, 4))], 1000)
    return item


def test_a_saved_policy_comes_back_bit_for_bit(source: Loaded, folder: Path) -> None:
    found = load(folder)
    expected = weights(source)
    assert weights(found).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(found).items())
    assert torch.equal(found.policy.banned, source.policy.banned)
    assert found.tokenizer.get_vocab() == source.tokenizer.get_vocab()
    assert found.tokenizer.eos_token_id == source.tokenizer.eos_token_id
    assert found.tokenizer.chat_template == source.tokenizer.chat_template == TEMPLATE


def test_a_saved_policy_gives_the_same_prompts_and_log_probs(source: Loaded, folder: Path) -> None:
    """Of text and pictures; the projector is not part of a transformers checkpoint."""
    found = load(folder)
    one, other = pack_of(found, MEDIA[0]), pack_of(source, MEDIA[0])
    assert torch.equal(one.token_ids, other.token_ids) and torch.equal(one.positions, other.positions)
    assert one.pixel_values is not None and other.pixel_values is not None
    assert torch.equal(one.pixel_values, other.pixel_values)
    with torch.no_grad():
        torch.testing.assert_close(found.policy(one).log_probs, source.policy(other).log_probs, rtol=0, atol=1e-5)


def test_encoders_join_a_saved_policy_by_its_seed(folder: Path) -> None:
    one, same, other = load(folder), load(folder), load(folder, seed=1)
    assert torch.equal(one.policy.model.projectors["ecg"].weight, same.policy.model.projectors["ecg"].weight)
    assert not torch.equal(one.policy.model.projectors["ecg"].weight, other.policy.model.projectors["ecg"].weight)
    with torch.no_grad():
        item = pack_of(one, *MEDIA)
        torch.testing.assert_close(one.policy(item).log_probs, same.policy(item).log_probs, rtol=0, atol=1e-5)


def test_a_chat_template_in_tokenizer_config_is_read(copied: Path) -> None:
    """As older checkpoints have it."""
    (copied / "chat_template.jinja").unlink()
    edit(copied / "tokenizer_config.json", chat_template=TEMPLATE.replace("assistant", "doctor"))
    found = load(copied)
    text = found.tokenizer.decode(prompt_of(found, MEDIA[0]).token_ids)
    assert text.endswith("<|im_start|>doctor\n")


def test_a_chat_template_in_a_json_file_is_read(copied: Path) -> None:
    """As processors of transformers 4 wrote it."""
    (copied / "chat_template.jinja").unlink()
    content = {"chat_template": TEMPLATE.replace("assistant", "doctor")}
    (copied / "chat_template.json").write_text(json.dumps(content))
    assert load(copied).processor.chat_template == content["chat_template"]


def test_a_folder_without_a_chat_template_is_refused(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"model.path(.|\n)*no chat template"):
        load(copied)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "qwen2_5_vl", "text_config": 3}'),
        ("config.json", '{"model_type": "qoqmed_qwen2_5_vl", "encoders": {"ecg": {"name": "ecg_conv"}}}'),
        ("tokenizer.json", "{}"),
        ("preprocessor_config.json", "[1]"),
    ],
)
def test_damaged_files_are_one_message(file: str, content: str, copied: Path) -> None:
    (copied / file).write_text(content)
    with pytest.raises(UserError) as caught:
        load(copied)
    assert caught.value.problems[0].where and len(caught.value.problems) == 1


def test_gradient_checkpointing_is_turned_on_where_asked_for(folder: Path) -> None:
    assert not load(folder).policy.model.is_gradient_checkpointing
    assert load(folder, gradient_checkpointing=True).policy.model.is_gradient_checkpointing


def test_attention_is_that_of_packs_in_the_language_model_alone(folder: Path) -> None:
    config: Any = load(folder).policy.model.config
    assert config.text_config._attn_implementation == "segments"
    assert config.vision_config._attn_implementation == "sdpa"


def test_a_policy_in_bfloat16_reads_pictures_and_ecg(folder: Path) -> None:
    """All of it, the added encoder too. Log-probs lie near those in float32."""
    half, full = load(folder, dtype="bfloat16"), load(folder)
    assert {value.dtype for value in weights(half).values()} == {torch.bfloat16}
    assert half.policy.model.projectors["ecg"].weight.dtype == torch.bfloat16
    assert {value.dtype for value in half.policy.model.parameters()} == {torch.bfloat16}
    item, prompt = pack_of(half, *MEDIA), prompt_of(half, *MEDIA)
    with torch.no_grad():
        found, expected = half.policy(item).log_probs, full.policy(item).log_probs
        prefix = half.policy.prefill([prompt])
        logits = half.policy.logits(prefix.hidden)
    assert found.dtype == torch.float32 and logits.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.2 < expected.std()


def test_placeholders_that_the_vocabulary_has_no_room_for_extend_it_by_the_seed(tmp_path: Path) -> None:
    """A vocabulary of exactly the tokenizer's 320 grows by the ECG's three; torch's own stream plays no part."""
    full = load_tiny(tiny.TEXTS * 9, {}, seed=0, options=tiny.OPTIONS | {"vocabulary": 320})
    assert len(full.tokenizer) == len(full.policy.banned) == 320
    save(full, tmp_path)
    torch.manual_seed(1)
    one = load(tmp_path)
    torch.manual_seed(2)
    other = load(tmp_path)
    assert len(one.tokenizer) == len(one.policy.banned) == 323
    assert torch.equal(weights(one)["lm_head.weight"][:320], weights(full)["lm_head.weight"])
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
    assert one.policy.banned[320:].all()
    with torch.no_grad():
        assert one.policy(pack_of(one, *MEDIA)).log_probs.isfinite().all()


def test_ids_beyond_the_tokenizer_and_special_tokens_are_banned_but_the_stop_token(source: Loaded) -> None:
    tokenizer, banned = source.tokenizer, source.policy.banned
    expected = {i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id}
    expected |= set(range(len(tokenizer), len(banned)))
    assert set(banned.nonzero()[:, 0].tolist()) == expected
    for token in ("<|image_pad|>", "<|video_pad|>", "<|ecg_start|>", "<|ecg_pad|>", "<|ecg_end|>", "<|im_start|>"):
        assert banned[tokenizer.convert_tokens_to_ids(token)]


# ---- what is refused


@pytest.mark.parametrize("model_type", ["llama", "not_yet_invented"])
def test_an_unknown_model_type_is_named(model_type: str, copied: Path) -> None:
    """Whether transformers knows it or not."""
    edit(copied / "config.json", model_type=model_type)
    with pytest.raises(UserError) as caught:
        load(copied)
    (problem,) = caught.value.problems
    assert problem.where == "model.path"
    assert repr(model_type) in problem.what and "qwen2_5_vl" in problem.expected
    assert "model.backbone" in problem.mend


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no checkpoint here") as caught:
            load(path)
        assert caught.value.problems[0].got == str(path)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_the_users_to_mend(file: str, copied: Path) -> None:
    (copied / file).unlink()
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(copied)
    assert caught.value.problems[0].got == str(copied)


def test_a_broken_file_is_the_users_to_mend(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="cannot be read"):
        load(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load(copied)


def test_weights_that_are_missing_are_never_made_up(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.k_proj.bias"))
    del tensors[name]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights .*layers\.1\.self_attn\.k_proj\.bias"):
        load(copied)


def test_pickled_weights_are_not_read(source: Loaded, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save(weights(source), copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load(copied)


def test_code_in_a_checkpoint_is_not_run(copied: Path) -> None:
    ran = copied / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Evil: pass\n"
    (copied / "evil.py").write_text(code)
    edit(copied / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    edit(
        copied / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
    )
    edit(copied / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})
    try:
        load(copied)
    except UserError as error:
        assert "cannot be read" in str(error)
    assert not ran.exists()


# ---- the tiny policy


def test_the_tiny_policy_is_its_seeds_alone() -> None:
    """Same weights and tokenizer whatever torch's stream, which is left as it was."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = tiny.load(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = tiny.load(seed=3), tiny.load(seed=4)
    assert one.tokenizer.get_vocab() == same.tokenizer.get_vocab()
    state, again, third = one.policy.state_dict(), same.policy.state_dict(), other.policy.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    for name in ("model.lm_head.weight", "model.model.visual.patch_embed.proj.weight", "model.projectors.ecg.weight"):
        assert not torch.equal(state[name], third[name])


def test_loading_leaves_the_global_random_state_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_tiny_tokenizer_encodes_any_text(source: Loaded) -> None:
    tokenizer: PreTrainedTokenizerFast = source.tokenizer
    for text in ("Ödem links, 12 µm \n\t", "左肺结节 🫁", "What is on this chest X-ray?"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert not source.policy.banned[ids].any()


def test_an_unknown_size_of_the_tiny_policy_is_named() -> None:
    with pytest.raises(UserError) as caught:
        tiny.load(layer=3, depth=2)
    assert [problem.where for problem in caught.value.problems] == ["model.options.layer", "model.options.depth"]
    assert "'layers'" in caught.value.problems[0].mend
