"""From runs to learning curves: runs that differ in their seed alone are one group, on a common grid of frames."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.config import RESUMABLE
from worldmodel.published import Table
from worldmodel.report import stats
from worldmodel.report.folders import Kind, Record, Series

POINTS = 25
"""Points of a curve; each is the mean of the training episodes that ended since the point before."""

TASK_FIELDS = frozenset({"env.task", "env.id"})
"""What names the task: a method is a configuration without it, so that one method can be scored on many tasks."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Runs of one configuration: seeds and tasks differ, nothing else that decides what is learned."""

    letter: str
    """A, B, ...: short for tables."""
    label: str
    """Letter, preset, and the settings in which it differs from the others, where these are few."""
    settings: dict[str, Any]
    """Without seed, task, and what may change in a resume."""
    records: tuple[Record, ...]

    def on(self, task: str) -> tuple[Record, ...]:
        """Its runs of one task."""
        return tuple(record for record in self.records if record.task == task)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Returns of several seeds at the same frames."""

    frames: np.ndarray
    """(K,)"""
    returns: np.ndarray
    """(seeds, K); nan before a seed's first score and after its last."""

    @property
    def seeds(self) -> int:
        return len(self.returns)

    def at(self, frames: float) -> np.ndarray:
        """One score per seed at ``frames``: between two scores interpolated, after the last one that one; seeds
        without a score by then are left out."""
        scores = []
        for seed in self.returns:
            known = np.isfinite(seed)
            if known.any() and frames >= self.frames[known][0]:
                scores.append(np.interp(frames, self.frames[known], seed[known]))
        return np.array(scores)


def methods(records: Sequence[Record]) -> tuple[Method, ...]:
    """Group runs, in the order of their first run."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(repr(sorted(_decisive(record).items())), []).append(record)
    settings = [_decisive(group[0]) for group in groups.values()]
    short = [key for key, *values in differences(settings) if all(_is_short(value) for value in values)]
    differing = telling(settings, short)
    made = []
    for index, (group, chosen) in enumerate(zip(groups.values(), settings)):
        letter = chr(ord("A") + index) if index < 26 else f"M{index + 1}"
        said = ", ".join(f"{_short_name(key)} {show(chosen[key])}" for key in differing if key in chosen)
        label = " ".join(part for part in (letter, group[0].preset, f"({said})" if said else "") if part)
        made.append(Method(letter=letter, label=label, settings=chosen, records=tuple(group)))
    return tuple(made)


def telling(settings: Sequence[dict[str, Any]], paths: Sequence[str], most: int = 3) -> list[str]:
    """Few settings that tell the groups apart: time and again the one that parts most of what is still alike."""

    def parts(keys: list[str]) -> int:
        return len({tuple(repr(one.get(key)) for key in keys) for one in settings})

    chosen: list[str] = []
    while len(chosen) < most and parts(chosen) < len(settings) and paths:
        best = max(paths, key=lambda path: parts([*chosen, path]))
        if parts([*chosen, best]) == parts(chosen):
            break
        chosen.append(best)
    return chosen


def _short_name(path: str) -> str:
    """The last part of a setting's name; of a class, what it is the class of."""
    return path.removesuffix(".type").rpartition(".")[2]


def differences(settings: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """[path, value of the first, value of the second, ...] for each setting that is not the same everywhere."""
    paths = list(dict.fromkeys(path for one in settings for path in one))
    rows = [[path, *(one.get(path) for one in settings)] for path in paths]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def show(value: Any) -> str:
    """A setting for people: classes without their module, None where there is no such setting."""
    if isinstance(value, str) and ":" in value:
        return value.rpartition(":")[2]
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def curve(records: Sequence[Record], kind: Kind, grid: np.ndarray) -> Curve | None:
    """The runs on a grid of frames; None where none of them has scores of that kind.

    Training episodes are averaged over the window that each point ends; evaluations, and points without an episode,
    are interpolated linearly between their neighbours.
    """
    seeds = [record.series[kind] for record in records if kind in record.series]
    if not seeds:
        return None
    rows = [_binned(series, grid) if kind == "train" else _between(series.frames, series.returns, grid)
            for series in seeds]
    return Curve(frames=grid, returns=np.stack(rows))


def published_curve(table: Table, task: str) -> Curve | None:
    """The curve of a published table; None where there is none of that task."""
    if task not in table.curves:
        return None
    frames = np.array(table.curve_frames, float)
    return Curve(
        frames=frames, returns=np.stack([_between(frames, np.array(seed), frames) for seed in table.curves[task]])
    )


def grid_of(records: Sequence[Record]) -> np.ndarray:
    """(K,) frames from one window to the last frame that any run reached."""
    last = max(record.frames for record in records)
    return np.linspace(last / POINTS, last, POINTS)


def reached(records: Sequence[Record]) -> int:
    """Frames that all of the runs with scores have reached: where they are compared."""
    return min((record.frames for record in records if record.series), default=0)


def band(curve: Curve, *, reps: int = 1000) -> tuple[np.ndarray, stats.Interval]:
    """(K,) number of seeds at each point, and mean and 95 % interval over these; nan where there is no seed.

    One seed has no interval: its ends are nan.
    """
    counts = np.isfinite(curve.returns).sum(axis=0)
    point, low, high = (np.full(len(curve.frames), np.nan) for _ in range(3))
    for k in np.flatnonzero(counts):
        column = curve.returns[:, k]
        interval = stats.bootstrap(stats.mean, [column[np.isfinite(column)]], reps=reps)
        point[k] = interval.point
        if counts[k] > 1:
            low[k], high[k] = interval.low, interval.high
    return counts, stats.Interval(point=point, low=low, high=high)


def _decisive(record: Record) -> dict[str, Any]:
    ignored = RESUMABLE | TASK_FIELDS | {"seed"}
    return {key: value for key, value in record.settings.items() if key not in ignored}


def _is_short(value: Any) -> bool:
    return len(show(value)) <= 24


def _binned(series: Series, grid: np.ndarray) -> np.ndarray:
    step = grid[0]
    # episode at frame f belongs to the point k with grid[k] - step < f <= grid[k]
    index = np.ceil(np.round(series.frames / step, 6)).astype(int) - 1
    sums, counts = np.zeros(len(grid)), np.zeros(len(grid))
    inside = (index >= 0) & (index < len(grid))
    np.add.at(sums, index[inside], series.returns[inside])
    np.add.at(counts, index[inside], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 is the nan that marks an empty window
        means = sums / counts
    return _between(grid, means, grid)


def _between(frames: np.ndarray, returns: np.ndarray, grid: np.ndarray) -> np.ndarray:
    known = np.isfinite(returns)
    if not known.any():
        return np.full(len(grid), np.nan)
    return np.interp(grid, frames[known], returns[known], left=math.nan, right=math.nan)
