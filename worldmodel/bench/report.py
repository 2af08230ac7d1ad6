"""A measurement as a document for machines and as tables for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worldmodel.bench import act, envs, replay, update
from worldmodel.bench.setup import Bench, conditions, load

MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "update": update.measure, "envs": envs.measure, "replay": replay.measure, "act": act.measure,
}
COLUMNS = {
    "median": "median_ms", "p95": "p95_ms", "p99": "p99_ms", "block mean": "wall_ms", "lowest": "min_ms",
    "highest": "max_ms", "cpu": "cpu_ms",
}


def document(part: str, bench: Bench, said: dict[str, Any]) -> dict[str, Any]:
    """Measure, and say under which conditions. ``said``: what the caller knows of the command and the preset."""
    before = conditions(bench)
    facts = MEASURES[part](bench)
    return {"part": part, **said, **before, "load_at_end": load(), **facts}


def table(found: dict[str, Any]) -> RenderableType:
    """The document for people; times are milliseconds of a call."""
    machine = found["machine"]
    title = (
        f"{found['part']}: {machine['gpu'] or machine['cpu']}, {found['precision']}, {found['threads']} threads, "
        f"load {found['load']} to {found['load_at_end']}"
    )
    parts: list[RenderableType] = [Text(title, style="bold"), *(_line(found))]
    times = Table(box=None, padding=(0, 1, 0, 0))
    times.add_column("ms", no_wrap=True)
    extra = sorted({key for row in found["rows"].values() for key in row if key.endswith("_per_second")})
    for name in (*COLUMNS, *(key.replace("_per_second", "/s") for key in extra)):
        times.add_column(name, justify="right")
    for name, row in found["rows"].items():
        if "median_ms" in row:
            rates = [f"{row[key]:,.0f}" if key in row else "" for key in extra]
            times.add_row(name, *(_number(row[key]) for key in COLUMNS.values()), *rates)
    parts.append(times)
    for name, row in found["rows"].items():
        if "error" in row:
            parts.append(Text(f"{name}: {row['error']}", style="yellow"))
        if "ratio" in row:
            parts.append(Text(
                f"{name}: {row['ratio']:.3f} of medians, {row['cpu']:.3f} of processor time, {row['paired']:.3f} "
                f"[{row['paired_min']:.3f}, {row['paired_max']:.3f}] of neighbouring blocks"
            ))
    if "phases" in found:
        whole = sum(found["phases"].values())
        shares = ", ".join(f"{name} {ms:.2f} ({ms / whole:.0%})" for name, ms in found["phases"].items())
        parts.append(Text(f"learn, eager and waiting at each part: {shares}"))
        inner = Table(box=None, padding=(0, 2, 0, 0))
        inner.add_column("part of the forward pass, without what it calls", no_wrap=True)
        inner.add_column("ms", justify="right")
        inner.add_column("calls", justify="right")
        for name, part in found["inside"].items():
            inner.add_row(name, _number(part["ms"]), str(part["calls"]))
        parts.append(inner)
    return Group(*parts)


def _line(found: dict[str, Any]) -> list[Text]:
    """What else the document says in a line: parameters of both sides."""
    said = [f"{found['parameters']:,} parameters"] if found.get("parameters") else []
    if "peer" in found:
        peer = found["peer"]
        counted = f"{peer['parameters']:,} parameters, " if "parameters" in peer else ""
        said.append(f"{peer['name']} {counted}{peer.get('settings', '')}")
    return [Text("; ".join(said))] if said else []


def _number(ms: float) -> str:
    return f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"
