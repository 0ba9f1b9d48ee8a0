"""How often each label occurs, by data set and split, and the labels that cannot be learnt or measured."""

from __future__ import annotations

from collections.abc import Sequence

from qoqmed.checking.findings import WARNING, Findings
from qoqmed.checking.rows import Row
from qoqmed.errors import Problem

NONE, UNKNOWN = "(none)", "(not known)"  # an empty list of labels, and no labels at all
Balance = dict[str, dict[str, dict[str, int]]]


def balance(rows: Sequence[Row], findings: Findings) -> Balance:
    """Data set ("domain/name") -> label -> split -> cases. A label of the space that no case has is there with 0."""
    splits = list(dict.fromkeys(row.split for row in rows))
    table: Balance = {}
    for row in rows:
        counts = table.setdefault(f"{row.case.domain}/{row.case.dataset}", {})
        for label in row.case.label_space:
            counts.setdefault(label, dict.fromkeys(splits, 0))
        labels = row.case.target.labels
        for label in labels or ((NONE,) if labels is not None else (UNKNOWN,)):
            counts.setdefault(label, dict.fromkeys(splits, 0))[row.split] += 1
    for dataset, counts in table.items():
        _judge(dataset, {label: by for label, by in counts.items() if label not in (NONE, UNKNOWN)}, splits, findings)
    return table


def _judge(dataset: str, counts: dict[str, dict[str, int]], splits: Sequence[str], findings: Findings) -> None:
    never = [label for label, by in counts.items() if not sum(by.values())]
    if never and len(never) == len(counts):
        return  # no case of the set has a label
    if never:
        findings.add("balance", WARNING, Problem(f"labels that never occur: {len(never)}", dataset, ", ".join(never)))
    first, *others = splits
    unseen = [label for label, by in counts.items() if not by[first] and any(by[split] for split in others)]
    if unseen and any(by[first] for by in counts.values()):
        what = f"labels of another split that {first} does not have: {len(unseen)}"
        findings.add("balance", WARNING, Problem(what, dataset, ", ".join(unseen)))
    used = [label for label, by in counts.items() if sum(by.values())]
    if len(used) == 1 and len(counts) > 1:
        findings.add("balance", WARNING, Problem("every labelled case has one and the same label", dataset, used[0]))
