"""SAC, and SAC on short dreams: papers as settings of the same parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from worldmodel.agents.dyna.adversary import AdversaryConfig
from worldmodel.agents.dyna.agent import BranchConfig, DynaConfig
from worldmodel.agents.dyna.pessimism import ConservatismConfig, HaltConfig, InconsistencyConfig
from worldmodel.agents.dyna.policy import PolicyConfig, TemperatureConfig
from worldmodel.agents.dyna.rules.cloning import CloningConfig
from worldmodel.agents.dyna.rules.iql import IQLConfig
from worldmodel.agents.dyna.rules.leq import LEQConfig
from worldmodel.agents.dyna.rules.soft import SoftConfig
from worldmodel.agents.dyna.rules.td3bc import TD3BCConfig
from worldmodel.agents.values.critics import CriticsConfig
from worldmodel.agents.values.reach import ReachConfig
from worldmodel.config import Run
from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.gym import GymConfig
from worldmodel.models.ensemble import Ends, EnsembleModelConfig
from worldmodel.planning.selector import CandidateSelector
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig

ModelFree = Literal["sac", "redq", "edac", "bc", "td3bc", "iql", "cql"]
Dreaming = Literal["mbpo", "ftfl", "coplanner", "mopo", "morel", "combo", "rambo", "mobile", "leq", "ravl", "reach"]
Version = Literal[
    "sac", "redq", "edac", "bc", "td3bc", "iql", "cql",
    "mbpo", "ftfl", "coplanner", "mopo", "morel", "combo", "rambo", "mobile", "leq", "ravl", "reach",
]

ENDS: dict[str, Ends] = {
    "Hopper": "hopper", "Walker2d": "walker2d", "Ant": "ant", "Humanoid": "humanoid",
    "InvertedPendulum": "inverted_pendulum", "InvertedDoublePendulum": "inverted_double_pendulum",
}
"""What ends an episode of these; nothing ends those of others. It is held against the data before dreams begin."""

WIDE = (256, 256, 256)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What MBPO's authors chose for a task, in decisions."""

    entropy: float | None = None
    """That is kept, in nats; None: minus the number of actions."""
    updates: int = 10
    """Of one decision."""
    first: int = 1000
    """Decisions before the first update."""
    grown: int = 0
    """Steps of a branch in the end; 0: one throughout."""
    grows: tuple[int, int] = (20_000, 150_000)
    """Decisions after ``first`` between which they grow."""


SCHEDULES = {
    "InvertedPendulum": Schedule(entropy=-0.05, first=500),
    "Hopper": Schedule(entropy=-1.0, updates=20, first=5000, grown=15),
    "Walker2d": Schedule(entropy=-3.0, updates=20, first=5000),
    "HalfCheetah": Schedule(entropy=-3.0, updates=40, first=5000),
}
"""Of four tasks that MBPO's authors left as they are, for MBPO and what is made of it."""
ON_MBPO = ("mbpo", "ftfl", "coplanner")


def agent(version: Version = "mbpo", *, ends: Ends = "never", refit_every: int = 0) -> DynaConfig:
    """The agent of a paper. Numbers that its authors tuned to each task are those of one task, halfcheetah-medium where
    they have it.

    Args:
        ends: what ends an episode, for who dreams.
        refit_every: updates between two fits of the model; 0: offline. RAMBO has its own way, and fits once.
    """
    if version in get_args(ModelFree):
        return model_free(cast(ModelFree, version))
    return dreaming(cast(Dreaming, version), ends=ends, refit_every=refit_every)


def model_free(version: ModelFree) -> DynaConfig:
    """sac: Haarnoja et al. 2018. redq: Chen et al. 2021. edac: An et al. 2021. bc: behaviour cloning, by squared
    errors. td3bc: Fujimoto and Gu 2021. iql: Kostrikov et al. 2022, locomotion. cql: Kumar et al. 2020 by
    OfflineRL-Kit.
    """
    wide = PolicyConfig(units=WIDE)
    return {
        "sac": lambda: DynaConfig(model=None),
        "redq": lambda: DynaConfig(model=None, value=CriticsConfig(members=10, pessimism="drawn")),
        "edac": lambda: DynaConfig(
            model=None, value=CriticsConfig(members=10, units=WIDE, diversity=1.0, init="edac"),
            policy=replace(wide, init="edac"),
        ),
        "bc": lambda: DynaConfig(model=None, rule=CloningConfig()),
        "td3bc": lambda: DynaConfig(model=None, rule=TD3BCConfig(), standardise=True, policy_delay=2),
        "iql": lambda: DynaConfig(
            model=None, rule=IQLConfig(), policy=PolicyConfig(noise="added"), policy_lr_ends=1_000_000,
            reward_unit="returns",
        ),
        "cql": lambda: DynaConfig(
            model=None, rule=SoftConfig(backup="plain"), conservatism=ConservatismConfig(weight=5.0),
            value=CriticsConfig(units=WIDE), policy=wide, policy_lr=1e-4,
        ),
    }[version]()


def dreaming(version: Dreaming, *, ends: Ends = "never", refit_every: int = 0) -> DynaConfig:
    """mbpo: Janner et al. 2019, branches of one step. ftfl: Barkley and Fridovich-Keil 2025, the same with what a model
    predicts, and in which unit, mended for the Control Suite. coplanner: Wang et al. 2024, its numbers for vectors, on
    mbpo. mopo: Yu et al. 2020, combo: Yu et al. 2021, mobile: Sun et al. 2023, all three by OfflineRL-Kit. rambo:
    Rigter et al. 2022. morel: Kidambi et al. 2020, whose policy gradient is SAC here. leq: Park and Lee 2025. ravl:
    Sims et al. 2024, its README's example. reach: ours.
    """
    model = EnsembleModelConfig(ends=ends)
    branch = BranchConfig(rows=50_000, every=1000, keep=5, length=5)
    short = BranchConfig(rows=10_000, every=1000, keep=2, length=1)
    selector = CandidateSelector(candidates=5, horizon=5, rate=1.0, reward_discount=0.97, doubt_discount=0.97)
    shared: dict[str, Any] = {"model": model, "branch": branch, "refit_every": refit_every}
    changes: dict[Dreaming, dict[str, Any]] = {
        "mbpo": {"branch": short},
        "ftfl": {"model": replace(model, predicts="next", targets="standard"), "branch": short},
        "coplanner": {
            "model": replace(model, uncertainty="average_std"),
            "branch": short, "acting": selector, "dreaming": replace(selector, mode="conservative", rate=2.0),
        },
        "mopo": {"model": replace(model, uncertainty="max_aleatoric"), "penalty": 0.5, "policy_lr": 1e-4},
        "morel": {
            "model": replace(
                model, members=4, elites=4, units=(512, 512), activation="relu", decays=(), max_rounds=25,
                uncertainty="max_pairwise", noise="mean",
            ),
            "branch": BranchConfig(rows=2_000, every=1000, keep=5, length=100), "halt": HaltConfig(coefficient=3.0),
        },
        "combo": {
            "rule": SoftConfig(backup="plain"), "conservatism": ConservatismConfig(weight=0.5), "real_ratio": 0.5,
            "value": CriticsConfig(units=WIDE), "policy": PolicyConfig(units=WIDE), "policy_lr": 1e-4,
        },
        "rambo": {
            "branch": replace(branch, every=250), "adversary": AdversaryConfig(every=1000), "real_ratio": 0.5,
            "standardise": True, "clone_first": 50_000, "policy_lr": 1e-4, "refit_every": 0,
        },
        "mobile": {
            "model": replace(model, max_rounds=30), "inconsistency": InconsistencyConfig(weight=0.5),
            "rule": SoftConfig(backup="plain", temperature=TemperatureConfig(highest=1.0)), "policy_lr": 1e-4,
            "policy_lr_ends": 3_000_000,
        },
        "leq": {
            "rule": LEQConfig(), "value": CriticsConfig(members=1, units=WIDE, norm="layer"),
            "policy": PolicyConfig(units=WIDE), "batch_size": 512, "real_ratio": 0.5, "discount": 0.997, "lr": 1e-4,
            "policy_lr": 3e-5, "policy_lr_ends": 1_000_000, "standardise": True, "reward_unit": "returns",
        },
        "ravl": {
            "value": CriticsConfig(members=10, units=WIDE, diversity=1.0, init="edac"),
            "policy": PolicyConfig(units=WIDE, init="edac"),
        },
        "reach": {"value": CriticsConfig(norm="layer"), "reach": ReachConfig(detector="knn")},
    }
    return DynaConfig(**(shared | changes[version]))


def environment(name: str) -> GymConfig | DMCConfig:
    """"Hopper-v5" or "dmc:walker_walk", from state."""
    task = name.removeprefix("dmc:")
    return GymConfig(id=name) if task == name else DMCConfig(task=task, obs="proprio")


def dyna(env: str = "Pendulum-v1", version: Version = "mbpo") -> Run:
    """Gymnasium or DMC from state by MBPO, with its authors' schedules, by its offline kin, or without dreams
    (docs/offline.md has the table).

    Args: env: an id of Gymnasium, or "dmc:TASK" for a task of the Control Suite.
    """
    name = env.partition("-")[0]
    it = SCHEDULES.get(name, Schedule()) if version in ON_MBPO else Schedule()
    chosen = agent(version, ends=ENDS.get(name, "never"), refit_every=250 * it.updates)
    if version in ON_MBPO:
        grows = (it.grows[0] * it.updates, it.grows[1] * it.updates)
        chosen = replace(
            chosen, branch=replace(chosen.branch, grown=it.grown, grows=grows), first=it.first,
            rule=SoftConfig(temperature=TemperatureConfig(target=it.entropy)),
        )
    return Run(
        env=environment(env),
        agent=chosen,
        # an update sees 32 x 8 steps
        replay=ReplayConfig(capacity=1_000_000, batch_size=32, length=8),
        train=TrainConfig(
            steps=10_000, num_envs=1, train_ratio=256 * it.updates, eval_every=2_000, eval_episodes=10, eval_envs=5,
            log_steps=500, threads=1,
        ),
        published="nobody's at this length: MBPO's curves are of MuJoCo tasks (Janner et al. 2019, figure 2)",
    )
