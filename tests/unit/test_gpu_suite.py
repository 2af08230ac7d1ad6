"""The GPU suite on a CPU: every command runs, keeps to its time, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "gpu_suite.py")]
LEARN = ["--preset", "quickstart", "--task", "catch"]


def suite(out: Path, command: str, *words: str, status: int = 0) -> str:
    line = [*TOOL, command, "--device", "cpu", "--smoke", "--out", str(out), *words]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def rows(path: Path) -> dict:
    return json.loads(path.read_text())["rows"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_cuda_it_says_so_and_exits_with_2():
    done = subprocess.run([*TOOL, "update"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1 and "no CUDA device" in done.stdout


def test_updates_are_measured_once_and_not_again(tmp_path):
    suite(tmp_path, "update")
    found = rows(tmp_path / "gpu_update_smoke.json")
    assert len(found) == 6 and all(row["finite"] and row["learn"]["median_ms"] > 0 for row in found.values())
    assert suite(tmp_path, "update").count("measured before") == 6


def test_no_time_means_no_rows(tmp_path):
    assert suite(tmp_path, "act", "--minutes", "0").count("no time left") == 18
    assert not (tmp_path / "gpu_act_smoke.json").exists()


def test_acting_is_measured_at_three_batch_sizes(tmp_path):
    suite(tmp_path, "act")
    assert len(rows(tmp_path / "gpu_act_smoke.json")) == 18


def test_a_learning_run_stops_in_time_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    words = [*LEARN, "--run-dir", str(folder), "--minutes", "0", "--", "--train.steps", "1000000"]
    suite(tmp_path, "learn", *words)
    first = rows(tmp_path / "gpu_learn_catch_smoke.json")["run"]
    assert first["reason"] == "signal" and first["env_steps"] > 0
    suite(tmp_path, "learn", *words)
    assert rows(tmp_path / "gpu_learn_catch_smoke.json")["run"]["env_steps"] > first["env_steps"]
