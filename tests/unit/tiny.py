"""Runs of a few decisions, for tests of what is done with a trained agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldmodel import presets, runs
from worldmodel.config import Run
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig


def tiny_run(preset: str = "quickstart", **arguments: Any) -> Run:
    """16 decisions and a few updates of a preset."""
    return replace(
        presets.find_preset(preset).build(arguments),
        replay=ReplayConfig(capacity=200, batch_size=2, length=4, min_starts=2),
        train=TrainConfig(
            steps=16, num_envs=2, train_ratio=2, eval_every=0, eval_episodes=1, eval_envs=1, pool="serial", threads=1,
            checkpoint_steps=8,
        ),
        device="cpu",
    )


def train(run_dir: Path, run: Run) -> Path:
    """Train and leave torch's threads as they were."""
    before = torch.get_num_threads()
    try:
        runs.start(run, run_dir, live=False)
    finally:
        torch.set_num_threads(before)
    return run_dir
