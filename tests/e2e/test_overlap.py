"""Environments step while the agent learns, and what is learned does not depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.tiny import newest, outcome, resume, train
from worldmodel.envs.pool import Pool
from worldmodel.train.loop import Trainer


def words(kind: str) -> list[str]:
    return ["--train.pool", kind, "--train.steps", "32"]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("serial") / "run"
    assert train(run_dir, *words("serial")) == 0
    return run_dir


def test_updates_lie_between_sending_and_receiving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(cls: type, name: str) -> None:
        method = getattr(cls, name)

        def call(self: Any, *given: Any) -> Any:
            order.append(name)
            return method(self, *given)

        monkeypatch.setattr(cls, name, call)

    for name in ("send", "receive"):
        noted(Pool, name)
    for name in ("_learn", "_evaluate", "save"):
        noted(Trainer, name)
    assert train(tmp_path / "run", *words("serial")) == 0
    told = " ".join(order)
    assert "send _learn receive" in told and "_learn send" not in told and "receive _learn" not in told
    assert "send _evaluate" not in told and "send save" not in told


def test_processes_learn_what_a_serial_pool_learns_and_resume_bit_for_bit(serial: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(run_dir, "--train.pool", "process", "--train.steps", "16") == 0
    assert newest(run_dir).step == 16
    assert resume(run_dir, "--train.steps", "32") == 0
    one, two = outcome(serial), outcome(run_dir)
    # the run that was to end at 16 evaluated there
    one["metrics.jsonl"], two["metrics.jsonl"] = ([r for r in o["metrics.jsonl"] if "updates" in r] for o in (one, two))
    one.pop("scores.jsonl"), two.pop("scores.jsonl")
    assert one == two
