"""Rows, scores, TensorBoard, and F16: logging that fails never stops a run."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldmodel.errors import StorageError, UserError
from worldmodel.train.log import Logger, read_metrics


def no_warning(sentence: str) -> None:
    raise AssertionError(sentence)


def clip(length: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (length, 8, 10, 3), np.uint8)


def fail_writes(monkeypatch: pytest.MonkeyPatch, partial: int = 0) -> None:
    """From now on the disk is full, after ``partial`` more bytes of every write."""
    original = os.write

    def write(descriptor: int, data: Any) -> int:
        if partial and len(data) > partial:
            return original(descriptor, data[:partial])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)


def tensorboard(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def test_rows_are_json_lines_and_come_back(tmp_path: Path) -> None:
    logger = Logger(tmp_path, warn=no_warning)
    logger.scalars(10, {"loss/reward": 0.1, "fps/env": 1e9})
    logger.scalars(20, {"a": math.nan, "b": math.inf, "c": -math.inf})
    logger.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step":10,"loss/reward":0.1,"fps/env":1000000000.0}'
    assert json.loads(lines[1]) == {"step": 20, "a": "nan", "b": "inf", "c": "-inf"}
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0] == {"step": 10, "loss/reward": 0.1, "fps/env": 1e9}
    assert math.isnan(rows[1]["a"]) and rows[1]["b"] == math.inf and rows[1]["c"] == -math.inf


def test_scores_hold_texts_and_lists(tmp_path: Path) -> None:
    logger = Logger(tmp_path, warn=no_warning)
    values = {"kind": "eval_mode", "mean": np.float32(2.5), "returns": [1.0, math.nan], "t": torch.tensor([3])}
    logger.score(5, values)
    logger.close()
    (row,) = read_metrics(tmp_path / "scores.jsonl")
    assert row["kind"] == "eval_mode" and row["mean"] == 2.5 and row["t"] == [3]
    assert row["returns"][0] == 1.0 and math.isnan(row["returns"][1])
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n{"step":2,"a":')
    assert read_metrics(path) == [{"step": 1}]
    logger = Logger(tmp_path, warn=no_warning)
    logger.scalars(3, {})
    logger.close()
    assert path.read_text() == '{"step":1}\n{"step":3}\n'
    path.write_text('{"step":1\n{"step":2}\n')
    with pytest.raises(ValueError, match="line 1 is not a JSON row"):
        read_metrics(path)


def test_a_long_torn_line_is_dropped_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step":1}\n{"step":2,"a":"' + "x" * 200_000)
    Logger(tmp_path, warn=no_warning).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step":1}\n'


def test_rewind_drops_the_rows_after_the_checkpoint(tmp_path: Path) -> None:
    logger = Logger(tmp_path, warn=no_warning)
    logger.scalars(1, {"a": 1.0})
    logger.score(1, {"return": 5.0})
    position = json.loads(json.dumps(logger.position()))
    logger.scalars(2, {"a": 2.0})
    logger.score(2, {"return": 6.0})
    logger.close()
    resumed = Logger(tmp_path, warn=no_warning)
    resumed.rewind(position)
    resumed.scalars(2, {"a": 20.0})
    resumed.close()
    assert [row["a"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 20.0]
    assert [row["return"] for row in read_metrics(tmp_path / "scores.jsonl")] == [5.0]
    assert [(e.step, e.value) for e in tensorboard(tmp_path).Scalars("a")] == [(1, 1.0), (2, 20.0)]


def test_rewind_past_the_end_warns_and_goes_on(tmp_path: Path) -> None:
    logger = Logger(tmp_path, warn=no_warning)
    logger.scalars(1, {"a": 1.0})
    position = logger.position()
    logger.close()
    (tmp_path / "metrics.jsonl").write_text("")
    told: list[str] = []
    resumed = Logger(tmp_path, warn=told.append)
    resumed.rewind(position)
    resumed.scalars(2, {"a": 2.0})
    resumed.close()
    assert len(told) == 1 and "metrics.jsonl is 19 bytes shorter" in told[0]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2]


def test_tensorboard_reads_scalars_and_videos(tmp_path: Path) -> None:
    logger = Logger(tmp_path, warn=no_warning)
    logger.scalars(7, {"loss/image": 0.5})
    path = logger.video(7, "video/open loop/image", clip(), fps=10)
    logger.close()
    assert path is not None and path == tmp_path / "videos" / "open_loop_image-000000007.png"
    events = tensorboard(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss/image")] == [(7, 0.5)]
    (image,) = events.Images("open_loop_image")
    assert (image.width, image.height) == (10, 8) and image.encoded_image_string == path.read_bytes()


def test_video_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    logger = Logger(tmp_path, warn=no_warning)
    path = logger.video(1, "../../x", clip())
    logger.close()
    assert path is not None and path.parent == tmp_path / "videos"


@pytest.mark.parametrize("partial", [0, 4])
def test_rows_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: int) -> None:
    told: list[str] = []
    logger = Logger(tmp_path, warn=told.append)
    logger.scalars(1, {"a": 1.0})
    with monkeypatch.context() as patch:
        fail_writes(patch, partial)
        for step in (2, 3):
            logger.scalars(step, {"a": 1.0})
        whole = (tmp_path / "metrics.jsonl").read_bytes()
    assert len(told) == 1 and "No space left" in told[0] and "training goes on" in told[0]
    assert whole == b'{"step":1,"a":1.0}\n'
    logger.scalars(4, {"a": 1.0})
    logger.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_deleted_tensorboard_folder_costs_one_warning(tmp_path: Path) -> None:
    told: list[str] = []
    logger = Logger(tmp_path, warn=told.append)
    for step in range(1, 6):
        logger.scalars(step, {"a": float(step)})
        if step == 2:
            shutil.rmtree(tmp_path / "tensorboard")
    logger.close()
    assert len(told) == 1 and "TensorBoard" in told[0]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [e.step for e in tensorboard(tmp_path).Scalars("a")] == [3, 4, 5]


def test_a_tensorboard_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file is in the way")
    told: list[str] = []
    logger = Logger(tmp_path, warn=told.append)
    for step in (1, 2):
        logger.scalars(step, {"a": 1.0})
    logger.close()
    assert len(told) == 1 and "TensorBoard" in told[0]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_deleted_metrics_file_starts_anew(tmp_path: Path) -> None:
    logger = Logger(tmp_path, warn=no_warning)
    logger.scalars(1, {})
    (tmp_path / "metrics.jsonl").unlink()
    logger.scalars(2, {})
    position = logger.position()
    logger.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 2}]
    assert position["metrics.jsonl"] == (tmp_path / "metrics.jsonl").stat().st_size


def test_a_video_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("a file is in the way")
    told: list[str] = []
    logger = Logger(tmp_path, warn=told.append)
    assert logger.video(1, "a", clip()) is None
    assert logger.video(2, "a", clip()) is None
    logger.close()
    assert len(told) == 1 and "videos" in told[0]


def test_a_run_folder_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        Logger(tmp_path / "file", warn=no_warning)


class FakeRun:
    def __init__(self, fails: bool) -> None:
        self.fails, self.rows = fails, []

    def log(self, row: dict[str, float], step: int) -> None:
        if self.fails:
            raise ConnectionError("no network")
        self.rows.append((step, row))

    def finish(self) -> None:
        pass


def fake_wandb(monkeypatch: pytest.MonkeyPatch, run: FakeRun) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    module = types.ModuleType("wandb")
    module.init = lambda **given: (calls.append(given), run)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_is_asked_for_and_keeps_its_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(fails=False)
    calls = fake_wandb(monkeypatch, run)
    for step in (1, 2):
        logger = Logger(tmp_path, wandb="project", config={"seed": 1}, warn=no_warning)
        logger.scalars(step, {"a": 1.0})
        logger.close()
    assert run.rows == [(1, {"a": 1.0}), (2, {"a": 1.0})]
    assert calls[0]["project"] == "project" and calls[0]["config"] == {"seed": 1}
    assert calls[0]["id"] == calls[1]["id"] and calls[1]["resume"] == "allow"


def test_a_dead_wandb_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(monkeypatch, FakeRun(fails=True))
    told: list[str] = []
    logger = Logger(tmp_path, wandb="project", warn=told.append)
    for step in (1, 2, 3):
        logger.scalars(step, {"a": 1.0})
    logger.close()
    assert len(told) == 1 and "no network" in told[0]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


def test_a_missing_wandb_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"worldmodel\[wandb\]"):
        Logger(tmp_path, wandb="project", warn=no_warning)
