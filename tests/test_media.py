"""Media: every kind loads right, and every bad file is one MediaError with its path."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qoqmed.errors import DataError, MediaError, UserError
from qoqmed.media import frames, image, masks, refusals
from qoqmed.media.paths import resolve
from qoqmed.types import Box, Mask, Medium


def picture(root, name, frames_wanted=4, modality="image"):
    return frames.load(Medium(modality, name), root, frames_wanted)


# ---------------------------------------------------------------- paths
def test_paths_inside_the_root_resolve(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(tmp_path / "a/x.png")
    assert resolve(tmp_path, "a/x.png") == tmp_path / "a/x.png"
    assert resolve(tmp_path, str(tmp_path / "a/x.png")) == tmp_path / "a/x.png"
    assert resolve(tmp_path, "link.png") == tmp_path / "link.png"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../x.png", "'..'"),
        ("a/../../x.png", "'..'"),
        ("/etc/hostname", "leaves the data root"),
        ("out.png", "leaves the data root"),
        ("folder", "leaves the data root"),
        ("loop", "does not exist"),
        ("http://host/x.png", "URL"),
        ("HTTPS://host/x.png", "URL"),
        ("s3://bucket/x.png", "URL"),
        ("file:///etc/hostname", "URL"),
        ("data:image/png;base64,AAAA", "URL"),
        ("", "no path"),
        ("a\0b", "no path"),
        ("missing.png", "does not exist"),
        ("x" * 5000, "path"),
        ("pipe", "neither a file nor a folder"),
    ],
)
def test_paths_that_are_refused(tmp_path, path, said):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "folder").mkdir(parents=True)
    outside.mkdir()
    (outside / "x.png").write_bytes(b"x")
    (root / "out.png").symlink_to(outside / "x.png")
    (root / "folder/000.dcm").symlink_to(outside / "x.png")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    with pytest.raises(MediaError, match=said) as error:
        resolve(root, path)
    assert error.value.problems[0].got and not error.value.problems[0].where


def test_a_signal_file_that_leaves_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "root/r.hea").write_text("r 0")
    (tmp_path / "root/r.dat").symlink_to(tmp_path / "secret")
    with pytest.raises(MediaError, match="leaves the data root"):
        resolve(tmp_path / "root", "r")


def test_of_row_names_the_row_and_keeps_the_type():
    with pytest.raises(MediaError, match="case-7: gone") as error, refusals.of_row("case-7"):
        raise refusals.refused("gone", "x.png")
    assert error.value.problems[0].where == "case-7" and error.value.problems[0].got == "x.png"


def test_a_missing_extra_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install 'qoqmed\[imaging\]'") as error:
        refusals.need("no_such_reader", "imaging")
    assert not isinstance(error.value, DataError)


# ---------------------------------------------------------------- images
MODES = {
    "png": ["1", "L", "P", "RGB", "LA", "RGBA"],
    "jpg": ["L", "RGB", "CMYK", "YCbCr"],
    "tiff": ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA"],
}


@pytest.mark.parametrize(("ending", "mode"), [(ending, mode) for ending in MODES for mode in MODES[ending]])
def test_every_mode_becomes_rgb(tmp_path, mode, ending):
    level = 255 if mode == "1" else 200
    Image.new("L", (6, 4), level).convert("RGB" if mode in ("CMYK", "YCbCr") else "L").convert(mode).save(
        tmp_path / f"x.{ending}"
    )
    (loaded,) = picture(tmp_path, f"x.{ending}")
    assert loaded.shape == (4, 6, 3) and loaded.dtype == np.uint8 and loaded.flags.writeable
    assert abs(loaded.astype(int) - level).max() <= 2


def test_the_format_comes_from_the_bytes(tmp_path):
    Image.new("RGB", (5, 3), (9, 8, 7)).save(tmp_path / "x.jpg", format="PNG")
    assert (image.load(tmp_path / "x.jpg") == (9, 8, 7)).all()


def test_transparency_is_composed_on_black(tmp_path):
    pixels = np.full((2, 2, 4), 200, dtype=np.uint8)
    pixels[..., 3] = [[255, 0], [255, 0]]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert image.load(tmp_path / "x.png")[..., 0].tolist() == [[200, 0], [200, 0]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif, quality=95)
    loaded = image.load(tmp_path / "x.jpg")
    assert loaded.shape == (16, 8, 3)
    assert loaded[:6].mean() > 240 and loaded[10:].mean() < 15


def test_sixteen_bits_are_windowed(tmp_path):
    grey = np.linspace(1000, 3000, 64 * 64).astype(np.uint16).reshape(64, 64)  # a twelve-bit radiograph
    Image.fromarray(grey).save(tmp_path / "x.png")
    loaded = image.load(tmp_path / "x.png")[..., 0]
    assert loaded.min() == 0 and loaded.max() == 255 and abs(int(loaded[32, 0]) - 128) <= 2


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 60_000])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, side):
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(MediaError, match="too large"):
        picture(tmp_path, "bomb.png")
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "content", [b"", b"no image", png_header(8, 8), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"]
)
def test_corrupt_images_are_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(MediaError, match="cannot be read") as error:
        picture(tmp_path, "x.png")
    assert str(tmp_path / "x.png") in error.value.problems[0].got


def test_truncated_images_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for ending in ("png", "jpg"):
        Image.fromarray(noise).save(tmp_path / f"whole.{ending}")
        whole = (tmp_path / f"whole.{ending}").read_bytes()
        (tmp_path / f"cut.{ending}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(MediaError, match="truncated|cannot be read"):
            picture(tmp_path, f"cut.{ending}")


def test_several_pages_are_refused(tmp_path):
    pages = [Image.new("L", (4, 4), value) for value in (1, 2)]
    pages[0].save(tmp_path / "x.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(MediaError, match="2 pages"):
        picture(tmp_path, "x.tiff")


@given(st.binary(max_size=200), st.sampled_from(["x.png", "x.nii.gz", "x.mp4"]))
def test_noise_is_always_a_media_error(tmp_path_factory, content, name):
    root = tmp_path_factory.mktemp("noise")
    (root / name).write_bytes(content)
    modality = {"x.png": "image", "x.nii.gz": "volume", "x.mp4": "video"}[name]
    with pytest.raises(MediaError):
        picture(root, name, modality=modality)


# ---------------------------------------------------------------- arrays, kinds
def test_arrays_in_memory():
    still = np.zeros((4, 5, 3), dtype=np.uint8)
    stack = np.stack([np.full((4, 5, 3), i, dtype=np.uint8) for i in range(10)])
    assert len(frames.load(Medium("image", array=still), ".", 4)) == 1
    assert [int(one[0, 0, 0]) for one in frames.load(Medium("volume", array=stack), ".", 2)] == [2, 7]
    for medium in (Medium("image", array=stack), Medium("video", array=still), Medium("image", array=still / 2)):
        with pytest.raises(MediaError, match="uint8"):
            frames.load(medium, ".", 4)
    with pytest.raises(MediaError, match="no pictures"):
        frames.load(Medium("ecg", "x"), ".", 4)
    with pytest.raises(MediaError, match="neither path nor array"):
        frames.load(Medium("image"), ".", 4)


def test_wrong_kinds_are_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediaError, match="folder"):
        picture(tmp_path, "folder")
    with pytest.raises(MediaError, match="no known kind"):
        picture(tmp_path, "x.png", 4, "volume")


# ---------------------------------------------------------------- masks
def test_masks_of_pictures(tmp_path):
    inside = np.zeros((6, 8), dtype=bool)
    inside[1:3, 2:5] = True
    for name, pixels in {
        "binary.png": inside * np.uint8(255),
        "classes.png": inside * np.uint8(3),
        "colour.png": np.repeat((inside * np.uint8(9))[..., None], 3, axis=-1),
        "wide.png": inside * np.uint16(300),
        "alpha.png": np.dstack([inside * np.uint8(9)] * 3 + [np.full_like(inside, 255, dtype=np.uint8)]),
    }.items():
        Image.fromarray(pixels).save(tmp_path / name)
        assert (masks.load(Mask(name), tmp_path) == inside).all(), name
    Image.fromarray(inside * np.uint8(1)).convert("P").save(tmp_path / "palette.png")
    assert (masks.load(Mask("palette.png"), tmp_path) == inside).all()
    Image.fromarray(inside * np.uint8(255)).save(tmp_path / "x.jpg")
    with pytest.raises(MediaError):
        masks.load(Mask("x.jpg"), tmp_path)


def test_boxes_of_masks_are_tight_and_normalised():
    inside = np.zeros((4, 10), dtype=bool)
    inside[1:3, 2:5] = True
    assert masks.boxes_of_mask(inside, "lesion", 1) == (Box(0.2, 0.25, 0.5, 0.75, "lesion", 1),)
    assert masks.boxes_of_mask(np.zeros((4, 4), dtype=bool)) == ()


def test_media_load_no_torch():
    code = "import sys, qoqmed.media.frames, qoqmed.media.masks, qoqmed.media.ecg; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
