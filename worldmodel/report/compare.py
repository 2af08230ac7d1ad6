"""Our methods beside published ones, on the same task at the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldmodel import published
from worldmodel.published import Table
from worldmodel.report import stats
from worldmodel.report.charts import Line
from worldmodel.report.curves import Curve, Method, curve, grid_of, published_curve, reached
from worldmodel.report.folders import Kind, Record

CLOSE = 0.98
"""A run that took this share of a benchmark's frames answers to the last published score."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: who ran it, and where they are compared."""

    name: str
    benchmark: str
    game: str
    records: tuple[Record, ...]
    frames: int
    """Frames that all runs with scores have reached."""

    @property
    def scale(self) -> tuple[float, float] | None:
        """The returns that count as 0 and 1."""
        return published.scale(self.benchmark, self.game) if self.benchmark else None

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of scores to show; evaluations by sampling only where there are no training episodes."""
        known = {kind for record in self.records for kind in record.series}
        order: list[Kind] = ["train", "mode"] if "train" in known else ["mode", "sampled"]
        return [kind for kind in order if kind in known]


def tasks(records: Sequence[Record]) -> tuple[Task, ...]:
    """The tasks of runs that have scores, by name."""
    names = sorted({record.task for record in records if record.series})
    found = []
    for name in names:
        of = tuple(record for record in records if record.task == name and record.series)
        found.append(
            Task(name=name, benchmark=of[0].benchmark, game=of[0].game, records=of, frames=reached(of))
        )
    return tuple(found)


def our_curve(method: Method, task: Task, kind: Kind) -> Curve | None:
    """A method's learning curve on the task's grid."""
    return curve([record for record in method.on(task.name) if record.series], kind, grid_of(task.records))


def our_scores(method: Method, task: Task, kind: Kind) -> np.ndarray:
    """One score per seed where all runs of the task are compared; empty where there is none."""
    found = our_curve(method, task, kind)
    return np.empty(0) if found is None else found.at(task.frames)


def tables(benchmark: str, kind: Kind) -> tuple[Table, ...]:
    """Published tables whose numbers are of that kind, training episodes or separate evaluations: DreamerV3 first."""
    wished = {"train": "train", "mode": "eval", "sampled": "eval"}[kind]
    found = [table for table in published.tables(benchmark) if table.kind == wished] if benchmark else []
    return tuple(sorted(found, key=lambda table: table.name != "dreamerv3_2024"))


def line_of(table: Table, index: int) -> Line:
    """How a published table looks in a chart; ``index`` counts the tables of :func:`tables`."""
    return Line(label=f"{table.method}, published", index=index, is_published=True)


def published_scores(table: Table, task: Task) -> np.ndarray:
    """One score per seed at the frames where the task is compared; empty where nothing was published there."""
    if task.frames >= CLOSE * table.frames:
        final = np.array(table.final.get(task.game, ()))
        return final[np.isfinite(final)]
    found = published_curve(table, task.game)
    within = found is not None and found.frames[0] <= task.frames <= found.frames[-1]
    return found.at(task.frames) if found is not None and within else np.empty(0)


def normalised(scores: np.ndarray, task: Task) -> np.ndarray:
    """Scores on the task's scale."""
    assert task.scale is not None
    low, high = task.scale
    return (scores - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Several tasks of one benchmark that all our methods ran."""

    benchmark: str
    kind: Kind
    unit: str
    tasks: tuple[Task, ...]
    rows: tuple[tuple[Line, dict[str, np.ndarray]], ...]
    """Normalised scores by task, ours first; published ones only where they have every task."""

    def scores(self, index: int) -> stats.Scores:
        """A row as statistics take it."""
        return [self.rows[index][1][task.game] for task in self.tasks]


def suites(methods: Sequence[Method], every: Sequence[Task]) -> tuple[Suite, ...]:
    """The benchmarks of which our methods share at least two tasks, for each kind of scores."""
    found = []
    for benchmark in sorted({task.benchmark for task in every if task.scale is not None}):
        of = [task for task in every if task.benchmark == benchmark]
        for kind in ("train", "mode"):
            ours = [
                (Line(label=method.label, index=index), {task.game: our_scores(method, task, kind) for task in of})
                for index, method in enumerate(methods) if any(method.on(task.name) for task in of)
            ]
            shared = tuple(task for task in of if all(len(scores[task.game]) for _, scores in ours))
            if len({task.game for task in shared}) < 2 or len({task.game for task in shared}) < len(shared):
                continue
            theirs = [
                (line_of(table, index), {task.game: published_scores(table, task) for task in shared})
                for index, table in enumerate(tables(benchmark, kind))
            ]
            rows = tuple(
                (line, {task.game: normalised(scores[task.game], task) for task in shared})
                for line, scores in ours + theirs if all(len(scores[task.game]) for task in shared)
            )
            unit = "human-normalised score" if benchmark.startswith("atari") else "return / 1000"
            found.append(Suite(benchmark=benchmark, kind=kind, unit=unit, tasks=shared, rows=rows))
    return tuple(found)


def improvement(ours: Method, theirs: Method, every: Sequence[Task], kind: Kind) -> tuple[int, stats.Interval] | None:
    """Number of tasks that both ran, and the probability that a run of ``ours`` beats one of ``theirs`` on them."""
    pairs = [(our_scores(ours, task, kind), our_scores(theirs, task, kind)) for task in every]
    shared = [(x, y) for x, y in pairs if len(x) and len(y)]
    if not shared:
        return None
    x, y = zip(*shared)
    return len(shared), stats.bootstrap(stats.probability_of_improvement, x, y)
