"""2N steps equal N steps, a kill, a resume and N more steps: weights, metrics and replay, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from worldmodel.train.checkpoint import Checkpoints

ARGS = [
    "quickstart", "--train.steps", "800", "--train.log-steps", "40", "--train.checkpoint-steps", "400",
    "--train.eval-every", "400", "--train.eval-episodes", "2", "--train.keep-checkpoints", "9",
    "--replay.capacity", "600", "--replay.min-starts", "64",
]


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "worldmodel", *map(str, args)]


def metrics(run_dir: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "fps/"))} for row in rows]


def final(run_dir: Path):
    checkpoint = Checkpoints(run_dir / "checkpoints").latest(on_skip=lambda text: None)
    groups = {name: checkpoint.tensors(name) for name in checkpoint.groups()}
    return checkpoint, groups


def assert_same(one: Path, two: Path) -> None:
    (a, x), (b, y) = final(one), final(two)
    assert a.step == b.step == 800 and x.keys() == y.keys()
    different = [f"{g}/{k}" for g in x for k in x[g] if not torch.equal(x[g][k], y[g][k])]
    assert different == []
    left, right = metrics(one), metrics(two)
    assert len(left) == len(right) > 6
    assert [(p, q) for p, q in zip(left, right) if p != q] == []
    files = {f for f in a.files if f.startswith("replay/")}
    assert files and {f: a.files[f].sha256 for f in files} == {f: b.files[f].sha256 for f in files}
    assert [json.loads(s) for s in (one / "scores.jsonl").read_text().splitlines()] == [
        json.loads(s) for s in (two / "scores.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command("train", *ARGS, "--run-dir", run_dir), check=True, timeout=300)
    return run_dir


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_bit_for_bit(whole: Path, tmp_path: Path, sig: signal.Signals):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command("train", *ARGS, "--run-dir", run_dir))
    checkpoint = run_dir / "checkpoints" / "000000000400" / "manifest.json"
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    # somewhere between two checkpoints, rows already written past the first
    lines = len((run_dir / "metrics.jsonl").read_text().splitlines())
    while len((run_dir / "metrics.jsonl").read_text().splitlines()) <= lines and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, sig)
    code = process.wait(60)
    assert code == (-9 if sig == signal.SIGKILL else 143)
    saved = Checkpoints(run_dir / "checkpoints").latest(on_skip=lambda text: None).step
    assert saved == 400 if sig == signal.SIGKILL else 400 < saved < 800
    subprocess.run(command("resume", run_dir), check=True, timeout=300)
    assert_same(whole, run_dir)


def test_a_resume_with_changed_sizes_is_refused_in_a_sentence(whole: Path):
    before = sorted(p.name for p in (whole / "checkpoints").iterdir())
    refused = command("resume", whole, "--replay.batch-size", "4")
    result = subprocess.run(refused, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2 and "batch_size" in result.stderr and "Traceback" not in result.stderr
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == before


def test_more_steps_continue_the_same_folder(whole: Path, tmp_path: Path):
    import shutil

    run_dir = tmp_path / "copy"
    shutil.copytree(whole, run_dir)
    longer = command("resume", run_dir, "--train.steps", "880")
    result = subprocess.run(longer, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert Checkpoints(run_dir / "checkpoints").latest(on_skip=lambda text: None).step == 880
    assert "bit for bit" in result.stdout + result.stderr
