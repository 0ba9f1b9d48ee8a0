"""From a case to an encoded prompt: what stands where, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy as tiny
import torch
from PIL import Image

from qoqmed.errors import DataError, MediaError
from qoqmed.packing import Prompt
from qoqmed.policy.loading import Loaded
from qoqmed.types import Box, Medium

IMAGE, ECG = "<|image_pad|>", "<|ecg_pad|>"
BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return tiny.load()


def text_of(loaded: Loaded, prompt: Prompt) -> str:
    return str(loaded.tokenizer.decode(prompt.token_ids, skip_special_tokens=False))


def picture(tokens: int) -> str:
    return f"<|vision_start|>{IMAGE * tokens}<|vision_end|>"


def slots_of(loaded: Loaded, prompt: Prompt, token: str) -> list[int]:
    wanted = loaded.tokenizer.convert_tokens_to_ids(token)
    return [place for place, id in enumerate(prompt.token_ids.tolist()) if id == wanted]


def volume(slices: int, height: int = 56, width: int = 56) -> Medium:
    """Slice k is of brightness 10 k."""
    array = np.repeat(np.arange(slices, dtype=np.uint8) * 10, height * width * 3)
    return Medium("volume", array=array.reshape(slices, height, width, 3))


def test_text_alone(loaded: Loaded) -> None:
    prompt = tiny.prompter(loaded)(tiny.case("a", text="What is on this?"))
    assert text_of(loaded, prompt) == BEFORE + "What is on this?" + AFTER
    assert prompt.case_id == "a" and prompt.start == len(prompt.token_ids)
    assert prompt.positions.tolist() == [list(range(prompt.start))] * 3
    assert prompt.pixel_values is None and prompt.grids is None and prompt.image_slots is None
    assert not prompt.series and not prompt.series_slots and prompt.geometries == ()


@pytest.mark.parametrize(
    ("height", "width", "grid", "resized"),
    [
        (84, 84, (6, 6), (84, 84)),
        (56, 112, (4, 8), (56, 112)),
        (30, 80, (2, 6), (28, 84)),  # rounded to multiples of 28
        (400, 200, (8, 4), (112, 56)),  # 80,000 pixels shrink to at most 7056, aspect kept
        (10, 10, (2, 2), (28, 28)),  # grown to at least 784
    ],
)
def test_a_picture_has_as_many_placeholders_as_its_geometry_tokens(
    height: int, width: int, grid: tuple[int, int], resized: tuple[int, int], loaded: Loaded
) -> None:
    prompt = tiny.prompter(loaded)(tiny.case("a", tiny.picture(1, height, width)))
    (geometry,) = prompt.geometries
    assert geometry is not None
    assert (geometry.height, geometry.width) == (height, width)
    assert (geometry.resized_height, geometry.resized_width) == resized
    tokens = grid[0] * grid[1] // 4
    assert geometry.tokens == tokens
    assert text_of(loaded, prompt) == BEFORE + picture(tokens) + "What is on this?" + AFTER
    assert prompt.image_slots is not None and prompt.image_slots.tolist() == slots_of(loaded, prompt, IMAGE)
    assert prompt.grids is not None and prompt.grids.tolist() == [[1, *grid]]
    assert prompt.pixel_values is not None and prompt.pixel_values.shape == (4 * tokens, 3 * 2 * 14 * 14)
    assert prompt.pixel_values.dtype == torch.float32


def test_the_policy_finds_as_many_features_as_placeholders(loaded: Loaded) -> None:
    prompt = tiny.prompter(loaded)(tiny.case("a", tiny.picture(1, 56, 112), tiny.ecg(1), tiny.picture(2, 84, 28)))
    assert prompt.pixel_values is not None and prompt.grids is not None and prompt.image_slots is not None
    with torch.no_grad():
        images = loaded.policy.model.image_features(prompt.pixel_values, prompt.grids).tokens
        series, mask = loaded.policy.model.encoders["ecg"](prompt.series["ecg"])
    assert len(images) == len(prompt.image_slots) == 8 + 3
    assert series.shape[:2].numel() == len(prompt.series_slots["ecg"]) == 3
    assert mask.all()


def test_media_stand_in_the_order_of_the_case(loaded: Loaded) -> None:
    media = (tiny.ecg(1), tiny.picture(1, 28, 56), tiny.ecg(2), tiny.picture(2, 56, 56))
    prompt = tiny.prompter(loaded)(tiny.case("a", *media))
    span = f"<|ecg_start|>{ECG * 3}<|ecg_end|>"
    assert text_of(loaded, prompt) == BEFORE + span + picture(2) + span + picture(4) + "What is on this?" + AFTER
    assert prompt.series_slots["ecg"].tolist() == slots_of(loaded, prompt, ECG)
    assert prompt.grids is not None and prompt.grids.tolist() == [[1, 2, 4], [1, 4, 4]]
    assert [geometry and (geometry.height, geometry.width) for geometry in prompt.geometries] == [
        None,
        (28, 56),
        None,
        (56, 56),
    ]
    encoder: Any = loaded.policy.model.encoders["ecg"]
    expected = torch.stack([encoder.prepare(medium.array) for medium in (media[0], media[2])])
    assert torch.equal(prompt.series["ecg"], expected)


def test_a_volume_becomes_as_many_pictures_as_frames(loaded: Loaded) -> None:
    """Of 10 slices, 4 evenly: the middles of four equal parts, 1, 3, 6 and 8."""
    prompt = tiny.prompter(loaded, count=4)(tiny.case("a", volume(10)))
    assert text_of(loaded, prompt) == BEFORE + picture(4) * 4 + "What is on this?" + AFTER
    assert prompt.grids is not None and prompt.grids.tolist() == [[1, 4, 4]] * 4
    assert prompt.pixel_values is not None
    mean, std = loaded.processor.image_processor.image_mean[0], loaded.processor.image_processor.image_std[0]
    red = prompt.pixel_values.view(4, 16, -1)[:, :, 0]  # [frame, patch]: one red pixel each
    brightness = (red * std + mean) * 255
    torch.testing.assert_close(brightness, torch.tensor([10.0, 30.0, 60.0, 80.0])[:, None].expand(4, 16))
    assert len(prompt.geometries) == 1  # one per medium, not per frame


def test_a_short_volume_gives_what_it_has(loaded: Loaded) -> None:
    prompt = tiny.prompter(loaded, count=4)(tiny.case("a", volume(2)))
    assert prompt.grids is not None and len(prompt.grids) == 2


def test_pictures_come_from_files_under_the_root(loaded: Loaded, tmp_path: Path) -> None:
    medium = tiny.picture(3, 56, 84)
    assert medium.array is not None
    Image.fromarray(medium.array).save(tmp_path / "x.png")
    encode = tiny.prompter(loaded, tmp_path)
    found, expected = encode(tiny.case("a", Medium("image", "x.png"))), encode(tiny.case("a", medium))
    assert found.pixel_values is not None and expected.pixel_values is not None
    assert torch.equal(found.pixel_values, expected.pixel_values)
    assert torch.equal(found.token_ids, expected.token_ids)


@pytest.mark.parametrize(
    "media",
    [
        (),
        (tiny.picture(1, 56, 112),),
        (tiny.picture(1, 84, 28), tiny.picture(2, 56, 84)),
        (tiny.picture(1), tiny.ecg(1), tiny.picture(2, 28, 84)),
    ],
)
def test_positions_are_those_of_transformers(media: tuple[Medium, ...], loaded: Loaded) -> None:
    """Of its own get_rope_index with the image tokens marked, and of the rule by hand."""
    prompt = tiny.prompter(loaded)(tiny.case("a", *media))
    kinds = torch.zeros(1, len(prompt.token_ids), dtype=torch.int)
    kinds[0, slots_of(loaded, prompt, IMAGE)] = 1
    model: Any = loaded.policy.model
    expected, _ = model.model.get_rope_index(prompt.token_ids[None], kinds, image_grid_thw=prompt.grids)
    assert torch.equal(prompt.positions, expected[:, 0])
    assert torch.equal(prompt.positions, tiny.positions_by_hand(prompt))
    assert prompt.start == prompt.positions.max() + 1
    assert (prompt.start < len(prompt.token_ids)) == bool(media)


def test_positions_by_hand(loaded: Loaded) -> None:
    """Three header tokens and a start token, then 2 x 3 cells from 4 on; the text goes on behind the longer side."""
    prompt = tiny.prompter(loaded)(tiny.case("a", tiny.picture(1, 56, 84)))
    first = slots_of(loaded, prompt, IMAGE)[0]
    cells = prompt.positions[:, first : first + 6] - first
    assert cells.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert prompt.positions[:, first + 6].tolist() == [first + 3] * 3


# ---- places in the question


def test_markers_place_media_and_the_rest_stand_in_front(loaded: Loaded) -> None:
    media = (tiny.picture(1, 28, 56), tiny.ecg(1), tiny.picture(2, 56, 56))
    prompt = tiny.prompter(loaded)(tiny.case("a", *media, text="Before <ecg> came <image>. Now?"))
    span = f"<|ecg_start|>{ECG * 3}<|ecg_end|>"
    assert text_of(loaded, prompt) == BEFORE + picture(2) + "Before " + span + " came " + picture(4) + ". Now?" + AFTER
    assert prompt.grids is not None and prompt.grids.tolist() == [[1, 2, 4], [1, 4, 4]]
    assert [geometry and geometry.height for geometry in prompt.geometries] == [28, None, 56]


def test_more_markers_than_media_name_the_row(loaded: Loaded) -> None:
    with pytest.raises(DataError, match=r"row-7: .*more places (.|\n)*2 markers <image>"):
        tiny.prompter(loaded)(tiny.case("row-7", tiny.picture(1), text="<image> and <image>"))


# ---- what is refused


def test_an_unknown_modality_names_the_row_and_the_mend(loaded: Loaded) -> None:
    with pytest.raises(MediaError) as caught:
        tiny.prompter(loaded)(tiny.case("row-7", Medium("genome", "x.vcf")))
    (problem,) = caught.value.problems
    assert (problem.where, problem.got) == ("row-7", "x.vcf")
    assert "'genome'" in problem.what
    assert problem.expected == "one of ecg, image, video, volume"
    assert "encoders: {genome:" in problem.mend and "data.modalities" in problem.mend


@pytest.mark.parametrize(
    "medium",
    [
        Medium("image", "missing.png"),
        Medium("image", array=np.zeros((10, 10), dtype=np.uint8)),
        Medium("image", array=np.zeros((1, 500, 3), dtype=np.uint8)),  # a strip: no grid fits
        Medium("ecg", array=np.full((12, 200), np.nan, dtype=np.float32)),
        Medium("ecg", array=np.zeros((5, 200), dtype=np.float32)),
        Medium("ecg", "missing"),
    ],
)
def test_bad_media_name_the_row(medium: Medium, loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        tiny.prompter(loaded, tmp_path)(tiny.case("row-7", medium))
    assert [problem.where for problem in caught.value.problems] == ["row-7"]
    assert caught.value.problems[0].got


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|ecg_pad|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>"])
def test_a_special_token_in_a_question_is_refused(token: str, loaded: Loaded) -> None:
    with pytest.raises(DataError) as caught:
        tiny.prompter(loaded)(tiny.case("row-7", tiny.picture(1), text=f"What {token}is this?"))
    (problem,) = caught.value.problems
    assert (problem.where, problem.got) == ("row-7", token)
    assert "special token" in problem.what and problem.mend


def test_an_unknown_task_names_the_row(loaded: Loaded) -> None:
    with pytest.raises(DataError, match="row-7: unknown task 'sing'"):
        tiny.prompter(loaded)(replace(tiny.case("row-7"), task="sing"))


def test_a_chat_template_without_pictures_is_refused(loaded: Loaded) -> None:
    """It would drop them in silence."""
    bare = tiny.load()
    bare.processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(DataError, match="row-7.*chat template") as caught:
        tiny.prompter(bare)(tiny.case("row-7", tiny.picture(1)))
    assert caught.value.problems[0].got == "the text has 0 placeholders <|image_pad|> for 1 media"
    with pytest.raises(DataError, match=r"row-7(.|\n)*0 placeholders <\|ecg_pad\|> for 1 media"):
        tiny.prompter(bare)(tiny.case("row-7", tiny.ecg(1)))


# ---- boxes


@pytest.mark.parametrize(("height", "width"), [(84, 84), (60, 100), (400, 200)])
def test_boxes_round_trip_through_the_geometry_of_the_prompt(height: int, width: int, loaded: Loaded) -> None:
    """Written in pixels of the resized picture, read back within half of one."""
    encode = tiny.prompter(loaded)
    prompt = encode(tiny.case("a", tiny.ecg(1), tiny.picture(1, height, width)))
    frame = encode.frame(prompt)
    geometry = prompt.geometries[1]
    assert geometry is not None
    box = Box(0.1, 0.25, 0.6, 0.9, medium=1)
    numbers = frame.write(box)
    assert numbers == [
        round(0.1 * geometry.resized_width),
        round(0.25 * geometry.resized_height),
        round(0.6 * geometry.resized_width),
        round(0.9 * geometry.resized_height),
    ]
    half = 0.5 / min(geometry.resized_height, geometry.resized_width)
    assert frame.read(numbers, 1) == pytest.approx((0.1, 0.25, 0.6, 0.9), abs=half)
    with pytest.raises(ValueError, match="no picture"):
        frame.read(numbers, 0)
