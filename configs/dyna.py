"""SAC, and SAC on short dreams: papers as settings of the same parts."""

from __future__ import annotations

from typing import Literal

from worldmodel.agents.dyna.agent import BranchConfig, DynaConfig
from worldmodel.agents.dyna.policy import PolicyConfig
from worldmodel.agents.values.critics import CriticsConfig
from worldmodel.agents.values.reach import ReachConfig
from worldmodel.config import Run
from worldmodel.envs.gym import GymConfig
from worldmodel.models.ensemble import Ends, EnsembleModelConfig
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig

Version = Literal["sac", "redq", "edac", "mbpo", "mopo", "ravl", "reach"]

ENDS: dict[str, Ends] = {
    "Hopper": "hopper", "Walker2d": "walker2d", "Ant": "ant", "Humanoid": "humanoid",
    "InvertedPendulum": "inverted_pendulum",
}
"""What ends an episode of these; nothing ends those of others. It is held against the data before dreams begin."""

WIDE = (256, 256, 256)


def agent(version: Version = "mbpo", *, ends: Ends = "never", refit_every: int = 0) -> DynaConfig:
    """The agent of a paper. Numbers that its authors tuned to each task are those of one task, named here.

    sac: Haarnoja et al. 2018. redq: Chen et al. 2021. edac: An et al. 2021 (HalfCheetah). mbpo: Janner et al. 2019
    (HalfCheetah: branches of one step). mopo: Yu et al. 2020 by OfflineRL-Kit (halfcheetah-medium). ravl: Sims et al.
    2024, its README's example (halfcheetah-medium). reach: ours.
    """
    model = EnsembleModelConfig(ends=ends, uncertainty="max_aleatoric" if version == "mopo" else "mean_std")
    if version in ("sac", "redq", "edac"):
        value = {
            "sac": CriticsConfig(), "redq": CriticsConfig(members=10, pessimism="drawn"),
            "edac": CriticsConfig(members=10, units=WIDE, diversity=1.0),
        }[version]
        policy = PolicyConfig(units=WIDE if version == "edac" else (256, 256))
        return DynaConfig(model=None, value=value, policy=policy)
    if version == "mbpo":
        branch = BranchConfig(rows=10_000, every=1000, keep=2, length=1)
        return DynaConfig(model=model, branch=branch, refit_every=refit_every)
    branch = BranchConfig(rows=50_000, every=1000, keep=5, length=5)
    if version == "mopo":
        return DynaConfig(model=model, branch=branch, penalty=0.5, policy_lr=1e-4, refit_every=refit_every)
    if version == "ravl":
        value = CriticsConfig(members=10, units=WIDE, diversity=1.0)
        policy = PolicyConfig(units=WIDE)
        return DynaConfig(model=model, branch=branch, value=value, policy=policy, refit_every=refit_every)
    return DynaConfig(
        model=model, branch=branch, value=CriticsConfig(norm="layer"), reach=ReachConfig(detector="knn"),
        refit_every=refit_every,
    )


def dyna(env: str = "Pendulum-v1", version: Version = "mbpo") -> Run:
    """Gymnasium from state by MBPO, or by its kin: SAC, REDQ, EDAC, MOPO, RAVL, reach."""
    ends: Ends = ENDS.get(env.partition("-")[0], "never")
    # an update sees 32 x 8 steps: 10 updates a decision
    return Run(
        env=GymConfig(id=env),
        agent=agent(version, ends=ends, refit_every=2500),
        replay=ReplayConfig(capacity=1_000_000, batch_size=32, length=8),
        train=TrainConfig(
            steps=10_000, num_envs=1, train_ratio=2560, eval_every=2_000, eval_episodes=10, eval_envs=5,
            log_steps=500, threads=1,
        ),
        published="nobody's at this length: MBPO's curves are of MuJoCo tasks (Janner et al. 2019, figure 2)",
    )


