"""Run folders: what a resume changes is kept, what it may not change is refused, and pictures never stop a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worldmodel import presets, runs
from worldmodel.config import Run
from worldmodel.errors import CheckpointError, StorageError, UserError
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig
from worldmodel.train.pictures import CURVE


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def longer(steps: int) -> Callable[[Run], Run]:
    return lambda run: replace(run, train=replace(run.train, steps=steps))


def document(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "config.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 decisions; nobody changes this folder."""
    run = replace(
        presets.find_preset("quickstart").build({}),
        replay=ReplayConfig(capacity=200, batch_size=2, length=4, min_starts=2),
        train=TrainConfig(
            steps=16, num_envs=2, pool="batched", train_ratio=2, eval_every=8, eval_episodes=1, eval_envs=1, threads=1
        ),
        device="cpu",
    )
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    runs.start(run, run_dir, preset="quickstart", preset_args={"task": "catch"}, live=False)
    return run_dir


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_what_a_resume_changes_is_kept(run_dir: Path) -> None:
    before = document(run_dir)
    assert runs.resume(run_dir, change=longer(24), live=False).env_steps == 24
    assert runs.read_run(run_dir).train.steps == 24
    after = document(run_dir)
    assert after["run"]["train"].pop("steps") == 24 and before["run"]["train"].pop("steps") == 16
    assert after == before, "nothing else changes"
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []
    # a second resume wants what the first one wanted, and evaluations see it
    assert runs.resume(run_dir, live=False).env_steps == 24
    assert runs.evaluate(run_dir, episodes=1, device="cpu")[1].run.train.steps == 24


def test_a_resume_that_changes_nothing_leaves_the_file_alone(run_dir: Path) -> None:
    before = (run_dir / "config.json").stat()
    runs.resume(run_dir, live=False)
    after = (run_dir / "config.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("what", ["refused", "no checkpoint", "no device"])
def test_a_resume_that_fails_changes_nothing(run_dir: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change = longer(24)
    if what == "refused":
        change = lambda run: replace(longer(24)(run), seed=5)  # noqa: E731
    elif what == "no checkpoint":
        shutil.rmtree(run_dir / "checkpoints")
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        change = lambda run: replace(longer(24)(run), device="cuda")  # noqa: E731
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(UserError):
        runs.resume(run_dir, change=change, live=False)
    assert (run_dir / "config.json").read_bytes() == before


def test_a_write_that_fails_leaves_the_old_configuration(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = (run_dir / "config.json").read_bytes()
    monkeypatch.setattr(runs.os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        runs.resume(run_dir, change=longer(24), live=False)
    assert (run_dir / "config.json").read_bytes() == before
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": 3}'])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        runs.read_run(tmp_path)


def test_the_learning_curve_is_drawn_while_training(trained: Path) -> None:
    # nobody called the command line, which draws it at the end
    assert (trained / CURVE).read_bytes().startswith(b"\x89PNG")


def test_training_goes_on_without_a_learning_curve(run_dir: Path) -> None:
    (run_dir / CURVE).unlink()
    (run_dir / CURVE).mkdir()
    assert runs.resume(run_dir, change=longer(24), live=False).env_steps == 24
    rows = [json.loads(line) for line in (run_dir / "scores.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval_mode"] == [8, 16, 24]


def test_a_last_step_that_was_evaluated_is_not_evaluated_again(tmp_path: Path) -> None:
    run = presets.find_preset("quickstart").build({})
    # three environments pass every tenth decision by: what is due at 10 and 20 happens at 12 and 21
    train = TrainConfig(
        steps=20, num_envs=3, pool="batched", train_ratio=0, eval_every=10, eval_episodes=1, eval_envs=1, threads=1
    )
    runs.start(replace(run, train=train, device="cpu"), tmp_path / "run", live=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval_mode"] == [12, 21]
