"""Statistics by hand; intervals against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.report import stats

TWENTY = list(np.arange(20.0).reshape(4, 5).T)
"""Five tasks of four runs each: 0, 5, 10, 15; 1, 6, 11, 16; ..."""


def test_aggregates_by_hand() -> None:
    # the middle ten of 0 .. 19 are 5 .. 14
    assert stats.iqm(TWENTY) == 9.5
    assert stats.mean(TWENTY) == 9.5
    skewed = [np.array([0.0, 2.0]), np.array([5.0, 7.0]), np.array([100.0, 200.0])]
    assert stats.median(skewed) == 6.0
    assert stats.mean(skewed) == pytest.approx((1 + 6 + 150) / 3)
    # 0, 0.1, .., 1.9: ten values fall short of 1, by 1.0 + 0.9 + .. + 0.1 = 5.5 in all
    assert stats.optimality_gap([x / 10 for x in TWENTY]) == pytest.approx(5.5 / 20)
    assert stats.optimality_gap([x / 10 for x in TWENTY], 2.0) == pytest.approx(2 - 0.95)


def test_tasks_may_have_different_numbers_of_runs() -> None:
    ragged = [np.array([1.0, 3.0, 5.0]), np.array([7.0])]
    assert stats.mean(ragged) == 5.0 and stats.median(ragged) == 5.0
    assert stats.iqm(ragged) == 4.0  # the middle two of 1, 3, 5, 7
    interval = stats.bootstrap(stats.mean, ragged)
    # the task with one run always gives 7; the other between 1 and 5
    assert 4.0 <= interval.low < 5.0 < interval.high <= 6.0


def test_profile_counts_runs_strictly_above_each_threshold() -> None:
    profile = stats.performance_profile([np.array([0.0, 1.0]), np.array([1.0, 2.0])], np.array([-1.0, 0.0, 1.0, 2.0]))
    assert profile.tolist() == [1.0, 0.75, 0.25, 0.0]


def test_probability_of_improvement_by_hand() -> None:
    ours, theirs = [np.array([3.0]), np.array([4.0])], [np.array([1.0]), np.array([3.5, 5.0])]
    assert stats.probability_of_improvement(ours, theirs) == 0.75
    assert stats.probability_of_improvement(theirs, ours) == 0.25
    assert stats.probability_of_improvement(ours, ours) == 0.5
    with pytest.raises(ValueError):
        stats.probability_of_improvement(ours, theirs[:1])


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(200):
        sample = [rng.normal(task, 1.0, size=20) for task in range(5)]
        interval = stats.bootstrap(stats.mean, sample, reps=300, confidence=0.9, seed=trial)
        covered.append(interval.low < 2.0 < interval.high)
    assert 0.8 < np.mean(covered) < 0.97


def test_bootstrap_draws_each_task_on_its_own_and_repeats_with_its_seed() -> None:
    far = [np.array([0.0, 1.0]), np.array([10.0, 11.0])]
    drawn = [stats.draw(task, 500, np.random.default_rng(1)) for task in far]
    assert set(np.unique(drawn[0])) == {0.0, 1.0} and set(np.unique(drawn[1])) == {10.0, 11.0}
    first, again, other = (stats.bootstrap(stats.mean, TWENTY, reps=50, seed=seed) for seed in (3, 3, 4))
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)
    alone = stats.bootstrap(stats.iqm, [np.array([2.0]), np.array([4.0])])
    assert alone.low == alone.point == alone.high == 3.0
