"""Procedural 12-lead electrocardiograms whose rhythm or morphology carries the label.

A beat is a sum of Gaussian waves (P, Q, R, S, T, and a slurred second R where conduction is blocked), each with its own
amplitude in every lead; beats are laid along the record by their RR intervals. Eight leads are drawn (I, II, V1..V6);
the other four are Einthoven's and Goldberger's sums of I and II, noise included, so the relations hold exactly.

A record is a pure function of (seed, index): ``record(np.random.default_rng((seed, index)))``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DOMAIN = "ecg"
SHARE = 0.06  # of all cases, see phantoms.DOMAINS
RATE_HZ = 250.0
DURATION_S = 10.0
SAMPLES = 2500
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
NOISE_MV = 0.02  # standard deviation of the muscle noise
WANDER_MV = 0.08  # amplitude of the baseline wander
WANDER_HZ = (0.15, 0.4)
ST_LEAD_MV = (0.0, 0.10, 0.10, 0.25, 0.35, 0.30, 0.20, 0.10)  # an anterior injury, in the drawn leads
FLUTTER_HZ = (5.0, 8.0)  # fibrillatory waves


@dataclass(frozen=True)
class Wave:
    """One Gaussian wave of a beat: when, how wide, how high in each drawn lead (I, II, V1..V6)."""

    name: str
    centre_s: float  # from the R peak
    width_s: float  # standard deviation
    lead_mv: tuple[float, float, float, float, float, float, float, float]


@dataclass(frozen=True)
class Rhythm:
    """One label: how often it occurs, its rate, what its beats are made of, and the words for it."""

    label: str
    share: float  # the shares sum to 1
    rate_bpm: tuple[float, float]
    look: str
    irregularity: float = 0.03  # standard deviation of an RR interval, as a part of the mean interval
    atrial: bool = True  # P waves; False: fibrillatory waves instead
    wide: bool = False  # a blocked bundle: QRS over 120 ms
    st_scale: float = 0.0  # of ST_LEAD_MV


@dataclass(frozen=True)
class Heartbeat:
    """One drawn record. ``look`` is a sentence of true attributes."""

    label: str
    label_space: tuple[str, ...]
    signal_mv: npt.NDArray[np.float32]  # [12, 2500]: LEADS x samples at RATE_HZ
    rate_hz: float
    look: str


NARROW: tuple[Wave, ...] = (
    Wave("P", -0.16, 0.022, (0.10, 0.15, 0.08, 0.09, 0.10, 0.10, 0.10, 0.10)),
    Wave("Q", -0.025, 0.009, (-0.06, -0.08, 0.0, 0.0, -0.04, -0.08, -0.10, -0.10)),
    Wave("R", 0.0, 0.011, (0.70, 1.10, 0.25, 0.45, 0.80, 1.30, 1.20, 0.95)),
    Wave("S", 0.028, 0.011, (-0.10, -0.15, -0.90, -1.10, -0.70, -0.40, -0.20, -0.08)),
    Wave("T", 0.26, 0.045, (0.20, 0.30, -0.05, 0.30, 0.35, 0.35, 0.30, 0.25)),
)
WIDE: tuple[Wave, ...] = (  # left bundle branch block: broad notched R laterally, deep S in V1, T against the QRS
    Wave("P", -0.18, 0.022, (0.10, 0.15, 0.08, 0.09, 0.10, 0.10, 0.10, 0.10)),
    Wave("R", -0.025, 0.026, (0.65, 0.60, 0.08, 0.10, 0.30, 0.70, 0.90, 0.90)),
    Wave("R'", 0.045, 0.026, (0.70, 0.60, 0.0, 0.0, 0.25, 0.75, 1.00, 0.95)),
    Wave("S", 0.015, 0.034, (0.0, 0.0, -1.20, -1.50, -0.90, -0.30, 0.0, 0.0)),
    Wave("T", 0.30, 0.055, (-0.25, -0.20, 0.35, 0.45, 0.30, -0.10, -0.25, -0.25)),
)
RHYTHMS: tuple[Rhythm, ...] = (
    Rhythm("sinus rhythm", 0.28, (60, 90), "A normal regular rate, P waves, narrow complexes, level ST."),
    Rhythm("tachycardia", 0.20, (115, 150), "A fast regular rate, P waves, narrow complexes, level ST."),
    Rhythm("fibrillation", 0.20, (105, 135), "A fast irregular rate, no P waves, narrow complexes, level ST.",
           irregularity=0.22, atrial=False),
    Rhythm("bundle block", 0.16, (60, 90), "A normal regular rate, P waves, wide complexes, level ST.", wide=True),
    Rhythm("infarction", 0.16, (60, 90), "A normal regular rate, P waves, narrow complexes, raised ST.", st_scale=1.0),
)  # fmt: skip
LABEL_SPACE: tuple[str, ...] = tuple(rhythm.label for rhythm in RHYTHMS)


def _peaks_s(rhythm: Rhythm, rate_bpm: float, rng: np.random.Generator) -> Floats:
    """Times of the R peaks [beats], from before the record's start to after its end."""
    mean_s = 60.0 / rate_bpm
    beats = int(DURATION_S / mean_s * 1.6) + 4
    spread = rhythm.irregularity * rng.standard_normal(beats)
    intervals_s = mean_s * np.clip(1 + spread, 0.55, 1.7)
    peaks_s: Floats = np.cumsum(intervals_s) - mean_s * (1 + rng.random())
    return peaks_s[(peaks_s > -1) & (peaks_s < DURATION_S + 1)]


def _bumps(time_s: Floats, centres_s: Floats, width_s: float) -> Floats:
    """A Gaussian of height 1 at each centre, summed: [samples]."""
    apart = (time_s[None, :] - centres_s[:, None]) / width_s
    return np.asarray(np.exp(-0.5 * apart**2).sum(0), dtype=np.float64)


def _beats_mv(rhythm: Rhythm, time_s: Floats, rng: np.random.Generator) -> Floats:
    """The heart's own signal in the drawn leads: [8, samples]."""
    rate_bpm = rng.uniform(*rhythm.rate_bpm)
    peaks_s = _peaks_s(rhythm, rate_bpm, rng)
    late = min(1.0, np.sqrt(75.0 / rate_bpm))  # repolarisation comes sooner in a fast heart (Bazett)
    signal = np.zeros((8, SAMPLES))
    for wave in WIDE if rhythm.wide else NARROW:
        if wave.name == "P" and not rhythm.atrial:
            continue
        centre_s = wave.centre_s * (late if wave.name == "T" else 1.0)
        signal += np.outer(wave.lead_mv, _bumps(time_s, peaks_s + centre_s, wave.width_s))
    if rhythm.st_scale:
        plateau = _bumps(time_s, peaks_s + 0.09, 0.03) + _bumps(time_s, peaks_s + 0.16, 0.04)
        signal += rhythm.st_scale * np.outer(ST_LEAD_MV, plateau)
    if not rhythm.atrial:
        phase = 2 * np.pi * (rng.uniform(*FLUTTER_HZ) * time_s + rng.random())
        lead_mv = np.array((0.03, 0.06, 0.10, 0.07, 0.04, 0.03, 0.03, 0.03))
        signal += np.outer(lead_mv, np.sin(phase + 1.5 * np.sin(0.37 * phase)))
    return signal * rng.uniform(0.85, 1.15)  # one heart's voltage


def _artefacts_mv(time_s: Floats, rng: np.random.Generator, noise: float) -> Floats:
    """Muscle noise (`noise` times NOISE_MV) and baseline wander in the drawn leads: [8, samples]."""
    phase = 2 * np.pi * (rng.uniform(*WANDER_HZ) * time_s[None, :] + rng.random((8, 1)))
    wander = WANDER_MV * rng.uniform(0.3, 1.0, (8, 1)) * np.sin(phase)
    return wander + noise * NOISE_MV * rng.standard_normal((8, SAMPLES))


def twelve_leads(drawn_mv: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """I, II, V1..V6 [8, samples] to LEADS [12, samples], in millivolts: III, aVR, aVL and aVF follow from I and II."""
    one, two = drawn_mv[0], drawn_mv[1]
    half = np.float32(0.5)
    limbs = (one, two, two - one, -half * (one + two), one - half * two, two - half * one)
    return np.concatenate([np.stack(limbs), drawn_mv[2:]]).astype(np.float32)


def record(rng: np.random.Generator, noise: float = 1.0) -> Heartbeat:
    """Draws one record. It depends on the generator's state and on `noise` alone, the factor of the muscle noise."""
    rhythm = RHYTHMS[rng.choice(len(RHYTHMS), p=[r.share for r in RHYTHMS])]
    time_s = np.arange(SAMPLES) / RATE_HZ
    drawn_mv = _beats_mv(rhythm, time_s, rng) + _artefacts_mv(time_s, rng, noise)
    signal_mv = twelve_leads(drawn_mv.astype(np.float32))
    return Heartbeat(rhythm.label, LABEL_SPACE, signal_mv, RATE_HZ, rhythm.look)
