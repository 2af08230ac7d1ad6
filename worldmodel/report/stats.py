"""Statistics of a few runs on several tasks (Agarwal et al. 2021, arXiv 2108.13264).

Scores are a sequence with one array per task, its last axis the runs (seeds) of that task; tasks may have different
numbers of runs. Leading axes are batch axes (resamples), and every statistic keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import trim_mean

Scores = Sequence[np.ndarray]


def mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of the mean over runs.

    >>> float(mean([np.array([1.0, 3.0]), np.array([4.0])]))
    3.0
    """
    return np.mean(_task_means(scores), axis=0)


def median(scores: Scores) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median(_task_means(scores), axis=0)


def iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean: mean of the middle half of all runs of all tasks.

    >>> float(iqm([np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0, 700.0])]))
    3.5
    """
    return np.asarray(trim_mean(_pooled(scores), 0.25, axis=-1))


def optimality_gap(scores: Scores, target: float = 1.0) -> np.ndarray:
    """How far runs fall short of ``target`` on average; what lies above it does not make up for what lies below."""
    return target - np.minimum(_pooled(scores), target).mean(axis=-1)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Share of all runs that score more than each threshold, (..., K)."""
    pooled = _pooled(scores)
    return np.stack([(pooled > threshold).mean(axis=-1) for threshold in thresholds], axis=-1)


def probability_of_improvement(ours: Scores, theirs: Scores) -> np.ndarray:
    """Probability that a run of ours beats one of theirs on the same task, mean over tasks; a tie counts half.

    >>> float(probability_of_improvement([np.array([3.0]), np.array([4.0])], [np.array([1.0]), np.array([3.5, 5.0])]))
    0.75
    """
    shares = []
    for x, y in zip(ours, theirs, strict=True):
        difference = x[..., :, None] - y[..., None, :]
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
    return np.mean(shares, axis=0)


AGGREGATES: dict[str, Callable[[Scores], np.ndarray]] = {
    "IQM": iqm, "median": median, "mean": mean, "optimality gap": optimality_gap,
}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic, and the confidence interval around it; all of the statistic's shape."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap(
    statistic: Callable[..., np.ndarray], *groups: Scores, reps: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of ``statistic(*groups)`` by the stratified bootstrap: the runs of each task of each group
    are drawn anew with replacement, each task on its own, the tasks stay. The same seed gives the same interval.

    With one run per task there is nothing to draw: the interval is the point.
    """
    rng = np.random.default_rng(seed)
    drawn = [[draw(task, reps, rng) for task in scores] for scores in groups]
    values = statistic(*drawn)
    low, high = np.percentile(values, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0)
    return Interval(point=statistic(*groups), low=low, high=high)


def draw(task: np.ndarray, reps: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) to (reps, n): resamples with replacement of the runs of one task."""
    return task[rng.integers(task.shape[-1], size=(reps, task.shape[-1]))]


def _task_means(scores: Scores) -> list[np.ndarray]:
    return [task.mean(axis=-1) for task in scores]


def _pooled(scores: Scores) -> np.ndarray:
    return np.concatenate(list(scores), axis=-1)
