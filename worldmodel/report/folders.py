"""What a run folder tells: its task and configuration, how far it got, its scores and its newest dream."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from worldmodel import config
from worldmodel.errors import UserError
from worldmodel.train.lock import SILENCE
from worldmodel.train.log import read_metrics
from worldmodel.train.pictures import newest

Kind = Literal["train", "mode", "sampled"]

KINDS: dict[Kind, str] = {
    "train": "training episodes (the policy explores)",
    "mode": "evaluations, acting by mode",
    "sampled": "evaluations, acting by sampling",
}
"""The kinds of scores in ``scores.jsonl``, and what to call them."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Returns over the frames of one run."""

    frames: np.ndarray
    """(n,) ascending."""
    returns: np.ndarray
    """(n,) finite: one training episode each, or the mean of one evaluation."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run folder."""

    path: Path
    preset: str
    """Name of the preset; empty for a run that was started from Python."""
    seed: int
    task: str
    """Name of the environment: "dmc/walker_walk/gl"."""
    benchmark: str
    """The published benchmark that the task belongs to, "" for none."""
    game: str
    """The task's name in that benchmark."""
    settings: dict[str, Any]
    """Configuration by dotted path: {"agent.lr": 4e-5, ...}."""
    series: dict[Kind, Series]
    frames: int
    """Frames so far."""
    is_finished: bool
    status: str
    """"finished", or what happened and how far it got."""
    notes: tuple[str, ...]
    """What was left out, or departs from the benchmark."""
    commit: str
    dream: Path | None = field(repr=False)
    """The newest dream video."""

    @property
    def name(self) -> str:
        return self.path.name


def read(run_dir: Path) -> Record:
    """Read a run folder; a run that is still going, was killed, or has no scores yet, is read as far as it goes.

    Raises: UserError where it is not a run folder or its files are damaged.
    """
    document = config.read_document(run_dir)
    settings = config.flatten(document["run"])
    rows = {name: _rows(run_dir / name) for name in ("scores.jsonl", "metrics.jsonl")}
    task = _task(document["run"].get("env"))
    benchmark, game, departure = find_benchmark(task)
    series, dropped = _series(rows["scores.jsonl"])
    every = [row for lines in rows.values() for row in lines]
    decisions = max((int(row["step"]) for row in every), default=0)
    frames = max((int(row["frames"]) for row in every if _is_number(row.get("frames"))), default=0)
    is_finished, status = _status(run_dir, settings, rows, decisions)
    notes = [departure] if departure else []
    if dropped:
        notes.append(f"{dropped} score{'s' * (dropped > 1)} left out: not a finite number")
    skipped = next((row["update/skipped"] for row in reversed(rows["metrics.jsonl"]) if "update/skipped" in row), 0)
    if _is_number(skipped) and skipped:
        notes.append(f"{skipped:,.0f} update{'s' * (skipped > 1)} skipped: not finite")
    if not series and not dropped:
        notes.append("no scores yet")
    return Record(
        path=Path(run_dir), preset=str(document.get("preset", "")), seed=int(settings.get("seed", 0)), task=task,
        benchmark=benchmark, game=game, settings=settings, series=series, frames=frames,
        is_finished=is_finished, status=status, notes=tuple(notes),
        commit=str(document.get("provenance", {}).get("commit", ""))[:12], dream=newest(run_dir).get("dream"),
    )


def find_benchmark(task: str) -> tuple[str, str, str]:
    """The published benchmark of an environment's name, the task's name there, and how the run departs from it.

    >>> find_benchmark("dmc/walker_walk/ray")
    ('dmc_vision', 'walker_walk', 'pictures by the renderer ray; published runs used OpenGL')
    >>> find_benchmark("atari/boxing/100k"), find_benchmark("toy/catch")
    (('atari100k', 'boxing', ''), ('', '', ''))
    """
    family, game, *rest = [*task.split("/"), "", ""]
    if family == "dmc" and rest[0] == "proprio":
        return "dmc_proprio", game, ""
    if family == "dmc" and "+" not in rest[0]:
        drawn = "" if rest[0] == "gl" else f"pictures by the renderer {rest[0]}; published runs used OpenGL"
        return "dmc_vision", game, drawn
    if family == "atari" and rest[0] in ("100k", "200m"):
        return f"atari{rest[0]}", game, f"settings {rest[1]}, in which published protocols differ" if rest[1] else ""
    return "", "", ""


def _task(env: Any) -> str:
    """The environment's own name; for a class that is not of this package, what its configuration says."""
    try:
        return str(config.from_json(env).name)
    except UserError:
        values = env if isinstance(env, dict) else {}
        said = [str(values[key]) for key in ("type", "task", "id", "name") if values.get(key)]
        return "/".join(part.rpartition(":")[2] for part in said) or "unknown task"


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        rows = read_metrics(path)
    except ValueError as error:
        raise UserError(f"{error}; restore the file from a copy, or leave this run out") from error
    if any(not isinstance(row.get("step"), int) for row in rows):
        raise UserError(f'{path} has a row without a whole number "step"; restore it, or leave this run out')
    return rows


def _series(rows: list[dict[str, Any]]) -> tuple[dict[Kind, Series], int]:
    """Scores by kind, and how many were not finite."""
    points: dict[Kind, list[tuple[float, float]]] = {}
    dropped = 0
    for row in rows:
        kind = str(row.get("kind", "")).removeprefix("eval_")
        frames, value = row.get("frames"), row.get("return")
        if kind not in KINDS:
            continue
        if _is_number(frames) and _is_number(value):
            points.setdefault(kind, []).append((float(frames), float(value)))
        else:
            dropped += 1
    found: dict[Kind, Series] = {}
    for kind, pairs in points.items():
        frames, returns = np.array(sorted(pairs)).T
        found[kind] = Series(frames=frames, returns=returns)
    return found, dropped


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _status(
    run_dir: Path, settings: dict[str, Any], rows: dict[str, list[dict[str, Any]]], decisions: int
) -> tuple[bool, str]:
    steps = int(settings.get("train.steps", 0))
    where = f"at {decisions:,} of {steps:,} decisions"
    wished = settings.get("train.stop_at_return")
    best = [row["return"] for row in rows["scores.jsonl"] if row.get("kind") == "eval_mode" and "return" in row]
    if decisions >= steps > 0:
        return True, "finished"
    if wished is not None and best and best[-1] >= wished:
        return True, f"finished: reached a return of {wished:g} {where}"
    lock = Path(run_dir) / "lock"
    if lock.exists():
        is_alive = time.time() - lock.stat().st_mtime < SILENCE
        return False, f"running, {where}" if is_alive else f"failed: killed {where}"
    # what a run that diverged leaves behind; a row of metrics need not have been due since. One that went on from an
    # older checkpoint has come further
    left = [int(path.name) for path in (Path(run_dir) / "diverged").glob("[0-9]*") if path.name.isdigit()]
    streak = rows["metrics.jsonl"][-1].get("update/bad_streak", 0) if rows["metrics.jsonl"] else 0
    if streak > 0 or max(left, default=-1) >= decisions:
        return False, f"failed: its last updates were not finite, {where}"
    return False, f"unfinished: stopped {where}" if decisions else "unfinished: not begun"
