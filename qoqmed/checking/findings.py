"""What a check of data files finds: errors, which stop a run or spoil its figures, and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qoqmed.errors import Problem

ERROR, WARNING = "error", "warning"
KEPT = 1000  # of each kind; all are counted
KINDS = {  # in the order of the report
    "json": "lines that are no JSON object",
    "schema": "fields that are missing, unknown or malformed",
    "id": "ids used twice in a file",
    "media": "media that are missing or refused",
    "unreadable": "media that cannot be decoded",
    "label": "labels outside their space",
    "box": "boxes that are malformed or leave the picture",
    "mask": "masks that do not fit, or are empty",
    "leakage": "what is in several splits",
    "duplicate": "rows and media that come twice in a split",
    "length": "prompts that are too long",
    "balance": "labels that never occur, or nothing else does",
    "privacy": "pictures that may show who the patient is",
}


@dataclass(frozen=True)
class Finding:
    """severity: `error` or `warning`. `problem.where` names the row, or the file."""

    kind: str
    severity: str
    problem: Problem


@dataclass
class Findings:
    """Grows as a check goes on."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by severity and kind
    kept: list[Finding] = field(default_factory=list)

    def add(self, kind: str, severity: str, *problems: Problem) -> None:
        for problem in problems:
            self.counts[severity, kind] += 1
            if self.counts[severity, kind] <= KEPT:
                self.kept.append(Finding(kind, severity, problem))

    def of(self, severity: str) -> int:
        return sum(count for (one, _), count in self.counts.items() if one == severity)


@dataclass(frozen=True)
class Spread:
    """Lengths of a domain's prompts, in tokens."""

    cases: int
    shortest: int
    median: int
    p95: int
    longest: int


@dataclass(frozen=True)
class Report:
    """rows: of each split. balance: data set ("domain/name") -> label -> split -> cases; the labels "(none)" and
    "(not known)" beside. lengths: by domain, where a model was given. fixed: what `--fix` did, by what it is called."""

    rows: dict[str, int]
    findings: Findings
    balance: dict[str, dict[str, dict[str, int]]]
    decoded: int = 0
    lengths: dict[str, Spread] = field(default_factory=dict)
    fixed: dict[str, int] | None = None
    seconds: float = 0.0

    @property
    def errors(self) -> int:
        return self.findings.of(ERROR)

    @property
    def warnings(self) -> int:
        return self.findings.of(WARNING)

    def as_json(self) -> dict[str, Any]:
        """Plain content, every kept finding with its parts."""
        counts = {
            severity: {
                kind: self.findings.counts[severity, kind] for kind in KINDS if self.findings.counts[severity, kind]
            }
            for severity in (ERROR, WARNING)
        }
        return {
            "rows": self.rows,
            "errors": counts[ERROR],
            "warnings": counts[WARNING],
            "findings": [
                {"kind": one.kind, "severity": one.severity, **asdict(one.problem)}
                for one in ordered(self.findings.kept)
            ],
            "balance": self.balance,
            "decoded": self.decoded,
            "lengths": {name: asdict(spread) for name, spread in self.lengths.items()},
            "fixed": self.fixed,
            "seconds": round(self.seconds, 2),
        }


def ordered(findings: Iterable[Finding]) -> Sequence[Finding]:
    """Errors first, then by kind; otherwise as they were found."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda one: (one.severity != ERROR, kinds.index(one.kind)))
