"""Media given by hand: words of the command line, and files that are opened where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qoqmed import config
from qoqmed.errors import Problem, UserError, near
from qoqmed.media.paths import resolve
from qoqmed.media.refusals import of_row
from qoqmed.media.window import Pixels
from qoqmed.policy.processor import ClinicalProcessor
from qoqmed.types import SPATIAL, Medium

OPTIONS = ("domain", "label", "overlay", "max-new-tokens", "temperature", "seed", "raw", "json")  # of the command

Given = Medium | tuple[str, str | Path | npt.NDArray[Any]]  # modality with a file, or an array as `Medium` holds it
Place = tuple[Path, str]  # a folder, and a name in it


def split_words(words: Sequence[str]) -> tuple[str, str, tuple[Medium, ...]]:
    """Words of the command line, `RUN --image F --ecg F --ecg.rate_hz 500 QUESTION` -> target, question, media in their
    order. An option of a medium, after it, says how it is to be read."""
    plain, media = list[str](), list[Medium]()
    for name, value in _pairs(words):
        modality, dot, option = name.partition(".")
        if not name:
            plain.append(value)
        elif not dot:
            media.append(Medium(modality, value))
        else:
            found = [place for place, medium in enumerate(media) if medium.modality == modality]
            if not found:
                raise UserError(Problem("the option stands before its medium", f"--{name}", mend=f"--{modality} FILE"))
            last = media[found[-1]]
            media[found[-1]] = replace(last, options={**last.options, option: config.parse(f"x={value}")[1]})
    if len(plain) > 2:
        mend = "put the question in quotes, and the option before every file: --image a.png --image b.png"
        raise UserError(Problem("too many words", "QUESTION", " | ".join(plain[1:]), "one question", mend))
    if not plain:
        raise UserError(Problem("nothing is named to ask", "RUN|DIR", expected="a run, a model folder or a recipe"))
    return plain[0], plain[1] if len(plain) > 1 else "", tuple(media)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of every option, ("", word) of the others."""
    left = iter(words)
    for word in left:
        name, joined, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            yield "", word
            continue
        value = value if joined else next(left, "")
        if not value or (not joined and value.startswith("--")):
            raise UserError(Problem("the option needs a value", f"--{name}", value, f"--{name} FILE"))
        yield name, value


def medium_of(given: Given) -> Medium:
    """A medium with its path or array."""
    if isinstance(given, Medium):
        return given
    modality, value = given
    return Medium(modality, str(value)) if isinstance(value, str | Path) else Medium(modality, array=np.asarray(value))


def _named(medium: Medium) -> str:
    return f"--{medium.modality} {medium.path or 'array'}"


def place_of(medium: Medium) -> Place | None:
    """Where a medium's file is; None for an array. Raises MediaError where it is not there."""
    if medium.path is None:
        return None
    with of_row(_named(medium)):
        if "://" in medium.path:
            resolve(".", medium.path)  # which refuses it, and says why
        full = Path(medium.path).expanduser().resolve()
        resolve(full.parent, full.name)
    return full.parent, full.name


def overlay_file(path: Path, media: Sequence[Medium]) -> Path:
    """Raises UserError where the overlay could not be written, or would replace a medium."""
    problem, full = None, path.resolve()
    if path.suffix.lower() != ".png":
        problem = Problem("the overlay is a PNG file", "--overlay", str(path), "a name that ends in .png")
    elif not full.parent.is_dir() or path.is_dir():
        problem = Problem("the overlay cannot be written there", "--overlay", str(path), "a file in an existing folder")
    elif any(medium.path is not None and Path(medium.path).expanduser().resolve() == full for medium in media):
        problem = Problem("the overlay would replace a picture that is asked about", "--overlay", str(path))
    elif not any(medium.modality in SPATIAL for medium in media):
        problem = Problem("there is no picture to draw boxes on", "--overlay", expected="--image, --volume or --video")
    if problem is not None:
        raise UserError(problem)
    return path


def decode(
    processor: ClinicalProcessor, media: Sequence[Medium], places: Sequence[Place | None]
) -> tuple[tuple[Medium, ...], dict[int, Sequence[Pixels]]]:
    """The media as arrays, and the pictures [H, W, 3] among them by place. Raises UserError for what the model cannot
    read, MediaError for bad files."""
    known = sorted(SPATIAL | set(processor.readers))
    for medium in media:
        if medium.modality not in known:
            mend = near(medium.modality, [*known, *OPTIONS])
            expected = ", ".join(f"--{name}" for name in known)
            raise UserError(Problem("the model reads no such modality", _named(medium), "", expected, mend))
    loaded, pictures = list[Medium](), dict[int, Sequence[Pixels]]()
    for index, (medium, place) in enumerate(zip(media, places, strict=True)):
        with of_row(_named(medium)):
            if medium.modality in SPATIAL:
                folder, name = place or (Path(), None)
                pictures[index] = processor.pictures(replace(medium, path=name), folder)
                array = pictures[index][0] if medium.modality == "image" else np.stack(pictures[index])
            elif place is None:
                array = np.asarray(medium.array)
            else:
                array = processor.readers[medium.modality].load(resolve(*place), medium.options)
        frames = {"frames": len(array)} if medium.modality in ("volume", "video") else {}  # all of them are shown
        loaded.append(Medium(medium.modality, array=array, options=frames))
    return tuple(loaded), pictures
