"""Media: every kind loads right, and every bad file is one MediaError with its path."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from qoqmed.errors import DataError, MediaError, UserError
from qoqmed.media import frames, image, refusals
from qoqmed.media.paths import resolve
from qoqmed.types import Medium


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
    "tiff": ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA"],
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


UPRIGHT = {  # by hand from EXIF 2.3, tag 0x0112: what is to be done to the stored pixels
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("wide", [False, True])
def test_exif_orientation_is_applied(tmp_path, orientation, wide):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.array([[0, 1, 2], [3, 4, 255]], dtype=np.uint16 if wide else np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    loaded, expected = picture(tmp_path, "x.png")[0][..., 0], UPRIGHT[orientation](pixels)
    assert loaded.shape == expected.shape and (loaded == 255).tolist() == (expected == 255).tolist()
    assert wide or (loaded == expected).all()


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_wide_pixels_are_windowed(tmp_path, mode, dtype):
    grey = np.linspace(1000, 3000, 64 * 64).astype(dtype).reshape(64, 64)  # a twelve-bit radiograph
    Image.fromarray(grey).save(tmp_path / "x.tiff")
    with Image.open(tmp_path / "x.tiff") as file:
        assert file.mode == mode

    def shown(**options):
        (loaded,) = frames.load(Medium("image", "x.tiff", options=options), tmp_path, 4)
        return loaded[..., 0].astype(int)

    assert shown().min() == 0 and shown().max() == 255 and abs(shown()[32, 0] - 128) <= 2
    assert (shown(window=[2000, 2001])[[0, 63], 0] == [0, 255]).all() and shown(window="full")[0, 1] == 0
    with pytest.raises(MediaError, match="'lung' does not apply: the file is no CT"):
        shown(window="lung")
    if mode != "I":  # Pillow reads no such file
        Image.fromarray(grey).save(tmp_path / "white.tiff", tiffinfo={262: 0})  # low is white
        assert (image.load(tmp_path / "white.tiff")[..., 0] == 255 - shown()).all()


def test_a_wide_png_is_windowed(tmp_path):
    grey = np.linspace(1000, 3000, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "x.png")
    loaded = image.load(tmp_path / "x.png")[..., 0]
    assert loaded.min() == 0 and loaded.max() == 255 and abs(int(loaded[32, 0]) - 128) <= 2


@pytest.mark.parametrize("window", ["lung", "robust", [0, 10]])
def test_a_window_on_eight_bits_is_refused(tmp_path, window):
    Image.new("L", (4, 4), 9).save(tmp_path / "x.png")
    with pytest.raises(MediaError, match="8 bits"):
        frames.load(Medium("image", "x.png", options={"window": window}), tmp_path, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e35])
def test_intensities_that_are_no_numbers_are_refused(tmp_path, value):
    grey = np.ones((4, 4), dtype=np.float32)
    grey[1, 2] = value
    Image.fromarray(grey).save(tmp_path / "x.tiff")
    with pytest.raises(MediaError, match="1 of 16 intensities"):
        picture(tmp_path, "x.tiff")


def test_lab_and_palettes_with_transparency(tmp_path):
    """CIE: an L* of 53.6 is the sRGB grey 128 (by hand; TIFF stores L* * 2.55)."""
    lab = Image.merge("LAB", [Image.new("L", (4, 3), level) for level in (137, 128, 128)])
    lab.save(tmp_path / "x.tiff")
    assert abs(image.load(tmp_path / "x.tiff").astype(int) - 128).max() <= 1
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([200, 100, 50, 10, 20, 30])
    palette.save(tmp_path / "x.png", transparency=bytes([255, 0]))
    assert image.load(tmp_path / "x.png").tolist() == [[[200, 100, 50], [0, 0, 0]]]


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


def test_a_tiff_bomb_is_refused_before_decoding(tmp_path):
    """A file of a few kilobytes whose one deflated strip claims, and would give, 3.6 gigapixels."""
    entries = {256: 60_000, 257: 60_000, 258: 8, 259: 8, 262: 1, 273: 200, 277: 1, 278: 60_000, 279: 4000}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + b"\0" * 4
    (tmp_path / "x.tiff").write_bytes(head.ljust(200, b"\0") + zlib.compress(b"\0" * 4_000_000)[:4000])
    with pytest.raises(MediaError, match="too large"):
        picture(tmp_path, "x.tiff")


def test_pipes_do_not_hang_and_row_options_are_told(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name, said in [("pipe.png", "neither a file"), ("device.png", "leaves the data root")]:
        with pytest.raises(MediaError, match=said):
            picture(tmp_path, name)
    with pytest.raises(MediaError, match="neither a file"):
        resolve("/", "dev/zero")


def test_several_pages_are_refused(tmp_path):
    pages = [Image.new("L", (4, 4), value) for value in (1, 2)]
    pages[0].save(tmp_path / "x.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(MediaError, match="2 pages"):
        picture(tmp_path, "x.tiff")


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


def test_media_load_no_torch():
    code = "import sys, qoqmed.media.frames, qoqmed.media.masks, qoqmed.media.ecg; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
