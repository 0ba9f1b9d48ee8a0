"""Input ablations (QoQ-Med, the rows "text only", "ECG + text", "vision + text" of its table of modalities)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from qoqmed.types import Case


def leave_out(case: Case, modalities: Collection[str] | None) -> Case:
    """The case with media of these modalities only; None keeps all. Boxes and masks go with their media, and so do the
    markers (`<image>`) that give them a place in the question."""
    if modalities is None or all(medium.modality in modalities for medium in case.media):
        return case
    kept = [i for i, medium in enumerate(case.media) if medium.modality in modalities]
    place = {old: new for new, old in enumerate(kept)}
    gone = {medium.modality for medium in case.media} - set(modalities)
    text = re.sub("|".join(f"<{re.escape(name)}>" for name in sorted(gone)), "", case.text)
    target = case.target
    boxes, mask = target.boxes, target.mask
    if boxes is not None:
        boxes = tuple(replace(box, medium=place[box.medium]) for box in boxes if box.medium in place) or None
    if mask is not None:
        mask = replace(mask, medium=place[mask.medium]) if mask.medium in place else None
    return replace(
        case,
        text=text,
        media=tuple(case.media[i] for i in kept),
        target=replace(target, boxes=boxes, mask=mask),
    )
