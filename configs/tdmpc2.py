"""TD-MPC2 and its kin: planning in an implicit world model (Hansen et al. 2024, arXiv 2310.16828)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from worldmodel import published
from worldmodel.agents.tdmpc2.agent import TDMPC2Config
from worldmodel.agents.tdmpc2.policy import PriorConfig
from worldmodel.agents.values.ensemble_q import EnsembleQConfig
from worldmodel.config import Run
from worldmodel.configs import tdmpc_kin
from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.multitask import MultitaskConfig
from worldmodel.envs.stack import StackConfig
from worldmodel.envs.toys import ToyConfig
from worldmodel.errors import UserError
from worldmodel.models.implicit import ImplicitModelConfig
from worldmodel.nn.encoders import PatchEncoderConfig
from worldmodel.nn.normed import NormedEncoderConfig
from worldmodel.planning.categorical import CategoricalCEM
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig

Size = Literal["nano", "1m", "5m", "19m", "48m", "317m"]
Mode = Literal["default", "parity", "bootstrapped", "tdmpc", "tcrl", "tcrl_free", "fowm"]
KIN = ("tdmpc", "tcrl", "tcrl_free", "fowm")
"""Modes that are papers of their own, with their own widths."""
TOYS: dict[str, int] = {"catch": 16_000, "glide": 48_000}
"""Decisions of each toy."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Widths of one model size (TD-MPC2, table 7, and its ``common/__init__.py``)."""

    encoder: int
    units: int
    latent: int
    layers: int
    """Layers of the encoder, the one to the latent included."""
    members: int
    """Q-functions."""


SIZES: dict[str, Widths] = {
    "1m": Widths(encoder=256, units=384, latent=128, layers=2, members=2),
    "5m": Widths(encoder=256, units=512, latent=512, layers=2, members=5),
    "19m": Widths(encoder=1024, units=1024, latent=768, layers=3, members=5),
    "48m": Widths(encoder=1792, units=1792, latent=768, layers=4, members=5),
    "317m": Widths(encoder=4096, units=4096, latent=1376, layers=5, members=8),
}


def tdmpc2(
    task: str = "walker_walk",
    size: Size = "5m",
    mode: Mode = "default",
    obs: Literal["state", "pixels"] = "state",
    render: Literal["gl", "gl-fast", "ray"] = "gl",
    actions: Literal["continuous", "discrete"] = "continuous",
) -> Run:
    """TD-MPC2 on a DMC task ("cup_catch"), "catch" or "glide", or a Gymnasium id, whose kind of actions is to be said.

    Images are the newest three.

    "parity" is the authors' code with its quirks, each a switch of its own. "default" is ours: the entropy of actions
    and not of what the tanh squashes, the two drawn Q-functions alone computed, predicted ends as probabilities,
    evaluation by the plan's mean, images at rest while acting. "bootstrapped" is that with a policy that learns what
    was planned (BMPC). "tdmpc" is TD-MPC (2022), "tcrl_free" TCRL's actor and critics on consistent latents, and "tcrl"
    a planner on these, and "fowm" learns from --data first, then from both with --init RUN and --replay.data-fraction
    0.5; at size "5m", which of them are their papers' widths, or "nano". "nano" is for CPUs: small, 64
    samples, 3 iterations, SiLU, no dropout, four environments, and an update after every other decision.
    """
    toy = task in TOYS
    known = toy or not ("-v" in task or "/" in task or ":" in task)
    pixels = toy or (known and obs == "pixels")
    discrete = task == "catch" if known else actions == "discrete"
    ends: Literal["predicted", "never"] = "never" if known and not toy else "predicted"
    agent = configured(size, mode=mode, pixels=pixels, discrete=discrete, ends=ends, task=task)
    nano, domain = size == "nano", task.partition("_")[0]
    batch = 128 if nano else 256
    if mode in KIN and mode != "fowm" and not nano:
        batch = 2048 if mode == "tdmpc" and domain == "dog" else 256 if mode == "tdmpc" and pixels else 512
    length = agent.planner.horizon + 1
    env: Any = GymConfig(id=task)
    if toy:
        env = StackConfig(env=ToyConfig(task=task), frames=3)  # type: ignore[arg-type]  # a task of TOYS
    seeding, steps = 1_000, TOYS.get(task, 200_000)
    answer = "nobody's: there is no table of TD-MPC2 for this task"
    if known and not toy:
        repeat = tdmpc_kin.REPEATS.get(domain, 4) if mode == "tdmpc" else 2
        env = DMCConfig(task=task, obs="pixels" if pixels else "proprio", render=render, repeat=repeat)
        if pixels:
            env = StackConfig(env=env, frames=3)
        # five episodes of 500 decisions; of TD-MPC and TCRL 5,000 decisions
        seeding, steps = 5_000 if mode in KIN and not nano else 2_500, 50_000 if nano else 1_000_000 // repeat
        view = "64 x 64 pixels, three frames" if pixels else "state"
        full = task.replace("cup_", "ball_in_cup_") if task.startswith("cup_") else task
        what = f"TD-MPC2 5M, DMC from {view}, repeat 2, at 1M frames (this run: {size}, {mode})"
        benchmark = "dmc_vision" if pixels else "dmc_proprio"
        answer = published.answer(benchmark, "tdmpc2", full, what, frames=1_000_000)
    # an update after every decision (nano and TCRL: every other), and when the first is due as many as would have been
    every, late = 2 if nano or mode in ("tcrl", "tcrl_free") else 1, mode in ("tcrl", "tcrl_free", "fowm")
    per = mode in ("tdmpc", "fowm")
    return Run(
        env=env,
        agent=agent,
        replay=ReplayConfig(
            capacity=min(1_000_000, steps + 10_000), batch_size=batch, length=length, online_fraction=0.0,
            min_starts=seeding, memory="steps" if mode == "bootstrapped" else "context",
            sampler="prioritized" if per else "uniform", priority_exponent=0.6 if per else 0.8,
        ),
        train=TrainConfig(
            steps=steps, num_envs=4 if nano else 1, train_ratio=batch * length / every,
            first_updates=0 if late else seeding // every, eval_every=max(2_000, steps // 10), eval_episodes=10,
            eval_envs=10, threads=1 if nano else 0,
        ),
        published=answer,
    )


def multitask(tasks: tuple[str, ...] = ("cartpole_balance", "cup_catch"), size: Size = "5m") -> Run:
    """TD-MPC2 on several DMC tasks from state with one model; offline with a dataset of each in --data, between commas.

    As its authors' mt30: 96 numbers that tell tasks apart, zeros where a task sees or does fewer numbers, a discount of
    each task's own, 1,024 sequences a batch. Evaluations tell each task's return.
    """
    nano = size == "nano"
    agent = configured(size, ends="never")
    batch, length, count = 128 if nano else 1024, agent.planner.horizon + 1, len(tasks)
    seeding, steps = 1_000 * count, 25_000 * count if nano else 500_000 * count
    return Run(
        env=MultitaskConfig(env=DMCConfig(obs="proprio", repeat=2), tasks=tasks),
        agent=replace(agent, model=replace(agent.model, task=8 if nano else 96)),
        replay=ReplayConfig(
            capacity=min(1_000_000, steps + 10_000), batch_size=batch, length=length, online_fraction=0.0,
            min_starts=seeding,
        ),
        train=TrainConfig(
            steps=steps, num_envs=count * (2 if nano else 1), train_ratio=batch * length / (2 if nano else 1),
            first_updates=seeding // (2 if nano else 1), eval_every=max(2_000, steps // 10), eval_episodes=5 * count,
            eval_envs=5 * count, threads=1 if nano else 0,
        ),
        published="nobody's on these tasks alone; mt30 and mt80 are of data that is not shipped",
    )


def configured(
    size: Size, *, mode: Mode = "default", pixels: bool = False, discrete: bool = False,
    ends: Literal["predicted", "never"] = "predicted", task: str = "",
) -> TDMPC2Config:
    """The agent of one size and mode; ``task`` where numbers depend on it. Raises UserError for what nobody made."""
    if mode in KIN:
        return _kin(size, mode, pixels, discrete, ends, task)
    agent = _nano(pixels) if size == "nano" else _sized(SIZES[size], pixels)
    agent = replace(agent, model=replace(agent.model, ends=ends))
    if mode == "parity":
        agent = replace(
            agent, model=replace(agent.model, shifts="always"), policy=replace(agent.policy, entropy="scaled"),
            value=replace(agent.value, evaluates="all"), evaluator=replace(agent.planner, exploration=0.0),
            continuation="threshold", precision="float32",
        )
    if mode == "bootstrapped":
        agent = replace(
            agent, policy=replace(agent.policy, form="clamped", min_log_std=-3.0, max_log_std=1.0),
            policy_target="planner", reanalyse_every=10,
        )
    if discrete:
        p = agent.planner
        search = CategoricalCEM(
            horizon=p.horizon, samples=p.samples // 4, policy_samples=p.policy_samples // 4, elites=p.elites // 4,
            iterations=p.iterations,
        )
        agent = replace(agent, planner=replace(search, select="sample"), evaluator=search)
    return agent


def _kin(
    size: Size, mode: Mode, pixels: bool, discrete: bool, ends: Literal["predicted", "never"], task: str
) -> TDMPC2Config:
    if discrete:
        raise UserError(f"--mode {mode} is of continuous actions; take --mode default or bootstrapped")
    if size not in ("nano", "5m"):
        raise UserError(f"--mode {mode} has the widths of its paper (--size 5m), or --size nano; got {size}")
    nano = size == "nano"
    if mode == "tdmpc":
        agent = tdmpc_kin.tdmpc(nano=nano, domain=task.partition("_")[0])
    elif mode == "fowm":
        agent = tdmpc_kin.fowm(nano=nano, task=task)
    else:
        agent = tdmpc_kin.tcrl(nano=nano, plans=mode == "tcrl", task=task)
    model = replace(agent.model, ends=ends, shift=0 if not pixels else 1 if nano else 3)
    if pixels and nano:
        model = replace(model, encoder=PatchEncoderConfig(patch=4, width=16, units=128, layers=2))
    return replace(agent, model=model)


def _sized(w: Widths, pixels: bool) -> TDMPC2Config:
    """Every choice at our default."""
    encoder = NormedEncoderConfig(units=w.encoder, layers=max(w.layers - 1, 1))
    # what four convolutions leave of 64 x 64 is as wide as the latent of 5M
    bare = pixels and w.latent == 512
    return TDMPC2Config(
        model=ImplicitModelConfig(
            encoder=encoder, latent=w.latent, units=w.units, project="none" if bare else "linear"
        ),
        policy=PriorConfig(units=w.units),
        value=EnsembleQConfig(units=w.units, members=w.members),
    )


def _nano(pixels: bool) -> TDMPC2Config:
    encoder: Any = NormedEncoderConfig(units=64, activation="silu")
    if pixels:
        encoder = PatchEncoderConfig(patch=4, width=16, units=128, layers=2)
    search = PolicyMPPI(samples=64, policy_samples=8, elites=8, iterations=3)
    return TDMPC2Config(
        model=ImplicitModelConfig(
            encoder=encoder, latent=64, units=64, bins=51, activation="silu", shift=1 if pixels else 0
        ),
        policy=PriorConfig(units=64, activation="silu"),
        value=EnsembleQConfig(units=64, members=2, bins=51, dropout=0.0, activation="silu"),
        planner=replace(search, exploration=1.0), evaluator=replace(search, select="mean"),
        lr=1e-3,
    )
