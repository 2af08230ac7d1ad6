"""TD-MPC2 stopped after its seeding and resumed is the run that was never stopped, plan and random streams included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldmodel import presets, runs
from worldmodel.config import Run
from worldmodel.envs.dmc import DMCConfig
from worldmodel.train.checkpoint import Checkpoints


def run(task: str, mode: str) -> Run:
    run = presets.find_preset("tdmpc2").build({"size": "nano", "task": task, "mode": mode})
    search = {"samples": 8, "policy_samples": 2, "elites": 3, "iterations": 1}
    agent = replace(
        run.agent, planner=replace(run.agent.planner, **search), evaluator=replace(run.agent.evaluator, **search)
    )
    replay = replace(run.replay, capacity=200, batch_size=4, min_starts=12)
    env = replace(run.env, max_frames=16) if isinstance(run.env, DMCConfig) else run.env
    return replace(
        run, env=env, agent=agent, device="cpu", replay=replay,
        train=replace(
            run.train, steps=40, num_envs=2, train_ratio=replay.length, first_updates=3, eval_every=0, eval_episodes=1,
            eval_envs=1, threads=1, log_steps=20, pool="serial",
        ),
    )


@pytest.mark.parametrize(
    ("task", "mode"),
    [("cartpole_balance", "default"), ("catch", "default"), ("cup_catch", "tdmpc"), ("cartpole_balance", "tcrl")],
)
def test_n_steps_and_n_more_are_2n_steps(task: str, mode: str, tmp_path: Path) -> None:
    threads, whole = torch.get_num_threads(), run(task, mode)
    half = replace(whole, train=replace(whole.train, steps=24))
    runs.start(whole, tmp_path / "whole", live=False)
    runs.start(half, tmp_path / "parts", live=False)
    runs.resume(tmp_path / "parts", change=lambda _: whole, live=False)
    torch.set_num_threads(threads)
    one, other = (Checkpoints(tmp_path / name / "checkpoints").latest(on_skip=print) for name in ("whole", "parts"))
    assert one.step == other.step == 40 and one.groups() == other.groups()
    assert one.document("trainer")["ratio"] == other.document("trainer")["ratio"]
    assert one.document("trainer")["ratio"]["updates"] > 6
    for group in one.groups():
        left, right = one.tensors(group), other.tensors(group)
        assert [name for name in left if not torch.equal(left[name], right[name])] == [], group
