"""Weights, inputs and a small agent made of formulas, so that golden numbers need nothing stored but the answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.agents.dreamer.actor import ActorConfig
from worldmodel.agents.dreamer.agent import Dreamer, DreamerConfig
from worldmodel.agents.values.twohot import TwoHotValueConfig
from worldmodel.distributions import BoundedNormal, Categorical
from worldmodel.kernels.block_gru_observe import fused
from worldmodel.models.cores.rssm import RSSMConfig
from worldmodel.models.latent import LatentModelConfig
from worldmodel.nn.blocks import BlockLinear, Conv, RMSNorm
from worldmodel.nn.decoders import ConvDecoderConfig
from worldmodel.nn.encoders import ConvEncoderConfig
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec

B, T, H, SIZE, ACTIONS = 2, 6, 5, 16, 3
NOISE = (0.7, -0.4, 1.1)
"""Standard normal "draws" of the three continuous actions, the same at every step."""
FIRST, LAST, TERMINAL = ((0, 4), (1, 3)), ((0, 3), (1, 2)), ((1, 2),)
"""(row, step): row 0 is truncated at step 3, row 1 terminates at step 2; both go on with another episode."""


def wave(*shape: int, phase: float = 0.0, scale: float = 1.0) -> Tensor:
    """float32 ``scale sin(phase + 0.37 i^2)`` over the flat index i: no two rows alike, and no generator involved."""
    i = np.arange(math.prod(shape), dtype=np.float64)
    return torch.from_numpy((scale * np.sin(phase + 0.37 * i * i)).astype(np.float32).reshape(shape))


def fill(module: nn.Module) -> None:
    """Parameter number n becomes a wave of phase n: weights by 1.5/sqrt(fan-in), norm scales around 1, biases by 0.2.
    Biases of two-hot heads get a bell over the bins, so that predictions are of order 1 to 10."""
    kinds = {f"{name}.weight": m for name, m in module.named_modules() if hasattr(m, "weight")}
    norms = {f"{name}.scale" for name, m in module.named_modules() if isinstance(m, RMSNorm)}
    with torch.no_grad():
        for n, (name, p) in enumerate(module.named_parameters()):
            if name in norms:
                p.copy_(1 + wave(*p.shape, phase=n, scale=0.2))
            elif name in kinds:
                owner = kinds[name]
                fan = p[0].numel() if isinstance(owner, Conv) else p.shape[1]
                assert p.ndim == (4 if isinstance(owner, Conv) else 3 if isinstance(owner, BlockLinear) else 2)
                p.copy_(wave(*p.shape, phase=n, scale=1.5 / math.sqrt(fan)))
            else:
                bell = -(((torch.arange(255) - 127) / 25) ** 2) if p.numel() == 255 else 0.0
                p.copy_(wave(*p.shape, phase=n, scale=0.2) + bell)


def make_agent(kind: Literal["continuous", "discrete"]) -> Dreamer:
    """Every kind of observation and two image keys, at the smallest widths, with the reference's defaults but for the
    entropy bonus: 0.3, on both sides, since 3e-4 would hide below the tolerance."""
    obs = {
        "gear": ArraySpec(shape=(), dtype="int32", classes=3),
        "image": ArraySpec(shape=(SIZE, SIZE, 3), dtype="uint8"),
        "mask": ArraySpec(shape=(SIZE, SIZE, 1), dtype="uint8"),
        "speed": ArraySpec(shape=(3,), dtype="float32"),
    }
    model = LatentModelConfig(
        encoder=ConvEncoderConfig(depth=2, mults=(2, 4), units=16),
        decoder=ConvDecoderConfig(depth=2, mults=(2, 4), units=16),
        core=RSSMConfig(deter=32, hidden=8, stoch=4, classes=4),
        units=16,
    )
    actor = ActorConfig(units=16, unimix=0.0, entropy=0.3)
    config = DreamerConfig(model=model, actor=actor, value=TwoHotValueConfig(units=16), imagination=H)
    agent = config.build(EnvSpec(name="parity", obs=obs, action=ActionSpec(kind=kind, size=ACTIONS)))
    fill(agent.modules)
    return agent


def flags(at: tuple[tuple[int, int], ...]) -> Tensor:
    """(B, T) bool, true at ``at``."""
    out = torch.zeros(B, T, dtype=torch.bool)
    for row, step in at:
        out[row, step] = True
    return out


def make_batch(kind: Literal["continuous", "discrete"]) -> Batch:
    """Two sequences that cross episodes, with a context state before them. Actions reach beyond [-1, 1], and the one
    before a first step is not zero, as both are the model's business."""
    if kind == "continuous":
        prev_action = wave(B, T, ACTIONS, phase=3.0, scale=1.7)
    else:
        prev_action = torch.eye(ACTIONS)[torch.arange(B * T).reshape(B, T) * 7 % 5 % ACTIONS]
    pixels = lambda c, phase: (127.5 + wave(B, T, SIZE, SIZE, c, phase=phase, scale=127.0)).to(torch.uint8)  # noqa: E731
    return Batch(
        obs={
            "gear": (torch.arange(B * T).reshape(B, T) * 5 % 3).to(torch.int32),
            "image": pixels(3, 0.5),
            "mask": pixels(1, 1.5),
            "speed": wave(B, T, 3, phase=2.0, scale=20.0),
        },
        action=prev_action.roll(-1, 1),
        prev_action=prev_action,
        reward=wave(B, T, phase=4.0, scale=3.0),
        is_first=flags(FIRST),
        is_last=flags(LAST),
        is_terminal=flags(TERMINAL),
        # multiples of 1/64 survive bfloat16
        context={
            "deter": ((wave(B, 32, phase=5.0) * 64).round() / 64).to(torch.bfloat16),
            "stoch": (torch.arange(B * 4).reshape(B, 4) * 3 % 4).to(torch.uint8),
        },
    )


@contextmanager
def no_chance() -> Iterator[None]:
    """Categoricals give their mode (with their gradient), normals mean + std * NOISE."""

    def categorical(self: Categorical, noise: Tensor | None = None) -> Tensor:
        return self.straight_through(self.probs.argmax(-1))

    def normal(self: BoundedNormal) -> Tensor:
        return self.mean + self.std * torch.tensor(NOISE[: self.mean.shape[-1]])

    def draw(logits: Tensor, threshold: Tensor) -> Tensor:
        return logits.argmax(-1, keepdim=True)

    with (
        mock.patch.object(Categorical, "sample", categorical),
        mock.patch.object(BoundedNormal, "sample", normal),
        mock.patch.object(fused, "draw", draw),
    ):
        yield
