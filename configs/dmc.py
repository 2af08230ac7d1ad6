"""DeepMind Control Suite, from pixels and from state."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from worldmodel import published
from worldmodel.config import Run
from worldmodel.configs.sizes import Core, Objective, Size, Version, dreamer
from worldmodel.envs.dmc import DMCConfig
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig


def vision(
    task: str = "walker_walk",
    size: Size | Literal["published"] = "published",
    version: Version = "2024",
    objective: Objective = "reconstruction",
    core: Core = "rssm",
    render: Literal["gl", "gl-fast", "ray"] = "gl",
) -> Run:
    """DMC from 64 x 64 pixels. "2024": repeat 2, ratio 512, 12m, 1M frames; "main": repeat 1, ratio 256, 200m."""
    settings: dict[Version, dict[str, Any]] = {
        "2023": {"repeat": 2, "ratio": 512, "size": "12m", "steps": 500_000},
        "2024": {"repeat": 2, "ratio": 512, "size": "12m", "steps": 500_000},
        "main": {"repeat": 1, "ratio": 256, "size": "200m", "steps": 1_100_000},
    }
    s = settings[version]
    what = "DreamerV3 2024, DMC vision at 1M frames, repeat 2, ratio 512, 12m, renderer gl"
    answer = published.answer("dmc_vision", "dreamerv3_2024", task, f"{what} (this run: version {version}, {render})")
    return _run(
        DMCConfig(task=task, obs="pixels", render=render, repeat=s["repeat"]),
        s, size, version, objective, core, answer, num_envs=8,
    )


def proprio(
    task: str = "walker_walk",
    size: Size | Literal["published"] = "published",
    version: Version = "2024",
    core: Core = "rssm",
) -> Run:
    """DMC from state vectors. "2024": repeat 2, ratio 512, 12m, 500k frames; "main": repeat 1, ratio 1024, 1m."""
    settings: dict[Version, dict[str, Any]] = {
        "2023": {"repeat": 2, "ratio": 512, "size": "12m", "steps": 250_000},
        "2024": {"repeat": 2, "ratio": 512, "size": "12m", "steps": 250_000},
        "main": {"repeat": 1, "ratio": 1024, "size": "1m", "steps": 1_100_000},
    }
    s = settings[version]
    what = f"DreamerV3 2023, DMC proprio at 490k frames, repeat 2, ratio 512 (this run: version {version})"
    answer = published.answer("dmc_proprio", "dreamerv3_2023", task, what)
    return _run(
        DMCConfig(task=task, obs="proprio", repeat=s["repeat"]),
        s, size, version, "reconstruction", core, answer, num_envs=16,
    )


def _run(
    env: DMCConfig, settings: dict[str, Any], size: str, version: Version, objective: Objective, core: Core,
    answer: str, *, num_envs: int,
) -> Run:
    chosen: Any = settings["size"] if size == "published" else size
    agent = dreamer(chosen, version=version, objective=objective, core=core)
    if version == "2023":
        agent = dataclasses.replace(agent, actor=dataclasses.replace(agent.actor, gradient="dynamics"))
    return Run(
        env=env,
        agent=agent,
        replay=ReplayConfig(capacity=settings["steps"] + 10_000, batch_size=16, length=64),
        train=TrainConfig(
            steps=settings["steps"], num_envs=num_envs, train_ratio=settings["ratio"],
            eval_every=10_000, eval_episodes=10, eval_envs=10,
        ),
        published=answer,
    )
