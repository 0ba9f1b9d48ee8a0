"""Time of a step by phase: the quickstart's two stages, medians over a few steps after one of warm-up."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from record import ROOT, keep, show

PHASES = ("data", "collect", "score", "advantage", "update", "sync")


def main(steps: int = 6) -> None:
    from qoqmed import fit

    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"trainer.out={folder}/run", "evaluation.limit=9", "traces=ids", "callbacks=[]"]
        overrides += [f"stages.{i}.steps={steps}" for i in range(2)]
        result = fit(ROOT / "recipes" / "quickstart.yaml", overrides)
        lines = (Path(result.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "time/update" in row]
    table: list[dict[str, Any]] = []
    for name, part in (("warm start (SFT)", rows[1:steps]), ("DRPO", rows[steps + 1 :])):
        seconds = {phase: statistics.median(row[f"time/{phase}"] for row in part) for phase in PHASES}
        length = statistics.median(row["completions/mean_length"] for row in part)
        table.append({"stage": name, **seconds, "step s": sum(seconds.values()), "response tokens": length})
    show("seconds of a quickstart step by phase (median)", table)
    print(f"kept in {keep('step_phases', table, {'steps': steps, 'recipe': 'recipes/quickstart.yaml'})}")


if __name__ == "__main__":
    main()
