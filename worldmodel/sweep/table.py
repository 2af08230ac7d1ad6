"""What came of a sweep: a row for every setting."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldmodel.sweep.plan import Job, evaluations, find_state


def rows(jobs: Sequence[Job], codes: Mapping[str, int]) -> list[dict[str, Any]]:
    """By setting: seeds, their last evaluations by mode, and what is not finished.

    Args: codes: exit codes by job name, of those that ran now.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(json.dumps(job.settings), []).append(job)
    return [_row(group, codes) for group in groups.values()]


def _row(group: Sequence[Job], codes: Mapping[str, int]) -> dict[str, Any]:
    returns: dict[int, float | None] = {}
    left: dict[int, str] = {}
    for job in group:
        state, scores = find_state(job), evaluations(job.folder)
        returns[job.seed] = scores[-1][1] if scores and math.isfinite(scores[-1][1]) else None
        if state != "finished":
            left[job.seed] = f"failed ({codes[job.name]})" if codes.get(job.name) else state
    finite = [x for x in returns.values() if x is not None]
    return {
        "settings": group[0].settings, "returns": returns, "not_finished": left,
        "mean": statistics.fmean(finite) if finite else None,
    }


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, best first."""
    keys = list(found[0]["settings"]) if found else []
    lines = [
        "| " + " | ".join([*keys, "return by mode", "lowest", "highest", "seeds", "not finished"]) + " |",
        "|" + "---|" * (len(keys) + 5),
    ]
    for row in sorted(found, key=lambda row: -math.inf if row["mean"] is None else row["mean"], reverse=True):
        finite = [x for x in row["returns"].values() if x is not None]
        figures = [f"{x:.4g}" for x in (row["mean"], min(finite), max(finite))] if finite else ["-"] * 3
        left = ", ".join(f"seed {seed}: {what}" for seed, what in row["not_finished"].items()) or "-"
        lines.append("| " + " | ".join([*row["settings"].values(), *figures, str(len(row["returns"])), left]) + " |")
    return "\n".join(lines)


def write(out: Path, found: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> None:
    """``sweep.md`` and ``sweep.json``, beside the run folders."""
    (out / "sweep.md").write_text(markdown(found) + "\n")
    (out / "sweep.json").write_text(json.dumps({**said, "rows": list(found)}, indent=1) + "\n")
