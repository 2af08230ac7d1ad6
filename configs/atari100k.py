"""Atari100k: 100k decisions, 400k frames."""

from __future__ import annotations

from typing import Any, Literal

from worldmodel import published
from worldmodel.config import Run
from worldmodel.configs.sizes import Core, Objective, Size, Version, dreamer
from worldmodel.envs.atari import AtariConfig, game_name
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig


def atari100k(
    task: str = "boxing",
    size: Size = "200m",
    version: Version = "2024",
    objective: Objective = "reconstruction",
    core: Core = "rssm",
) -> Run:
    """Atari100k from 64 x 64 RGB. "2024": ratio 128, all 18 actions; "main": ratio 256; "2023": ratio 1024."""
    settings: dict[Version, dict[str, Any]] = {
        "2023": {"ratio": 1024, "env": {}},
        "2024": {"ratio": 128, "env": {"actions": "full", "noops": 0}},
        "main": {"ratio": 256, "env": {}},
    }
    s = settings[version]
    name: Literal["2023", "2024"] = "2023" if version == "2023" else "2024"
    what = f"DreamerV3 {name}, Atari100k at 400k frames, training episodes (this run: version {version})"
    return Run(
        env=AtariConfig.atari100k(task, **s["env"]),
        agent=dreamer(size, version=version, objective=objective, core=core),
        replay=ReplayConfig(capacity=110_000, batch_size=16, length=64),
        train=schedule(s["ratio"]),
        published=published.answer("atari100k", f"dreamerv3_{name}", game_name(task), what),
    )


def schedule(train_ratio: int) -> TrainConfig:
    """100k decisions in one environment, with four evaluations on the way."""
    return TrainConfig(
        steps=100_000, num_envs=1, train_ratio=train_ratio, eval_every=25_000, eval_episodes=10, eval_envs=5
    )
