"""Animations, open-loop grids, learning curves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from worldmodel.errors import StorageError, UserError
from worldmodel.train.video import (
    format_tick,
    learning_curve_png,
    nice_ticks,
    open_loop_grid,
    save_animation,
    write_png,
)

GREEN, RED = (60, 190, 75), (225, 50, 50)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def test_an_apng_is_lossless_and_keeps_its_pace(tmp_path: Path) -> None:
    frames = noise(5, 7, 9, 3)
    path = save_animation(tmp_path / "deep" / "a.png", frames, fps=20)
    with Image.open(path) as image:
        assert len(list(ImageSequence.Iterator(image))) == 5
        assert image.info["duration"] == 50 and image.info["loop"] == 0
        for i, frame in enumerate(frames):
            image.seek(i)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_a_gif_has_all_frames(tmp_path: Path) -> None:
    with Image.open(save_animation(tmp_path / "a.gif", noise(4, 8, 8, 3), fps=10)) as image:
        assert len(list(ImageSequence.Iterator(image))) == 4 and image.info["duration"] == 100


def test_gray_frames_and_tensors_are_taken(tmp_path: Path) -> None:
    with Image.open(save_animation(tmp_path / "a.png", torch.full((1, 4, 4, 1), 9, dtype=torch.uint8), fps=5)) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (9, 9, 9)


def test_an_mp4_of_odd_size_is_written_where_pyav_is(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = save_animation(tmp_path / "a.mp4", noise(6, 33, 47, 3), fps=12)
    with av.open(str(path)) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(34, 48, 3)] * 6


def test_without_pyav_the_extra_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"worldmodel\[video\]"):
        save_animation(tmp_path / "a.mp4", noise(2, 4, 4, 3), fps=5)
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown animation suffix '.webm'.*\.png"):
        save_animation(tmp_path / "a.webm", noise(2, 4, 4, 3), fps=5)
    for bad in (noise(4, 4, 3), noise(0, 4, 4, 3), noise(2, 4, 4, 2), noise(2, 4, 4, 3).astype(np.float32)):
        with pytest.raises(ValueError, match="frames must be"):
            save_animation(tmp_path / "a.png", bad, fps=5)
    with pytest.raises(ValueError, match="fps"):
        save_animation(tmp_path / "a.png", noise(2, 4, 4, 3), fps=0)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_png(tmp_path / "a.png", noise(4, 4, 3))
    before = path.read_bytes()

    def fail(self: Image.Image, file: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(StorageError, match=r"a\.png: No space left"):
        write_png(path, noise(4, 4, 3, seed=1))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_grid_shows_truth_model_error_in_frames_of_their_colour() -> None:
    truth = noise(2, 3, 4, 5, 3)
    model = truth.astype(np.float32) / 255
    model[1, 2] = 1 - model[1, 2]
    grid = open_loop_grid(truth, torch.from_numpy(model), context=2)
    assert grid.shape == (3, 3 * (4 + 4), 2 * (5 + 4), 3) and grid.dtype == np.uint8
    # Columns are sequences: the first starts at 2, the second at 9 + 2.
    np.testing.assert_array_equal(grid[0, 2:6, 2:7], truth[0, 0])
    np.testing.assert_array_equal(grid[2, 2:6, 11:16], truth[1, 2])
    np.testing.assert_array_equal(grid[2, 10:14, 2:7], truth[0, 2])
    np.testing.assert_array_equal(grid[2, 10:14, 11:16], 255 - truth[1, 2])
    assert not grid[:2, 18:22, 2:7].any(), "no error, no light"
    assert grid[2, 18:22, 11:16].any()
    for row in (8, 16):
        for column in (0, 9):
            assert tuple(grid[1, row, column]) == GREEN and tuple(grid[2, row, column]) == RED
    assert tuple(grid[1, 0, 0]) not in (GREEN, RED)


def test_errors_go_from_black_over_red_and_yellow_to_white() -> None:
    truth = np.zeros((1, 1, 1, 4, 1), np.float32)
    model = np.array([0, 1 / 6, 1 / 3, 0.5], np.float32).reshape(1, 1, 1, 4, 1)
    grid = open_loop_grid(truth, model, context=0)
    error = grid[0, 2 * 5 + 2, 2:6]
    np.testing.assert_array_equal(error, [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]])


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [1, 1, 1]), (4, [3, 3, 3]), (6, [3, 4, 5])])
def test_a_stack_of_frames_shows_the_newest(channels: int, shown: list[int]) -> None:
    truth = noise(1, 1, 2, 2, channels)
    grid = open_loop_grid(truth, truth, context=1)
    np.testing.assert_array_equal(grid[0, 2:4, 2:4], truth[0, 0][..., shown])


def test_a_model_that_went_wild_can_still_be_drawn() -> None:
    model = torch.tensor([float("nan"), float("inf"), -5.0, 9.0], dtype=torch.bfloat16).reshape(1, 1, 2, 2, 1)
    grid = open_loop_grid(np.zeros((1, 1, 2, 2, 1), np.uint8), model, context=0)
    np.testing.assert_array_equal(grid[0, 8:10, 2:4, 0], [[0, 255], [0, 255]])


def test_the_grid_scales_and_refuses_other_shapes() -> None:
    truth = noise(1, 2, 4, 4, 3)
    assert open_loop_grid(truth, truth, context=1, scale=3).shape == (2, 48, 16, 3)
    with pytest.raises(ValueError, match=r"both be \(B, T, h, w, C\)"):
        open_loop_grid(truth, truth[:, :1], context=1)


def test_a_learning_curve_is_drawn_where_its_numbers_are(tmp_path: Path) -> None:
    points = [(0.0, 0.0, 0.0, 0.0), (500.0, 500.0, 450.0, 550.0), (1000.0, 1000.0, 1000.0, 1000.0)]
    with Image.open(learning_curve_png(tmp_path / "c.png", points, "rising")) as image:
        assert image.size == (800, 480)
        picture = np.asarray(image.convert("RGB")).astype(int)
    blue = (picture[..., 2] > 150) & (picture[..., 0] < 90)
    rows, columns = np.nonzero(blue)
    # A straight rise from the lower left to the upper right corner of the axes.
    assert columns.min() < 82 and columns.max() > 770
    assert rows[columns < 90].min() > 400 and rows[columns > 768].max() < 60
    assert np.corrcoef(rows, columns)[0, 1] < -0.99


@pytest.mark.parametrize(
    "scores",
    [
        [], [(0.0, 1.0, 1.0, 1.0)], [(5.0, float("nan"), 0.0, 0.0), (9.0, 2.0, 1.0, 3.0)],
        {"a": [(0.0, -1e9, -2e9, 1e9), (1e8, 3.0, 2.0, 4.0)], "b": []},
        [(float(i), 0.001 * i, 0.0, 0.002 * i) for i in range(100)],
    ],
)  # fmt: skip
def test_curves_of_any_kind_can_be_drawn(tmp_path: Path, scores: list[tuple[float, float, float, float]]) -> None:
    learning_curve_png(tmp_path / "c.png", scores, "any", size=(300, 200))
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (300, 200)


def test_tick_labels() -> None:
    assert nice_ticks(3.0, 947.0, 6) == [0, 200, 400, 600, 800, 1000]
    ticks = [0.0, 500_000.0, 1_000_000.0]
    assert [format_tick(t, ticks) for t in ticks] == ["0", "0.5M", "1.0M"]
    assert format_tick(-0.05, [-0.05, 0.0]) == "-0.05"
    assert format_tick(20_000, [0, 20_000]) == "20k"


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(2, 12))
def test_ticks_enclose_what_is_drawn(low: float, span: float, most: int) -> None:
    ticks = nice_ticks(low, low + span, most)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 2 * most + 2
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= low + span - 1e-6 * step
