"""Explore first, learn the task afterwards: a second phase of the same run, from what replay holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.tiny import tiny_run, train
from worldmodel import runs
from worldmodel.config import Run
from worldmodel.errors import CheckpointError
from worldmodel.train.config import TrainConfig


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def for_the_task(run: Run, *, updates: int, steps: int = 16) -> Run:
    agent = replace(run.agent, intrinsic=0.0, extrinsic=1.0)
    return replace(run, agent=agent, train=replace(run.train, min_updates=updates, steps=steps))


def test_a_task_is_learned_from_what_was_explored_without_another_decision(tmp_path: Path) -> None:
    run = tiny_run("plan2explore", task="glide")
    assert (run.agent.intrinsic, run.agent.extrinsic) == (1.0, 0.0)
    folder = train(tmp_path / "run", run)
    explored = runs.load(folder, device="cpu")
    summary = runs.resume(folder, change=lambda run: for_the_task(run, updates=7), live=False)
    assert (summary.env_steps, summary.updates, summary.reason) == (16, 7, "steps")
    learned = runs.load(folder, device="cpu")
    assert learned.run.agent.extrinsic == 1.0 and learned.checkpoint.path != explored.checkpoint.path
    before, after = (x.agent.state_dict() for x in (explored, learned))
    assert any(not torch.equal(before[name], after[name]) for name in before if "actor" in name)
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()][-2:]
    assert [row["kind"] for row in rows] == ["eval_mode", "eval_sampled"] and rows[0]["frames"] == 16

    again = runs.resume(folder, live=False)
    assert again.updates == 7, "what was asked for is done"
    more = runs.resume(folder, change=lambda run: for_the_task(run, updates=9, steps=24), live=False)
    assert more.env_steps == 24 and more.updates > 9, "and then acting goes on"


def test_what_else_decides_the_run_stays(tmp_path: Path) -> None:
    folder = train(tmp_path / "run", tiny_run("plan2explore", task="catch"))

    def change(run: Run) -> Run:
        return replace(run, agent=replace(run.agent, lr=1.0, intrinsic=0.5))

    with pytest.raises(CheckpointError, match=r"agent\.lr") as refused:
        runs.resume(folder, change=change, live=False)
    assert "intrinsic" not in str(refused.value)
    with pytest.raises(ValueError, match="min_updates must be at least 0"):
        TrainConfig(min_updates=-1)
