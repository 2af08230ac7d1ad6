"""Published scores: the tables of ``tools/scores/`` (reached as ``worldmodel/scores``), each with source and protocol.

They were written by ``tools/collect_scores.py`` from the raw numbers that the authors released, one number per seed
where these are public. A table answers for its own protocol only: window, policy, sticky actions and number of
evaluation episodes differ between papers, and every table says its own.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worldmodel.errors import UserError, unknown

ROOT = Path(__file__).parent / "scores"
DMC_HIGHEST = 1000.0
"""The return of a perfect episode of the DM Control Suite: 1000 frames, reward at most 1 each."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One method on one benchmark."""

    benchmark: str
    """"atari100k", "atari200m", "dmc_vision" or "dmc_proprio"."""
    name: str
    """The file: "dreamerv3_2024"."""
    method: str
    """What the authors call it."""
    source: dict[str, str]
    """"paper"; "repo", "commit" and "path" of the numbers; "licence" of that repository."""
    frames: int
    """Frames that a run of this benchmark takes."""
    kind: Literal["train", "eval"]
    """Whether the numbers are returns of training episodes or of separate evaluations."""
    number: str
    """What one number means."""
    settings: str
    """Settings that differ between methods; empty where the source names none."""
    final: dict[str, tuple[float, ...]]
    """By task: the last score of each seed; nan where a seed finished no episode in the window."""
    curve_frames: tuple[int, ...] = ()
    """Frames at which the curves have a point; empty where nobody released curves."""
    window: int = 0
    """Frames that a point of the curves averages over, and ends."""
    curves: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """By task, for each seed its return at each of ``curve_frames``."""


@functools.cache
def benchmarks() -> tuple[str, ...]:
    """Benchmarks for which there are tables."""
    return tuple(sorted(path.name for path in ROOT.iterdir() if path.is_dir()))


def answer(benchmark: str, name: str, task: str, what: str, *, frames: int = 0) -> str:
    """One sentence for a preset: what it answers to, and this task's figure, the mean over seeds.

    Args: frames: a point of the table's curves; 0 for the final scores.

    >>> answer("atari100k", "dreamerv3_2024", "boxing", "DreamerV3")
    'DreamerV3: 82.1 for boxing'
    """
    found = table(benchmark, name)
    reached = found.final.get(task, ())
    if frames:
        at = found.curve_frames.index(frames)
        reached = tuple(seed[at] for seed in found.curves.get(task, ()))
    scores = [score for score in reached if not math.isnan(score)]
    if not scores:
        return f"{what}: no figure for {task}"
    mean = sum(scores) / len(scores)
    return f"{what}: {mean:,.{int(abs(mean) < 1000)}f} for {task}"


@functools.cache
def tables(benchmark: str) -> tuple[Table, ...]:
    """All tables of a benchmark, by name.

    >>> [table.method for table in tables("dmc_vision")][:2]
    ['CURL', 'DreamerV3 2023']
    """
    if benchmark not in benchmarks():
        raise UserError(unknown("benchmark", benchmark, benchmarks()))
    return tuple(_read(path) for path in sorted((ROOT / benchmark).glob("*.json")))


def table(benchmark: str, name: str) -> Table:
    """One table. Raises: UserError with the names there are.

    >>> table("atari100k", "simulus").final["pong"]
    (20.73, 19.98, 19.03, 19.47, 20.11)
    """
    found = {entry.name: entry for entry in tables(benchmark)}
    if name not in found:
        raise UserError(unknown(f"{benchmark} table", name, found))
    return found[name]


@functools.cache
def atari_references() -> dict[str, tuple[float, float]]:
    """Random and human score of each of the 57 Atari games."""
    games = json.loads((ROOT / "atari_references.json").read_text())["games"]
    return {game: (random, human) for game, (random, human) in games.items()}


def scale(benchmark: str, task: str) -> tuple[float, float] | None:
    """The returns that count as 0 and as 1: random and human for Atari, 0 and 1000 for DMC; None where nobody agreed
    on any."""
    if benchmark.startswith("dmc"):
        return 0.0, DMC_HIGHEST
    return atari_references().get(task) if benchmark.startswith("atari") else None


def _read(path: Path) -> Table:
    document: dict[str, Any] = json.loads(path.read_text())
    protocol, curve = document["protocol"], document.get("curve", {"frames": [], "window": 0, "returns": {}})
    return Table(
        benchmark=path.parent.name, name=path.stem, method=document["method"], source=document["source"],
        frames=protocol["frames"], kind=protocol["kind"], number=protocol["number"], settings=protocol["settings"],
        final={task: _numbers(values) for task, values in document["final"].items()},
        curve_frames=tuple(curve["frames"]), window=curve["window"],
        curves={task: tuple(_numbers(seed) for seed in seeds) for task, seeds in curve["returns"].items()},
    )


def _numbers(values: list[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)
