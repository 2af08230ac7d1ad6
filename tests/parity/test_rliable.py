"""worldmodel.report.stats against rliable 1.2.0, resample for resample (make_golden_rliable.py wrote the numbers)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.report import stats

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_rliable.json").read_text())
X, Y = ([np.array(task) for task in zip(*GOLDEN[name])] for name in "xy")


def compare(name: str, interval: stats.Interval) -> None:
    point, low, high = GOLDEN["intervals"][name]
    for ours, theirs in ((interval.point, point), (interval.low, low), (interval.high, high)):
        np.testing.assert_allclose(np.ravel(ours), theirs, rtol=0, atol=1e-6)
    assert (interval.low < interval.high).any(), "the golden interval must not be empty, or the test shows nothing"


@pytest.mark.parametrize("name", sorted(stats.AGGREGATES))
def test_aggregates_and_their_intervals_are_those_of_rliable(name: str) -> None:
    compare(name, stats.bootstrap(stats.AGGREGATES[name], X, reps=GOLDEN["reps"], seed=GOLDEN["seed"]))


def test_performance_profile_is_that_of_rliable() -> None:
    thresholds = np.array(GOLDEN["thresholds"])

    def profile(scores: stats.Scores) -> np.ndarray:
        return stats.performance_profile(scores, thresholds)

    compare("performance profile", stats.bootstrap(profile, X, reps=GOLDEN["reps"], seed=GOLDEN["seed"]))


def test_probability_of_improvement_is_that_of_rliable() -> None:
    interval = stats.bootstrap(stats.probability_of_improvement, X, Y, reps=GOLDEN["reps"], seed=GOLDEN["seed"])
    compare("probability of improvement", interval)
