"""Atari with sticky actions, 200M frames."""

from __future__ import annotations

from worldmodel import published
from worldmodel.config import Run
from worldmodel.configs.sizes import Core, Objective, Size, Version, dreamer
from worldmodel.envs.atari import AtariConfig, game_name
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig


def atari(
    task: str = "pong",
    size: Size = "200m",
    version: Version = "2024",
    objective: Objective = "reconstruction",
    core: Core = "rssm",
) -> Run:
    """Atari from 96 x 96 grey, sticky actions, 16 environments, ratio 32, 51M decisions (204M frames)."""
    what = f"DreamerV3 2024, Atari at 200M frames (this run: version {version})"
    return Run(
        env=AtariConfig.atari200m(task),
        agent=dreamer(size, version=version, objective=objective, core=core),
        replay=ReplayConfig(capacity=5_000_000, batch_size=16, length=64),
        train=TrainConfig(
            steps=51_000_000, num_envs=16, train_ratio=32, eval_every=1_000_000, eval_episodes=16, eval_envs=16
        ),
        published=published.answer("atari200m", "dreamerv3_2024", game_name(task), what),
    )
