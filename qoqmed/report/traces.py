"""Every rollout as a row of JSON Lines, with as much of its content as the recipe's `traces` allows to leave the run.

ids: names, hashes, numbers and the rewards' reasons. text: also the response, its reading, and tracebacks of rewards
that failed, which may quote it. full: also the question, the prompt and where the media lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qoqmed.checkpoint.files import read_rows
from qoqmed.types import Group

Decode = Callable[[Sequence[int]], str]


def trace_rows(
    group: Group, step: int, stage: str, level: str, advantages: Sequence[float] = (), decode: Decode | None = None
) -> list[dict[str, Any]]:
    """One row per rollout. advantages: parallel to the rollouts, or empty. decode: token ids -> text."""
    rows = []
    for i, rollout in enumerate(group.rollouts):
        row = {"step": step, "stage": stage, "case": group.case.id, "domain": group.case.domain}
        row |= {"dataset": group.case.dataset, "rollout": rollout.index, "seed": rollout.seed}
        row |= {"sha256": hashlib.sha256(rollout.text.encode()).hexdigest(), "length": len(rollout.token_ids)}
        row |= {"finish_reason": rollout.finish_reason} | _judgement(group, i)
        row["advantage"] = advantages[i] if advantages else None
        row["trainable"] = group.trained[i]
        if level in ("text", "full"):
            row["response"] = rollout.text
            verdicts = group.verdicts[i] if group.verdicts else {}
            row["tracebacks"] = {name: verdict.traceback for name, verdict in verdicts.items() if verdict.traceback}
            row["reading"] = asdict(group.readings[i]) if group.readings else None
        if level == "full":
            row |= _question(group, decode)
        rows.append(row)
    return rows


def read_traces(folder: Path) -> Iterator[dict[str, Any]]:
    """All rows of a run's `traces/`, by step."""
    for file in sorted(folder.glob("step-*.jsonl")):
        yield from read_rows(file)


def _judgement(group: Group, i: int) -> dict[str, Any]:
    verdicts = group.verdicts[i] if group.verdicts else {}
    return {
        "reward": group.rewards[i] if group.rewards else None,
        "rewards": {name: verdict.value for name, verdict in verdicts.items()},
        "statuses": {name: verdict.status.value for name, verdict in verdicts.items()},
        "reasons": {name: verdict.reason for name, verdict in verdicts.items()},
    }


def _question(group: Group, decode: Decode | None) -> dict[str, Any]:
    case = group.case
    media = [{"modality": medium.modality, "path": medium.path, "view": medium.view} for medium in case.media]
    return {
        "question": case.text,
        "prompt": None if decode is None else decode(_readable(group)),
        "media": media,
    }


def _readable(group: Group) -> list[int]:
    """The prompt's token ids, each run of media placeholders written once."""
    prompt = group.prompt
    parts = [slots.tolist() for slots in (prompt.image_slots, *prompt.series_slots.values()) if slots is not None]
    slots = {slot for part in parts for slot in part}
    ids = prompt.token_ids.tolist()
    return [token for i, token in enumerate(ids) if not (i in slots and i - 1 in slots and ids[i - 1] == token)]
