"""F10: a signal in the middle of anything ends the run after one checkpoint, from which it goes on bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tiny import STEPS, newest, outcome, resume, rows, train
from worldmodel.agents.dreamer.agent import Dreamer
from worldmodel.envs.pool import Pool
from worldmodel.train.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(run_dir) == 0
    return run_dir


def nth_call(work: Callable[..., Any], number: int, signum: int, is_due: Callable[..., bool]) -> Callable[..., Any]:
    """``work``, in whose call ``number`` (from 1) of those that are due the process gets a signal."""
    count = [0]

    def counted(*given: Any, **named: Any) -> Any:
        count[0] += is_due(**named)
        if is_due(**named) and count[0] == number:
            os.kill(os.getpid(), signum)
        return work(*given, **named)

    return counted


PLACES = {
    "update": (Dreamer, "learn", 7, signal.SIGTERM, 143),
    "environment step": (Pool, "step", 20, signal.SIGUSR1, 143),
    "save": (Checkpoints, "_publish", 2, signal.SIGINT, 130),
    "evaluation": (Dreamer, "act", 3, signal.SIGTERM, 143),
    "last evaluation": (Dreamer, "act", 20, signal.SIGTERM, 143),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_in_the_middle_costs_nothing(
    place: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, name, number, signum, code = PLACES[place]
    run_dir = tmp_path / "run"
    is_due = (lambda explore: not explore) if name == "act" else (lambda **named: True)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, nth_call(getattr(owner, name), number, signum, is_due))
        assert train(run_dir) == code
    out, err = capsys.readouterr()
    assert f"worldmodel resume {run_dir}" in out and err == ""
    saved = [path.name for path in Checkpoints(run_dir / "checkpoints").candidates()]
    assert len(set(saved)) == len(saved) and not any("-" in name for name in saved), "no step was saved twice"
    assert "evaluation" not in place or len(rows(run_dir, "scores.jsonl")) < len(rows(whole, "scores.jsonl"))
    assert resume(run_dir) == 0
    assert outcome(run_dir) == outcome(whole)


HANGING = """
import os, sys, time
from tests.faults import tiny
from worldmodel.envs.toys.base import ToyBatch
ToyBatch.step = lambda self, action: (print("hangs", flush=True), time.sleep(600))
sys.exit(tiny.train(sys.argv[1]))
"""


def test_a_second_signal_ends_a_run_that_hangs(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline() != "hangs\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.7)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 143 and time.monotonic() - start < 2


# A run that was killed before its first checkpoint


def killed_early(whole: Path, run_dir: Path) -> Path:
    """The folder as SIGKILL leaves it: some rows, a lock, half of something, no checkpoint."""
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints" / ".tmp-1234").mkdir(parents=True)
    (run_dir / ".config.json.1234").write_text('{"run')
    (run_dir / "lock").write_text("")
    return run_dir


def test_a_run_killed_before_its_first_checkpoint_begins_afresh_when_it_is_given_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = killed_early(whole, tmp_path / "run")
    assert resume(run_dir) == 2
    assert "give its `worldmodel train` again" in capsys.readouterr().err
    assert train(run_dir, "--seed", "5") == 2
    assert "holds a run with other settings" in capsys.readouterr().err
    assert train(run_dir) == 0
    assert outcome(run_dir) == outcome(whole)
    assert not [path.name for path in run_dir.iterdir() if path.name.startswith(".") or path.name == "lock"]


def test_a_run_killed_before_its_configuration_was_written_leaves_an_empty_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / ".config.json.1234").write_text('{"run')
    (run_dir / "lock").write_text("")
    assert train(run_dir) == 0
    assert newest(run_dir).step == STEPS


def test_a_run_with_a_checkpoint_is_never_begun_afresh(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outcome(whole)
    assert train(whole) == 2
    assert f"worldmodel resume {whole}" in capsys.readouterr().err
    assert outcome(whole) == before
