"""Procedural clinical phantoms: eight vision domains, one lesion a case, its label visible as polarity and texture.

Every pixel is drawn from a random generator and nothing is read, so a case is a pure function of (seed, index):
``draw(domain, np.random.default_rng((seed, index)))``. The same look means different things in different domains, as
in the clinic: a dark mottled lesion is a melanoma on the skin and a malignancy on ultrasound.

Two choices make these phantoms learnable by a policy of a million parameters in minutes:
- a lesion fills one cell of 28 px, which is one merged vision token (2 x 2 patches of 14 px);
- a coloured light, red from the right and blue from below, marks where in the image a patch lies. It multiplies, so a
  lesion carries the mark of its place in its own colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SIDE_PX = 84
CELL_PX = 28
SLICES = 6
ROWS = ("upper", "middle", "lower")
COLUMNS = ("left", "central", "right")
SCENERY = 0.5  # how strongly the anatomy shows
LIGHT = 0.8  # red and blue are multiplied by 1 - LIGHT/2 .. 1 + LIGHT/2 across the image
CONTRAST = (0.25, 0.38)  # a lesion against its background, in full intensities
NOISE = 0.04  # standard deviation of the pixel noise, in full intensities
BLOCK_PX = 7  # a mottled lesion is a chequered pattern of blocks of this side


@dataclass(frozen=True)
class Finding:
    """One label of a domain: how often it occurs there and what it looks like."""

    label: str
    share: float  # of the domain's cases; a domain's shares sum to 1
    polarity: str  # "bright" or "dark"
    texture: str  # a case of _texture


@dataclass(frozen=True)
class Domain:
    """A vision domain: its share of all cases, its look, its findings."""

    name: str
    share: float  # of all cases; with heartbeat.SHARE the nine domains sum to 1
    tint: tuple[float, float, float]  # red, green, blue; added to the background
    level: float  # background intensity, 0..1
    scene: str  # a name in SCENES: the anatomy behind the lesion
    findings: tuple[Finding, ...]
    slices: int = 0  # 0: one image; otherwise a volume of so many slices

    @property
    def label_space(self) -> tuple[str, ...]:
        return tuple(finding.label for finding in self.findings)


@dataclass(frozen=True)
class Phantom:
    """One drawn case. ``look`` is a sentence of true attributes; left and right are those of the image."""

    domain: str
    label: str
    label_space: tuple[str, ...]
    image: npt.NDArray[np.uint8]  # [S, S, 3], or [N, S, S, 3] for a volume of N slices; S = SIDE_PX
    mask: npt.NDArray[np.bool_]  # [S, S]; True: the lesion. In a volume the same in every slice
    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, x2 and y2 exclusive: the mask's bounding box
    look: str


DOMAINS: tuple[Domain, ...] = (
    Domain("chest_xray", 0.36, (0.0, 0.0, 0.0), 0.48, "lungs", (
        Finding("nodule", 0.32, "bright", "round"),
        Finding("effusion", 0.22, "bright", "solid"),
        Finding("cavity", 0.16, "bright", "ringed"),
        Finding("pneumothorax", 0.15, "dark", "solid"),
        Finding("edema", 0.15, "bright", "striped"),
    )),
    Domain("ct", 0.16, (-0.03, -0.03, 0.04), 0.47, "trunk", (
        Finding("stone", 0.38, "bright", "round"),
        Finding("cyst", 0.34, "dark", "round"),
        Finding("carcinoma", 0.28, "bright", "mottled"),
    ), slices=SLICES),
    Domain("mri", 0.12, (-0.06, 0.0, 0.06), 0.46, "skull", (
        Finding("meningioma", 0.38, "bright", "solid"),
        Finding("glioma", 0.34, "bright", "ringed"),
        Finding("infarct", 0.28, "dark", "solid"),
    ), slices=SLICES),
    Domain("pathology", 0.10, (0.06, -0.12, 0.06), 0.50, "tissue", (
        Finding("tumor", 0.38, "dark", "mottled"),
        Finding("stroma", 0.34, "dark", "striped"),
        Finding("necrosis", 0.28, "bright", "solid"),
    )),
    Domain("dermoscopy", 0.08, (0.10, 0.0, -0.08), 0.49, "skin", (
        Finding("nevus", 0.40, "dark", "round"),
        Finding("melanoma", 0.34, "dark", "mottled"),
        Finding("keratosis", 0.26, "dark", "ringed"),
    )),
    Domain("fundus", 0.06, (0.12, -0.04, -0.12), 0.48, "retina", (
        Finding("drusen", 0.38, "bright", "round"),
        Finding("hemorrhage", 0.34, "dark", "solid"),
        Finding("exudate", 0.28, "bright", "mottled"),
    )),
    Domain("mammography", 0.03, (-0.04, 0.06, -0.04), 0.47, "breast", (
        Finding("mass", 0.38, "bright", "solid"),
        Finding("calcification", 0.34, "bright", "mottled"),
        Finding("distortion", 0.28, "bright", "striped"),
    )),
    Domain("ultrasound", 0.03, (-0.08, -0.02, 0.08), 0.46, "fan", (
        Finding("cyst", 0.38, "dark", "round"),
        Finding("fibroadenoma", 0.34, "dark", "solid"),
        Finding("malignancy", 0.28, "dark", "mottled"),
    )),
)  # fmt: skip


# ---------------------------------------------------------------- what is behind the lesion
def _lungs(x: Floats, y: Floats) -> Floats:
    left, right = ((x + s * 0.24) ** 2 / 0.035 + y**2 / 0.14 < 1 for s in (1, -1))
    return np.where(left | right, -0.08, 0.04)


def _trunk(x: Floats, y: Floats) -> Floats:
    spine = np.exp(-(x**2 + (y - 0.35) ** 2) / 0.004)
    return 0.12 * spine - np.where(x**2 / 0.25 + y**2 / 0.16 > 1, 0.10, 0.0)


def _skull(x: Floats, y: Floats) -> Floats:
    radius = np.hypot(x / 0.42, y / 0.48)
    skull: Floats = 0.12 * np.exp(-((radius - 1) ** 2) / 0.004)
    return skull - np.where(radius > 1.1, 0.10, 0.0)


def _tissue(x: Floats, y: Floats) -> Floats:
    return np.asarray(np.sin(38 * x + 5 * np.sin(9 * y)) * np.sin(34 * y) * 0.06)


def _skin(x: Floats, y: Floats) -> Floats:
    return 0.02 * np.sin(60 * (x + y)) - 0.35 * (x**2 + y**2)


def _retina(x: Floats, y: Floats) -> Floats:
    disc = np.exp(-((x - 0.22) ** 2 + y**2) / 0.006)
    vessels = np.exp(-((np.abs(y) - 0.55 * np.sqrt(np.clip(0.3 - x, 0, None))) ** 2) / 0.0004)
    return 0.10 * disc - 0.06 * vessels - 0.12 * (np.hypot(x, y) > 0.5)


def _breast(x: Floats, y: Floats) -> Floats:
    return 0.08 * np.exp(-((x + 0.2) ** 2 + y**2) / 0.05) - 0.12 * ((x + 0.5) ** 2 / 0.8 + y**2 / 0.22 > 1)


def _fan(x: Floats, y: Floats) -> Floats:
    depth = np.hypot(x, y + 0.8)
    return np.asarray(0.05 * np.sin(45 * depth) - 0.10 * (np.abs(x) > 0.75 * (y + 0.8)))


Scene = Callable[[Floats, Floats], Floats]
SCENES: tuple[tuple[str, Scene], ...] = (
    ("lungs", _lungs), ("trunk", _trunk), ("skull", _skull), ("tissue", _tissue),
    ("skin", _skin), ("retina", _retina), ("breast", _breast), ("fan", _fan),
)  # fmt: skip


# ---------------------------------------------------------------- the lesion
def _cell_grid() -> tuple[Floats, Floats]:
    """Coordinates of a cell's pixel centres: y and x, each [CELL_PX, CELL_PX], in -1..1."""
    step = (np.arange(CELL_PX) - (CELL_PX - 1) / 2) / (CELL_PX / 2)
    y, x = np.meshgrid(step, step, indexing="ij")
    return y, x


def _texture(name: str) -> Floats:
    """How strongly each pixel of the cell shows the lesion: [CELL_PX, CELL_PX] in 0..1."""
    y, x = _cell_grid()
    radius = np.hypot(y, x)
    match name:
        case "solid":
            return np.ones_like(radius)
        case "round":
            return np.where(radius < 0.62, 1.0, 0.1)
        case "ringed":
            return np.where((radius > 0.6) & (radius < 1.05), 1.0, 0.0)
        case "striped":
            stripes = (np.arange(CELL_PX) // 3 % 2 == 0).astype(np.float64)
            return np.repeat(stripes[:, None], CELL_PX, axis=1)
        case "mottled":
            block = np.arange(CELL_PX) // BLOCK_PX
            return ((block[:, None] + block[None, :]) % 2).astype(np.float64)
    raise ValueError(f"no texture named {name!r}")


def _outline() -> npt.NDArray[np.bool_]:
    """The lesion's extent in its cell, [CELL_PX, CELL_PX]: a rounded square that touches all four sides."""
    y, x = _cell_grid()
    return x**4 + y**4 < 1


# ---------------------------------------------------------------- cases
def find(name: str) -> Domain:
    """The vision domain of that name."""
    for domain in DOMAINS:
        if domain.name == name:
            return domain
    raise ValueError(f"no phantom domain {name!r}: one of {', '.join(d.name for d in DOMAINS)}")


def _expose(scene: Floats, tint: tuple[float, float, float], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Intensities [S, S] to a picture [S, S, 3]: tint, coloured light, noise, eight bits."""
    step = np.arange(SIDE_PX) / (SIDE_PX - 1) - 0.5
    picture = scene[..., None] + np.array(tint)
    picture[..., 0] *= 1 + LIGHT * step[None, :]
    picture[..., 2] *= 1 + LIGHT * step[:, None]
    picture += NOISE * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.asarray(picture.clip(0, 1) * 255, dtype=np.uint8)


def draw(domain: str, rng: np.random.Generator, strength: float = 1.0) -> Phantom:
    """Draws one case of a vision domain. It depends on the generator's state and on `strength` alone: the part of the
    full contrast that the lesion has."""
    kind = find(domain)
    finding = kind.findings[rng.choice(len(kind.findings), p=[f.share for f in kind.findings])]
    row, column = (int(v) for v in rng.integers(0, SIDE_PX // CELL_PX, 2))
    x1, y1 = column * CELL_PX, row * CELL_PX
    inside = (slice(y1, y1 + CELL_PX), slice(x1, x1 + CELL_PX))

    step = np.arange(SIDE_PX) / (SIDE_PX - 1) - 0.5
    y, x = np.meshgrid(step, step, indexing="ij")
    background = kind.level + SCENERY * dict(SCENES)[kind.scene](x, y)
    contrast = (1.0 if finding.polarity == "bright" else -1.0) * rng.uniform(*CONTRAST) * strength
    lesion = contrast * _texture(finding.texture) * _outline()

    def expose(fade: float) -> npt.NDArray[np.uint8]:
        scene = background.copy()
        scene[inside] += fade * lesion
        return _expose(scene, kind.tint, rng)

    # A volume's lesion is strongest in the middle slices and never vanishes.
    depth = np.linspace(-1, 1, kind.slices)
    image = np.stack([expose(1 - 0.25 * d * d) for d in depth]) if kind.slices else expose(1.0)

    mask = np.zeros((SIDE_PX, SIDE_PX), dtype=np.bool_)
    mask[inside] = _outline()
    look = f"A {finding.polarity} {finding.texture} lesion, {ROWS[row]} {COLUMNS[column]}."
    box = (x1, y1, x1 + CELL_PX, y1 + CELL_PX)
    return Phantom(domain, finding.label, kind.label_space, image, mask, box, look)
