"""Agents of TD-MPC2's kin, from the same parts: TD-MPC, TCRL and FOWM; the preset that takes them is ``tdmpc2``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worldmodel.agents.tdmpc2.agent import TDMPC2Config
from worldmodel.agents.tdmpc2.policy import PriorConfig
from worldmodel.agents.tdmpc2.ramp import RampConfig
from worldmodel.agents.values.ensemble_q import EnsembleQConfig
from worldmodel.agents.values.expectile import ExpectileConfig
from worldmodel.models.implicit import ImplicitModelConfig
from worldmodel.nn.normed import NormedEncoderConfig
from worldmodel.planning.policy_mppi import PolicyMPPI

BODIES: dict[str, tuple[int, int]] = {"dog": (100, 8), "humanoid": (100, 12)}
"""Latent and iterations of TD-MPC for the tasks that take more than 50 and 6 (its cfgs/tasks)."""
REPEATS = {"cartpole": 8, "dog": 2, "finger": 2, "humanoid": 2, "walker": 2}
"""Action repeat of TD-MPC where it is not 4."""
EASY = frozenset({
    "cartpole_balance", "cartpole_balance_sparse", "cartpole_swingup", "cup_catch", "finger_spin", "hopper_stand",
    "pendulum_swingup", "walker_stand", "walker_walk",
})
"""Tasks in which TCRL's noise falls within 50 episodes; in others within 150, of dogs and humanoids 500."""


DOUBTS = {"Hopper": 20.0, "AntMaze": 3.0}
"""lambda of FOWM where it is not 1."""


def tdmpc(*, nano: bool = False, domain: str = "") -> TDMPC2Config:
    """TD-MPC (Hansen et al. 2022): its config.yaml and helper.py at nicklashansen/tdmpc; ``nano`` is a tenth of it.

    A latent without bounds, plain scalars, the least of two Q-functions, a policy of given noise, an encoder that
    follows slowly, priorities, and a planner that begins with one step and wide plans.
    """
    latent, iterations = BODIES.get(domain, (50, 6))
    units = 64 if nano else 512
    plain: dict[str, Any] = {"units": units, "activation": "elu", "norm": "none", "init": "orthogonal"}
    first: dict[str, Any] = plain | {"norm": "first"}
    # a twentieth of the policy's comes on top of 512
    search = PolicyMPPI(
        horizon=5, samples=537, policy_samples=25, elites=64, iterations=iterations, momentum=0.1
    )
    if nano:
        search = replace(search, samples=67, policy_samples=3, elites=8, iterations=3)
    return TDMPC2Config(
        model=ImplicitModelConfig(
            encoder=NormedEncoderConfig(units=64 if nano else 256, activation="elu", norm="none", init="orthogonal"),
            latent=latent, form="free", space="plain", aim="slow", rate=0.01, shift=4, shifts="learning", rho=0.5,
            consistency_scale=2.0, reward_scale=0.5, **plain,
        ),
        policy=PriorConfig(form="noised", noise=0.05, reach=0.3, bonus=0.0, **plain),
        value=EnsembleQConfig(
            members=2, judges="min", space="plain", dropout=0.0, rate=0.01, **first
        ),
        planner=replace(search, exploration=1.0), evaluator=search, more_iterations=0,
        ramp=RampConfig(updates=2_500 if nano else 25_000, horizon=1, std=0.5),
        discounting="fixed", discount=0.99, value_scale=0.1, policy_scale=6.0, ceiling=1e4, spread_rate=0.0,
        slow_every=2, lr=3e-4 if domain == "dog" else 1e-3, encoder_rate=1.0, clip=10.0, policy_eps=1e-8,
        precision="float32",
    )


def tcrl(*, nano: bool = False, plans: bool = False, task: str = "") -> TDMPC2Config:
    """TCRL (Zhao et al. 2023): latents that agree in direction with those of a slow encoder, and on them, as constants,
    an actor and two critics as DrQ-v2's; ``plans`` acts by a planner instead, TD-MPC's, since its authors released
    none."""
    units, domain = 64 if nano else 512, task.partition("_")[0]
    hard = domain in BODIES
    episodes = 50 if task in EASY else 500 if hard else 150
    plain: dict[str, Any] = {"units": units, "activation": "elu", "norm": "none", "init": "orthogonal"}
    first: dict[str, Any] = plain | {"norm": "first"}
    search, quiet = tdmpc(nano=nano).evaluator, 0.2 if hard else 0.1
    # 10 of them go by before anything is learned, and 250 updates are made after each of the others
    noise, updates = 1 - (1 - quiet) * 10 / episodes, (episodes - 10) * 250
    return TDMPC2Config(
        model=ImplicitModelConfig(
            encoder=NormedEncoderConfig(units=units, layers=2, activation="elu", norm="none", init="orthogonal"),
            latent=100 if hard else 50, form="free", space="plain", out_scale=1.0, aim="slow", rate=0.005,
            consistency="cosine", rho=0.9, consistency_scale=1.0, reward_scale=1.0, **plain,
        ),
        policy=PriorConfig(form="noised", noise=quiet, reach=0.3, bonus=0.0, **first),
        value=EnsembleQConfig(
            members=2, judges="min", space="plain", trunk="shared", out_scale=1.0, dropout=0.0, rate=0.005, **plain
        ),
        planner=replace(search, exploration=1.0), evaluator=search, more_iterations=0,
        behaviour="planner" if plans else "policy",
        ramp=RampConfig(updates=updates // 10 if nano else updates, noise=noise),
        critic="apart", steps=1 if domain == "humanoid" else 3, discounting="fixed", discount=0.99, value_scale=1.0,
        ceiling=1e4, spread_rate=0.0, lr=1e-3 if nano else 3e-4, encoder_rate=1.0, clip=10.0, clipped="model",
        decay=1e-6, policy_eps=1e-8, precision="float32",
    )


def fowm(*, nano: bool = False, task: str = "") -> TDMPC2Config:
    """FOWM (Feng et al. 2023): TD-MPC that learns from data first. Its values ask nothing of actions that were not
    done, its policy clones what was better than usual, and its plans pay for what five Q-functions differ in
    (cfgs/config.yaml of fyhMer/fowm)."""
    units = 64 if nano else 512
    layered: dict[str, Any] = {"units": units, "activation": "mish", "norm": "layer", "init": "orthogonal"}
    first: dict[str, Any] = {"units": units, "activation": "elu", "norm": "first", "init": "orthogonal"}
    if nano:  # the same shape in a fifth of the time
        layered["activation"] = "silu"
    # a tenth of the policy's comes on top of 512, and one refit is all
    search = PolicyMPPI(horizon=5, samples=563, policy_samples=51, elites=50, iterations=1, momentum=0.1)
    if nano:
        search = replace(search, samples=140, policy_samples=12, elites=12)
    name = task.partition("-")[0]
    return TDMPC2Config(
        model=ImplicitModelConfig(
            encoder=NormedEncoderConfig(units=64 if nano else 256, activation="elu", norm="none", init="orthogonal"),
            latent=50, form="sigmoid", space="plain", aim="slow", rate=0.01, rho=0.5, consistency_scale=20.0,
            reward_scale=0.5, **layered,
        ),
        policy=PriorConfig(form="noised", noise=0.05, reach=0.3, bonus=0.0, **layered),
        value=EnsembleQConfig(members=5, judges="min", space="plain", dropout=0.0, rate=0.01, **first),
        bootstrap="expectile",
        expectile=ExpectileConfig(
            expectile=0.9 if name == "AntMaze" else 0.7, beta=10.0 if name == "AntMaze" else 3.0, **first
        ),
        policy_target="advantage", pessimism=DOUBTS.get(name, 1.0),
        planner=replace(search, exploration=1.0), evaluator=search, more_iterations=0, seeding="behaviour",
        discounting="fixed", discount=0.99, value_scale=0.1, spread_rate=0.0, slow_every=2,
        lr=1e-3 if nano else 3e-4, encoder_rate=1.0, clip=10.0, policy_eps=1e-8, precision="float32",
    )
