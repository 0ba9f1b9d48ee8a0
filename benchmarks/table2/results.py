"""What one (seed, method) gave: read from its run folder, kept as a small JSON file, and read again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qoqmed.checkpoint.files import replace_text

PHASES = ("data", "collect", "score", "advantage", "update", "sync")  # of a step; `reward` is a part of `collect`
METRICS = ("accuracy", "f1", "exact_match")
Scores = Mapping[str, Mapping[str, float]]  # domain -> metric -> figure on the test set, greedy


@dataclass(frozen=True)
class Curve:
    """Mean reward a step, before its update. samples: spent up to the step's end. domains: per domain, questions and
    mean reward of the step; None where it had no question. Empty where nothing is sampled."""

    samples: tuple[int, ...] = ()
    reward: tuple[float, ...] = ()
    domains: Mapping[str, tuple[tuple[int, float] | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """settings: digest of everything that defines the run but the code. figures: of the steps, see `figures_of`.
    environment: commit, versions and load when it ended."""

    method: str
    seed: int
    form: str
    settings: str
    folder: str
    steps: int
    samples: int
    train_s: float
    evaluate_s: float
    start: Scores
    end: Scores
    curve: Curve
    figures: Mapping[str, float]
    environment: Mapping[str, Any]

    def save(self, path: Path) -> None:
        replace_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        row = json.loads(path.read_text(encoding="utf-8"))
        curve = row.pop("curve")
        domains = {name: tuple(p and (p[0], p[1]) for p in points) for name, points in curve["domains"].items()}
        return cls(**row, curve=Curve(tuple(curve["samples"]), tuple(curve["reward"]), domains))


def scores_of(evaluation: Any) -> dict[str, dict[str, float]]:
    """Of one `qoqmed.types.Evaluation`."""
    return {name: {key: row[key] for key in METRICS} for name, row in evaluation.greedy["domains"].items()}


def steps_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl that are steps."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "time/update" in row]


def seconds_of(row: Mapping[str, float]) -> float:
    """Of one step."""
    return sum(row[f"time/{phase}"] for phase in PHASES)


def curve_of(rows: Sequence[Mapping[str, float]], samples_per_step: int) -> Curve:
    rows = [row for row in rows if "reward" in row]
    names = sorted({key.split("/")[1] for row in rows for key in row if key.startswith("domains/")})
    samples = tuple(samples_per_step * (place + 1) for place in range(len(rows)))
    domains = {name: tuple(_point(row, name) for row in rows) for name in names}
    return Curve(samples, tuple(row["reward"] for row in rows), domains)


def _point(row: Mapping[str, float], domain: str) -> tuple[int, float] | None:
    mean = row.get(f"domains/{domain}/mean_reward")
    return None if mean is None else (int(row[f"domains/{domain}/n"]), mean)


def figures_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of a run's steps; what was not logged is left out.

    step_s, reward_s, advantage_s: medians. reward_share, advantage_share: of the time of all steps. hit_cap: share of
    (step, domain) whose elbow hit the cap. The rest are means over steps; of scale_ratio also the median and the most.
    """
    totals = [seconds_of(row) for row in rows]
    out = {"step_s": statistics.median(totals)}
    for name in ("reward", "advantage"):
        spent = [row[f"time/{name}"] for row in rows if f"time/{name}" in row and "reward" in row]
        if spent:
            out |= {f"{name}_s": statistics.median(spent), f"{name}_share": sum(spent) / sum(totals)}
    for key in ("advantage/hit_cap", "advantage/scale_ratio", "advantage/top_question_share", "frac_reward_zero_std",
                "kl", "entropy", "grad_norm", "completions/mean_length", "completions/clipped_ratio"):  # fmt: skip
        values = [row[key] for row in rows if key in row]
        if values:
            out[key.rpartition("/")[2]] = statistics.fmean(values)
    ratios = [row["advantage/scale_ratio"] for row in rows if "advantage/scale_ratio" in row]
    if ratios:
        out |= {"scale_ratio_median": statistics.median(ratios), "scale_ratio_most": max(ratios)}
    rewards = [row["reward"] for row in rows if "reward" in row]
    if rewards:
        quarter = max(1, len(rewards) // 4)
        out |= {
            "reward_first": statistics.fmean(rewards[:quarter]),
            "reward_last": statistics.fmean(rewards[-quarter:]),
        }
    for name in sorted({key.split("/")[1] for row in rows for key in row if key.endswith("/share")}):
        out[f"share/{name}"] = statistics.fmean(row.get(f"domains/{name}/share", 0.0) for row in rows)
    return out
