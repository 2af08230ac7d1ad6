"""Learning from data: agents of vectors, and a Dreamer that knows its reach from pixels (docs/data.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from worldmodel.agents.dreamer.agent import DreamerConfig
from worldmodel.agents.values.reach import ReachConfig
from worldmodel.agents.values.reach_aware import ReachAwareValueConfig
from worldmodel.config import Run
from worldmodel.configs.dyna import ENDS, Version, agent, environment
from worldmodel.configs.quickstart import quickstart
from worldmodel.configs.sizes import Size, dreamer
from worldmodel.envs.dmc import DMCConfig
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig

Quality = Literal["random", "simple", "medium", "medium-replay", "medium-expert", "expert"]

OFFLINERL_KIT: dict[str, dict[str, tuple[float, float, float]]] = {
    "mopo": {"HalfCheetah": (72.4, 72.1, 83.6), "Hopper": (62.8, 92.7, 74.6), "Walker2d": (84.1, 85.9, 108.2)},
    "rambo": {"HalfCheetah": (78.7, 68.5, 98.8), "Hopper": (82.1, 93.4, 85.0), "Walker2d": (86.1, 73.7, 78.4)},
    "combo": {"HalfCheetah": (71.9, 66.5, 98.2), "Hopper": (84.7, 90.1, 108.8), "Walker2d": (83.9, 89.4, 110.0)},
    "mobile": {"HalfCheetah": (75.8, 71.9, 100.9), "Hopper": (103.6, 105.1, 112.5), "Walker2d": (88.3, 90.5, 114.5)},
    "edac": {"HalfCheetah": (66.4, 62.3, 101.8), "Hopper": (101.8, 101.5, 110.5), "Walker2d": (93.3, 86.2, 113.6)},
}
"""OfflineRL-Kit's README: D4RL v2 scores, mean of the last ten evaluations over 4 seeds."""

SETS = ("medium", "medium-replay", "medium-expert")
"""Of the figures above, in their order."""

CORL = {"td3bc": 76.45, "iql": 81.63, "cql": 78.28, "edac": 92.92}
"""CORL: last scores, the mean over these nine D4RL sets."""


def state(env: str = "HalfCheetah-v5", quality: Quality = "medium", version: Version = "mopo") -> Run:
    """Gymnasium or DMC ("dmc:TASK") from state, offline, by any version of dyna; --data names the dataset (Minari's
    MuJoCo without it)."""
    chosen = agent(version, ends=ENDS.get(env.partition("-")[0], "never"))
    # all that the largest sets of D4RL have; replay is not drawn from, since the agent holds transitions itself
    chosen = replace(chosen, recent=2_000_000)
    return Run(
        env=environment(env),
        agent=chosen,
        data=_default(env, quality),
        replay=ReplayConfig(batch_size=1, length=2),
        train=TrainConfig(
            steps=1_000_000, eval_every=50_000, eval_episodes=10, eval_envs=5, log_steps=5_000,
            checkpoint_steps=100_000, threads=1,
        ),
        published=_answer(env, quality, version),
    )


def vd4rl(
    task: str = "walker_walk",
    quality: Literal["random", "mixed", "medium", "medium_expert", "expert"] = "medium",
    size: Size = "12m",
    render: Literal["gl", "gl-fast", "ray"] = "gl",
) -> Run:
    """DMC from 64 x 64 pixels, offline, by a Dreamer that knows its reach; --data is V-D4RL's 64px folder."""
    return Run(
        env=DMCConfig(task=task, obs="pixels", render=render, repeat=2),
        agent=_reaching(dreamer(size)),
        data=f"vd4rl/main/{task}/{quality}/64px",
        replay=ReplayConfig(batch_size=16, length=64),
        train=TrainConfig(
            steps=100_000, eval_every=10_000, eval_episodes=10, eval_envs=10, log_steps=1_000, checkpoint_steps=10_000
        ),
        published="V-D4RL (Lu et al. 2022), Offline DV2: another agent on the same data",
    )


def toys(task: Literal["catch", "glide"] = "glide") -> Run:
    """Catch or Glide from 32 x 32 pixels, offline, by a Dreamer that knows its reach, on a CPU."""
    base = quickstart(task)
    return replace(
        base, agent=_reaching(base.agent), data=f"data/{task}-medium",
        train=replace(
            base.train, steps=12_000, eval_every=2_000, log_steps=500, checkpoint_steps=2_000,
        ),
        published="nobody's: the data is one's own",
    )


def _reaching(agent: DreamerConfig) -> DreamerConfig:
    """Data is fixed, so the states that dreams are cut off in stay where no dream begins: the critic is told."""
    value: Any = ReachAwareValueConfig(reach=ReachConfig(detector="rnd"))
    return replace(agent, value=value)


def _default(env: str, quality: str) -> str:
    """Minari's dataset of this environment where there is one, else a place for one's own."""
    name, _, version = env.partition("-")
    known = name in ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Walker2d", "Swimmer", "Reacher", "Pusher")
    if known and version == "v5" and quality in ("simple", "medium", "expert"):
        return f"minari:mujoco/{name.lower()}/{quality}-v0"
    return f"data/{env.removeprefix('dmc:')}-{quality}"


def _answer(env: str, quality: str, version: str) -> str:
    name = env.partition("-")[0]
    found = OFFLINERL_KIT.get(version, {}).get(name)
    if found and quality in SETS:
        what = f"{found[SETS.index(quality)]} normalised on D4RL's {name.lower()}-{quality}-v2"
        return f"OfflineRL-Kit's README: {what}, which Minari's is not"
    if version in CORL and name in OFFLINERL_KIT["mopo"]:
        what = f"{CORL[version]} normalised on average over nine sets of D4RL"
        return f"CORL, last scores: {what}, which Minari's are not"
    return "nobody's on this data"
