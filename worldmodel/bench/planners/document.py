"""A contest as JSON, a table, a picture and a page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from worldmodel.bench.planners import LAYERS, analytic, latency, learned, score, truth
from worldmodel.bench.planners.contest import Contest, Row
from worldmodel.bench.setup import cpu_name, load, memory_gib
from worldmodel.bench.timing import Plan
from worldmodel.errors import StorageError
from worldmodel.report import charts, page
from worldmodel.train.manifest import provenance

TITLES = {
    "analytic": "Known systems", "truth": "Environments planned in their own truth",
    "runs": "Frozen checkpoints", "latency": "Latency",
}


def measure(
    layers: Sequence[str], contest: Contest, *, problems: tuple[str, ...], tasks: tuple[str, ...], frames: int,
    folders: Sequence[Path], allow: Sequence[str], chosen: Sequence[str], batches: Sequence[int], plan: Plan,
    device: str, said: dict[str, Any],
) -> Row:
    """Every layer that was asked for, and under which conditions. ``said``: what the caller knows of the command."""
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "memory_gib": memory_gib()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    found: Row = {
        "part": "planners", **said, "started": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine,
        "threads": torch.get_num_threads(), "load": load(), "provenance": provenance(), "seeds": contest.seeds,
        "episodes": contest.episodes, "budgets": list(contest.budgets),
    }
    makers: dict[str, Callable[[], list[Row]]] = {
        "analytic": lambda: analytic.measure(contest, problems),
        "truth": lambda: truth.measure(contest, tasks, frames=frames),
        "runs": lambda: learned.measure(contest, folders, allow=allow),
        "latency": lambda: latency.measure(contest, chosen, plan, batches=batches, device=device),
    }
    rows = [row for layer in LAYERS if layer in layers for row in makers[layer]()]
    timed = [row for row in rows if row["layer"] == "latency"]
    rows = score.scored([row for row in rows if row["layer"] != "latency"])
    return found | {
        "load_at_end": load(), "rows": rows, "latency": timed, "summary": score.summary(rows),
        "checks": score.checks(rows),
    }


def write(folder: Path, found: Row) -> list[Path]:
    """planners.json, planners.md, planners.html, and a PNG for each layer that has a front. Raises StorageError."""
    pictures = fronts(found)
    files: dict[str, bytes] = {
        "planners.json": (json.dumps(found, indent=1) + "\n").encode(),
        "planners.md": (markdown(found) + "\n").encode(),
        "planners.html": html(found, pictures).encode(),
        **{f"{name}.png": png for name, png in pictures.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}; give another --out") from error
    return [folder / name for name in files]


def fronts(found: Row) -> dict[str, bytes]:
    """By layer, score over model evaluations and over milliseconds of a decision."""
    charts.require()
    made = {}
    for layer in LAYERS:
        rows = [row for row in found["summary"] if row["layer"] == layer and row["planner"] != "random"]
        for name, unit in (("evaluations", "model evaluations a decision"), ("ms", "milliseconds a decision, B = 1")):
            points = [
                (f"{row['planner']} {row['budget'] or ''}".strip(), row[name], row["score"], row["low"], row["high"])
                for row in rows if row[name] > 0
            ]
            if points:
                made[f"{layer}_{name}"] = charts.front(f"{TITLES[layer]}: score and cost", points, unit)
    return made


SUMMARY = ("planner", "trajectories", "problems", "score", "95 %", "beats", "evaluations", "ms", "clamped", "gap")


def lines(found: Row, layer: str) -> list[list[str]]:
    """The summary of a layer, best first."""
    rows = sorted((row for row in found["summary"] if row["layer"] == layer), key=lambda row: -row["score"])
    return [
        [
            row["planner"], str(row["budget"] or ""), str(row["problems"]), f"{row['score']:.3f}",
            f"[{row['low']:.3f}, {row['high']:.3f}]",
            f"{row['beats']:.2f} [{row['beats_low']:.2f}, {row['beats_high']:.2f}]" if "beats" in row else "",
            f"{row['evaluations']:,.0f}", f"{row['ms']:.2f}", f"{row['clamped']:.1%}",
            f"{row['gap']:+.3f}" if "gap" in row else "",
        ]
        for row in rows
    ]


DETAIL = (
    "problem", "planner", "trajectories", "return", "95 %", "regret", "predicted", "realised", "evaluations", "ms",
)


def details(found: Row, layer: str) -> list[list[str]]:
    """Every row of a layer."""
    return [
        [
            row["problem"], row["planner"], str(row["budget"] or ""),
            *([row["error"], *[""] * 6] if "error" in row else [
                f"{row['mean']:.4g}", f"[{row['low']:.4g}, {row['high']:.4g}]",
                f"{row['regret']:.1%}" if "regret" in row else "",
                *(f"{row[key]:.3f}" if key in row else "" for key in ("predicted", "realised")),
                f"{row['evaluations']:,.0f}", f"{row['ms']:.2f}",
            ]),
        ]
        for row in found["rows"] if row["layer"] == layer
    ]


LATENCY = ("preset", "planner", "trajectories", "way", "B", "p50 ms", "p95 ms", "p99 ms", "decisions/s")


def times(found: Row) -> list[list[str]]:
    """Every row of the layer of latencies."""
    return [
        [row["problem"], row["planner"], str(row["budget"] or ""), row["mode"], n,
         *(f"{numbers[key]:.3g}" for key in ("median_ms", "p95_ms", "p99_ms")), f"{numbers['per_second']:,.0f}"]
        for row in found["latency"] if "batches" in row for n, numbers in row["batches"].items()
    ]


def markdown(found: Row) -> str:
    """The tables."""
    parts = []
    for layer in LAYERS:
        if lines(found, layer):
            parts += [f"## {TITLES[layer]}", _table(SUMMARY, lines(found, layer))]
    if times(found):
        parts += [f"## {TITLES['latency']}", _table(LATENCY, times(found))]
    if found["checks"]:
        told = [[x["what"], f"{x['number']:.4g}", "yes" if x["holds"] else "NO"] for x in found["checks"]]
        parts += ["## What has to hold", _table(("what", "number", "holds"), told)]
    return "\n\n".join(parts)


def html(found: Row, pictures: dict[str, bytes]) -> str:
    """A page that needs no other file."""
    machine = found["machine"]
    parts = [
        page.heading(1, "Planners"),
        page.paragraph(
            f"{found.get('command', '')}; {machine.get('gpu') or machine['cpu']}, {found['threads']} threads, load "
            f"{found['load']} to {found['load_at_end']}; {found['started']}; commit {found['provenance'].get('commit')}"
        ),
        page.paragraph(
            f"{found['seeds']} seeds of planners, {found['episodes']} episodes each, all with the same starts. A score "
            f"is 0 for random actions and 1 for the optimum, or for the best row where nobody knows the optimum. "
            f"Scores are interquartile means over problems and seeds with bootstrap intervals; \"beats\" is "
            f"the probability of beating the rival (the policy; else CEM) on a problem."
        ),
    ]
    for layer in LAYERS:
        if not lines(found, layer):
            continue
        parts += [page.heading(2, TITLES[layer]), page.table(SUMMARY, lines(found, layer))]
        images = [(png, name.replace("_", ", "), "") for name, png in pictures.items() if name.startswith(layer)]
        parts += [page.pictures(images)] if images else []
        parts += [page.heading(3, "Every problem"), page.table(DETAIL, details(found, layer))]
    if times(found):
        parts += [page.heading(2, TITLES["latency"]), page.table(LATENCY, times(found))]
    failed = [f"{check['what']}: {check['number']:.4g}" for check in found["checks"] if not check["holds"]]
    if failed:
        parts.append(page.warning("What should hold, and did not", failed))
    return page.document("Planners", parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body])
