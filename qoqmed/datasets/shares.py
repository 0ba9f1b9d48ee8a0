"""How much of an epoch each domain has, and what a data set's cap makes of its weight.

Temperature tau (Arivazhagan et al. 2019, arXiv:1907.05019, section 4): parts go as size^(1 / tau), scaled to an epoch
of the length that it has without it. 1 leaves the sizes as they are; the larger, the more equal the parts. A domain's
weight multiplies its part, and a domain's cap bounds it; neither is made up for by the other domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from qoqmed.errors import DataError, Problem, near

FINE = 1_000_000  # largest denominator: 0.1 is a tenth, and no more digits than that are meant


def exact(weight: float) -> Fraction:
    return Fraction(weight).limit_denominator(FINE)


def capped(weights: Sequence[Fraction], sizes: Sequence[int], caps: Sequence[int | None]) -> list[Fraction]:
    """Weights under which no data set brings more cases an epoch than its cap."""
    return [
        weight if cap is None or not size else min(weight, Fraction(cap, size))
        for weight, size, cap in zip(weights, sizes, caps, strict=True)
    ]


def rates(
    natural: Mapping[str, Fraction],
    temperature: float,
    weights: Mapping[str, float],
    caps: Mapping[str, int],
) -> dict[str, Fraction]:
    """Cases an epoch by domain. natural: without temperature; math.inf as temperature makes all parts equal."""
    total, power = sum(natural.values(), Fraction()), 1 / temperature
    sharp = {name: float(size) ** power if size else 0.0 for name, size in natural.items()}
    whole = math.fsum(sharp.values())
    out = {}
    for name, size in natural.items():
        part = size if temperature == 1 else total * exact(sharp[name] / whole)
        part *= exact(weights.get(name, 1.0))
        out[name] = min(part, Fraction(caps[name])) if name in caps else part
    return out


def check_weights(weights: Sequence[float], datasets: int) -> None:
    if len(weights) != datasets:
        raise DataError(Problem(f"{len(weights)} weights for {datasets} data sets"))
    for weight in weights:
        if not math.isfinite(weight) or weight < 0:
            raise DataError(Problem("a data set's weight is out of range", got=str(weight), expected="0 or more"))


def check_bounds(caps: Sequence[int | None], epochs: Sequence[float | None], datasets: int) -> None:
    for what, values in (("caps", caps), ("limits of epochs", epochs)):
        if len(values) != datasets:
            raise DataError(Problem(f"{len(values)} {what} for {datasets} data sets"))
        for value in values:
            if value is not None and (not math.isfinite(value) or value <= 0):
                raise DataError(Problem(f"the {what} hold one out of range", got=str(value), expected="above 0"))


def check_parts(
    temperature: float, weights: Mapping[str, float], caps: Mapping[str, int], present: Sequence[str]
) -> None:
    """Raises DataError for a number out of range, or a domain that no data set has."""
    if not temperature > 0:
        raise DataError(Problem("the temperature is out of range", got=str(temperature), expected="above 0"))
    for what, values in (("weight", weights), ("cap", caps)):
        for name, value in values.items():
            if name not in present:
                mend = near(name, present)
                raise DataError(Problem(f"no data set has the domain {name!r}", "", what, f"of {present}", mend))
            if not math.isfinite(value) or value < 0:
                got = f"{name}: {value}"
                raise DataError(Problem(f"a domain's {what} is out of range", got=got, expected="0 or more"))


def check_domains(wanted: set[str] | None, present: set[str]) -> None:
    for name in sorted((wanted or set()) - present):
        known = sorted(present)
        raise DataError(Problem(f"no data set has the domain {name!r}", expected=f"of {known}", mend=near(name, known)))
