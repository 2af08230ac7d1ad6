"""Writes golden_rliable.json: what rliable 1.2.0 says of known scores, resampled by known indices.

    pip install rliable "arch<8" "pandas<3" && python tests/parity/make_golden_rliable.py

rliable draws from numpy's global generator and ignores its random_state, so its draws are replaced by ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rliable import library, metrics

REPS, SEED = 300, 7


def scores(seed: int, runs: int) -> np.ndarray:
    """(runs, 4) of skewed scores."""
    return np.round(np.random.default_rng(seed).gamma(1.5, 0.6, size=(runs, 4)), 3)


def draws(*groups: np.ndarray) -> list[np.ndarray]:
    """For each group (REPS, runs, tasks), in the order in which worldmodel.report.stats draws."""
    rng = np.random.default_rng(SEED)
    return [np.stack([rng.integers(len(g), size=(REPS, len(g))) for _ in range(g.shape[1])], axis=2) for g in groups]


def interval(function, *groups: np.ndarray) -> list[list[float]]:
    """[point, low, high] of rliable, its resamples replaced by ``draws``."""
    indices, state = draws(*groups), {"rep": -1}

    def single(self):
        state["rep"] += 1
        return (indices[0][state["rep"]], *self._strata_indices)

    def independent(self):
        state["rep"] += 1
        return [(i[state["rep"]], *s) for i, s in zip(indices, self._args_strata_indices)], {}

    library.StratifiedBootstrap.update_indices = single
    library.StratifiedIndependentBootstrap.update_indices = independent
    given = groups[0] if len(groups) == 1 else list(groups)
    points, intervals = library.get_interval_estimates({"x": given}, function, reps=REPS)
    return [np.ravel(points["x"]).tolist(), *np.reshape(intervals["x"], (2, -1)).tolist()]


x, y, thresholds = scores(1, 5), scores(2, 3), np.array([0.0, 0.25, 0.5, 1.0, 2.0])
aggregates = {
    "mean": metrics.aggregate_mean, "median": metrics.aggregate_median, "IQM": metrics.aggregate_iqm,
    "optimality gap": metrics.aggregate_optimality_gap,
}
document = {
    "reps": REPS, "seed": SEED, "x": x.tolist(), "y": y.tolist(), "thresholds": thresholds.tolist(),
    "intervals": {
        **{name: interval(lambda s, f=f: np.array([f(s)]), x) for name, f in aggregates.items()},
        "performance profile": interval(lambda s: library.score_distributions(s, thresholds), x),
        "probability of improvement": interval(lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), x, y),
    },
}
(Path(__file__).parent / "golden_rliable.json").write_text(json.dumps(document, indent=1) + "\n")
