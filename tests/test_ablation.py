"""Modalities left out of a case: no trace of their media, boxes, masks and markers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qoqmed.datasets.ablation import leave_out
from qoqmed.types import Box, Case, Mask, Medium, Target

ECG, FIRST, SECOND = Medium("ecg", "e"), Medium("image", "a.png"), Medium("volume", "b.nii")
BOXES = (Box(0.1, 0.1, 0.2, 0.2, "x", 0), Box(0.3, 0.3, 0.4, 0.4, "y", 2))
CASE = Case(
    "row-1",
    "ct",
    "mine",
    "diagnosis",
    "See <image>, <ecg> and <volume>. What is it?",
    (FIRST, ECG, SECOND),
    ("x", "y"),
    Target(labels=("x",), boxes=BOXES, mask=Mask(array=np.ones((2, 2), bool), medium=2)),
)


def test_all_stays_as_it_is() -> None:
    assert leave_out(CASE, None) is CASE
    assert leave_out(CASE, {"image", "ecg", "volume", "video"}) is CASE


@pytest.mark.parametrize(
    ("kept", "media", "text", "boxes", "mask"),
    [
        ((), (), "See ,  and . What is it?", None, None),
        (("ecg",), (ECG,), "See , <ecg> and . What is it?", None, None),
        (("image",), (FIRST,), "See <image>,  and . What is it?", [("x", 0)], None),
        (("image", "volume"), (FIRST, SECOND), "See <image>,  and <volume>. What is it?", [("x", 0), ("y", 1)], 1),
        (("volume",), (SECOND,), "See ,  and <volume>. What is it?", [("y", 0)], 0),
    ],
)
def test_what_is_left(kept, media, text, boxes, mask) -> None:
    left = leave_out(CASE, kept)
    assert left.media == media and left.text == text
    found = left.target.boxes
    assert (found and [(box.label, box.medium) for box in found]) == boxes
    assert (left.target.mask and left.target.mask.medium) == mask
    assert left.target.labels == ("x",)
    assert replace(left, media=CASE.media, text=CASE.text, target=CASE.target) == CASE
