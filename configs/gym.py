"""Any Gymnasium environment."""

from __future__ import annotations

from worldmodel.config import Run
from worldmodel.configs.sizes import Core, Objective, Size, dreamer
from worldmodel.envs.gym import GymConfig
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig


def gym(
    env: str = "CartPole-v1",
    size: Size = "nano",
    objective: Objective = "reconstruction",
    core: Core = "rssm",
) -> Run:
    """Any Gymnasium id, or "my_module:MyEnv-v0"; encoders follow from what is observed. Learns CartPole on a CPU."""
    return Run(
        env=GymConfig(id=env),
        agent=dreamer(size, objective=objective, core=core),
        replay=ReplayConfig(capacity=200_000, batch_size=8, length=32),
        train=TrainConfig(
            steps=20_000, num_envs=4, train_ratio=32,
            eval_every=5_000, eval_episodes=20, eval_envs=4, log_steps=1_000, threads=1,
        ),
        published="nobody's: there is no world-model table for Gymnasium's classic tasks",
    )
