"""Which split a case belongs to: as published, else by a draw over patients that depends on the seed alone.

A patient is never in two splits of a draw. Published splits stay as they are, but for their missing parts; where they
have a patient in two splits, the patient's training cases are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from qoqmed.errors import DataError, Problem
from qoqmed.preparing.cases import Draft
from qoqmed.preparing.left_out import LeftOut
from qoqmed.preparing.spec import SplitSpec

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Shares:
    """Of the patients, for parts that are drawn. published: whether the spec's own splits count."""

    valid: float = 0.1
    test: float = 0.1
    seed: int = 0
    published: bool = True


def assign(drafts: Sequence[Draft], spec: SplitSpec, shares: Shares, out: LeftOut) -> dict[str, list[Draft]]:
    """Split -> its drafts, in their order; every draft is in one, or told in `out`."""
    if not any(draft.patient for draft in drafts):
        out.note("no patients are known: each case counts as its own")
    if spec.column and shares.published and not any(draft.split for draft in drafts):
        out.note("the publisher's splits are not there: they are drawn")
        return _drawn(drafts, {"valid": shares.valid, "test": shares.test}, shares.seed)
    if not (spec.column and shares.published):
        return _drawn(drafts, {"valid": shares.valid, "test": shares.test}, shares.seed)
    of_value = {value: split for split in SPLITS for value in getattr(spec, split)}
    splits: dict[str, list[Draft]] = {split: [] for split in SPLITS}
    for draft in drafts:
        split = of_value.get(draft.split)
        if split is None:
            out.add(draft.id, f"the split {draft.split!r} is not in the spec")
        else:
            splits[split].append(draft)
    splits = _apart(splits, out)  # before the draw: else a patient of the test part may be drawn into the valid one
    missing = {split: getattr(shares, split) for split in ("valid", "test") if not getattr(spec, split)}
    if missing:
        splits |= {name: part or splits[name] for name, part in _drawn(splits["train"], missing, shares.seed).items()}
    return splits


def _apart(splits: dict[str, list[Draft]], out: LeftOut) -> dict[str, list[Draft]]:
    held = {draft.patient for split in ("valid", "test") for draft in splits[split] if draft.patient}
    for draft in splits["train"]:
        if draft.patient in held:
            out.add(draft.id, "its patient is in a held-out split, too")
    return splits | {"train": [draft for draft in splits["train"] if draft.patient not in held]}


def _drawn(drafts: Sequence[Draft], wanted: dict[str, float], seed: int) -> dict[str, list[Draft]]:
    """Patients in the order of their hashes: the first share is valid, the next test, the rest train."""
    owners = [draft.patient or f"case {draft.id}" for draft in drafts]
    order = sorted(set(owners), key=lambda owner: hash_of(seed, owner))
    split_of: dict[str, str] = {}
    place = 0
    for split, share in wanted.items():
        count = max(round(share * len(order)), 1) if share > 0 and len(order) > len(wanted) else 0
        split_of |= dict.fromkeys(order[place : place + count], split)
        place += count
    if order and place >= len(order):
        what, got = "the shares leave no patient to train on", ", ".join(f"{key} {one}" for key, one in wanted.items())
        raise DataError(Problem(what, got=f"{got} of {len(order)} patients", mend="smaller 'valid' or 'test'"))
    splits: dict[str, list[Draft]] = {split: [] for split in SPLITS}
    for draft, owner in zip(drafts, owners, strict=True):
        splits[split_of.get(owner, "train")].append(draft)
    return splits


def hash_of(seed: int, text: str) -> int:
    """A number that depends on nothing else; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=8).digest())
