"""Drama: a Mamba-2 world model of 7 million parameters on Atari100k (Wang et al. 2025, arXiv 2410.08893)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from worldmodel.agents.dreamer.actor import ActorConfig
from worldmodel.agents.dreamer.agent import DreamerConfig
from worldmodel.agents.values.twohot import TwoHotValueConfig
from worldmodel.config import Run
from worldmodel.configs.atari100k import schedule
from worldmodel.envs.atari import AtariConfig
from worldmodel.models.cores.mamba import MambaConfig
from worldmodel.models.latent import LatentModelConfig
from worldmodel.nn.decoders import StrideDecoderConfig
from worldmodel.nn.encoders import StrideEncoderConfig
from worldmodel.replay.config import ReplayConfig

PUBLISHED = DreamerConfig(
    model=LatentModelConfig(
        encoder=StrideEncoderConfig(), decoder=StrideDecoderConfig(), core=MambaConfig(dropout=0.1), units=256,
        heads="deter", free_nats_on="batch", continue_target=1.0,
    ),
    actor=ActorConfig(units=256, unimix=0.0, scale=1e-3),
    value=TwoHotValueConfig(units=512),
    imagination=16, starts="window", windows=1024, window=8, horizon=1 / 0.015, replay_value_scale=0.0, clip=0.0,
)
"""What the authors' code holds, as far as this engine has it; see :func:`drama`."""


def drama(task: str = "boxing", size: Literal["published", "nano"] = "published") -> Run:
    """Atari100k by a Mamba-2 world model of 7 M parameters, dreams from 8 real frames, and frequency-based sampling.

    Repaired, against the authors' code: lambda-returns bootstrap from the value of the next state; the reward of a
    dreamed step is read off the state after it; scans and convolutions are reset where episodes begin; the policy sees
    the present frame (acting on, and dreaming from, a sample of the posterior). None of the four can be switched off.

    Otherwise different: ends are probabilities in dreams, not decisions at one half; two-hot bins are spaced in symexp;
    frames enter as [-0.5, 0.5]; the actor's input is not normalised; one optimiser for everything, without weight decay
    and without a cap on the gradient (the authors' are 1000 and 100); a lost life is not an end; the first 1032
    decisions are the fresh policy's, not uniform. "nano" is for trying it on a CPU.
    """
    agent, replay = PUBLISHED, ReplayConfig(
        capacity=110_000, batch_size=16, length=128, sampler="dfs", online_fraction=0.0, windows=1024, window=8,
        min_starts=904,
    )
    if size == "nano":
        agent = replace(
            agent,
            model=LatentModelConfig(
                encoder=StrideEncoderConfig(depth=4), decoder=StrideDecoderConfig(depth=4),
                core=MambaConfig(d_model=64, headdim=32, stoch=8, classes=8, dropout=0.1), units=64, heads="deter",
                free_nats_on="batch", continue_target=1.0,
            ),
            actor=replace(agent.actor, units=64), value=TwoHotValueConfig(units=64), windows=64,
        )
        replay = replace(replay, windows=64)
    return Run(
        env=AtariConfig.atari100k(task),
        agent=agent,
        replay=replay,
        # an update after every decision
        train=schedule(replay.batch_size * replay.length),
        published="Drama (arXiv 2410.08893), Atari100k; its table by game is not shipped",
    )
