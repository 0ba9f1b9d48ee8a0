"""What a build leaves out, and why: each row that becomes no case is counted under a reason, and kept by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class LeftOut:
    """rows: (what it was, reason), in order. notes: other things worth knowing, with how often they happened."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, reason: str) -> None:
        self.rows.append((what, reason))

    def note(self, what: str, times: int = 1) -> None:
        self.notes[what] += times

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> number of rows, the most frequent first."""
        return dict(Counter(reason for _, reason in self.rows).most_common())
