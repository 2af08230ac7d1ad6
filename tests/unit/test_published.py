"""The published tables: complete, sourced, and they recompute the aggregates that their authors published."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel import presets, published
from worldmodel.arguments import TrainOptions
from worldmodel.envs.atari import RANDOM_AND_HUMAN
from worldmodel.errors import UserError
from worldmodel.report import stats

TABLES = [table for benchmark in published.benchmarks() for table in published.tables(benchmark)]


def normalised(table: published.Table) -> list[np.ndarray]:
    """One array of finite normalised scores per task."""
    scores = []
    for task, values in table.final.items():
        scale = published.scale(table.benchmark, task)
        assert scale is not None
        finite = np.array([x for x in values if np.isfinite(x)])
        scores.append((finite - scale[0]) / (scale[1] - scale[0]))
    return scores


@pytest.mark.parametrize(
    ("benchmark", "name", "mean", "median", "iqm"),
    [
        ("atari100k", "simulus", 1.645, 0.982, 0.990),
        ("atari100k", "dreamerv3_2024", 1.247, 0.494, 0.463),
        ("atari100k", "dreamerv3_2023", 1.097, 0.466, 0.497),
        ("atari100k", "diamond", 1.459, 0.373, 0.641),
        ("atari100k", "delta_iris", 1.383, 0.594, 0.682),
        ("atari100k", "rem", 1.222, 0.280, 0.673),
        ("atari100k", "storm", 1.222, 0.425, 0.561),
        ("atari100k", "iris", 1.046, 0.289, 0.501),
        ("atari100k", "twm", 0.956, 0.505, 0.459),
        ("atari100k", "spr", 0.616, 0.396, 0.337),
        ("atari100k", "efficientzero", 1.943, 1.090, 1.047),
        ("atari100k", "simple", 0.332, 0.134, 0.130),
    ],
)
def test_atari100k_tables_recompute_the_published_aggregates(
    benchmark: str, name: str, mean: float, median: float, iqm: float
) -> None:
    scores = normalised(published.table(benchmark, name))
    found = (stats.mean(scores), stats.median(scores), stats.iqm(scores))
    np.testing.assert_allclose(found, (mean, median, iqm), atol=6e-4)


@pytest.mark.parametrize(
    ("benchmark", "name", "tasks", "mean", "median"),
    [
        ("dmc_vision", "dreamerv3_2024", 20, 785.6, 857.6),
        ("dmc_vision", "dreamerv3_2023", 20, 769.2, 830.5),
        ("dmc_vision", "drqv2", 20, 704.9, None),
        ("dmc_vision", "curl", 20, 524.4, None),
        ("dmc_vision", "tdmpc2", 12, 729.0, None),
        ("dmc_proprio", "dreamerv3_2023", 18, 753.5, 870.6),
    ],
)
def test_dmc_tables_recompute_the_published_aggregates(
    benchmark: str, name: str, tasks: int, mean: float, median: float | None
) -> None:
    scores = normalised(published.table(benchmark, name))
    assert len(scores) == tasks
    assert 1000 * stats.mean(scores) == pytest.approx(mean, abs=0.06)
    assert median is None or 1000 * stats.median(scores) == pytest.approx(median, abs=0.06)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.benchmark}/{table.name}")
def test_every_table_names_its_source_and_is_whole(table: published.Table) -> None:
    assert all(table.source[key] for key in ("paper", "repo", "commit", "path", "licence"))
    assert len(table.source["commit"]) == 40 and table.number and table.kind in ("train", "eval")
    assert table.final and all(np.isfinite(values).any() for values in table.final.values())
    assert not table.curves or set(table.curves) == set(table.final)
    for task, seeds in table.curves.items():
        assert len(seeds) == len(table.final[task])
        assert all(len(seed) == len(table.curve_frames) for seed in seeds)
    assert table.curve_frames == tuple(sorted(table.curve_frames))
    if table.benchmark == "atari100k":
        assert set(table.final) == set(published.table("atari100k", "simulus").final)


def test_the_end_of_a_curve_is_the_last_score() -> None:
    table = published.table("dmc_vision", "dreamerv3_2024")
    for task, seeds in table.curves.items():
        ends = np.nanmean([seed[-1] for seed in seeds])
        assert ends == pytest.approx(np.mean(table.final[task]), abs=40.0), task


@pytest.mark.parametrize(
    ("preset", "options", "sentence"),
    [
        ("dmc.vision", "--task walker_stand", "975.3 for walker_stand"),
        ("dmc.proprio", "--task hopper_hop", "113.4 for hopper_hop"),
        ("atari100k", "--task boxing", "82.1 for boxing"),
        ("atari100k", "--task pong --version 2023", "DreamerV3 2023, Atari100k at 400k frames"),
        ("atari", "--task ms_pacman", "23,809 for ms_pacman"),
        ("atari", "--task carnival", "no figure for carnival"),
        ("tdmpc2", "--task cup_catch", "at 1M frames (this run: 5m, default): 985.8 for ball_in_cup_catch"),
    ],
)
def test_presets_answer_to_the_tables(preset: str, options: str, sentence: str) -> None:
    run, _, _ = presets.parse(presets.find_preset(preset), options.split(), TrainOptions(), prog="train")
    assert sentence in run.published


def test_atari_references_are_those_that_the_environment_reports() -> None:
    references = published.atari_references()
    assert len(references) == 57
    for game, pair in RANDOM_AND_HUMAN.items():
        assert references[game] == tuple(pair)


def test_an_unknown_table_is_a_sentence_with_the_closest_names() -> None:
    with pytest.raises(UserError, match="did you mean 'simulus'"):
        published.table("atari100k", "simulis")
    with pytest.raises(UserError, match="unknown benchmark 'atari'"):
        published.tables("atari")
    assert published.scale("gym", "CartPole-v1") is None
