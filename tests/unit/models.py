"""Small specs, batches and agents shared by tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F

from worldmodel.agents.dreamer.agent import Dreamer, DreamerConfig
from worldmodel.configs.sizes import dreamer
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec

IMAGE = ArraySpec(shape=(32, 32, 3), dtype="uint8")


def make_spec(kind: str = "discrete", *, size: int = 3, vector: bool = False) -> EnvSpec:
    obs = {"image": IMAGE}
    if vector:
        gear = ArraySpec(shape=(), dtype="int64", classes=3)
        obs = {"speed": ArraySpec(shape=(4,), dtype="float32"), "gear": gear} | obs
    return EnvSpec(name="test", obs=obs, action=ActionSpec(kind=kind, size=size))  # type: ignore[arg-type]


def make_batch(
    spec: EnvSpec, batch: int = 3, time: int = 8, *, seed: int = 0, firsts: tuple[tuple[int, int], ...] = ((1, 4),)
) -> Batch:
    """Random data; episodes begin at (row, step) of ``firsts``, and the step before each is a terminal end."""
    g = torch.Generator().manual_seed(seed)
    obs: dict[str, torch.Tensor] = {}
    for key, s in spec.obs.items():
        shape = (batch, time, *s.shape)
        if s.dtype == "uint8":
            obs[key] = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
        elif s.classes:
            obs[key] = torch.randint(0, s.classes, shape, generator=g)
        else:
            obs[key] = torch.randn(shape, generator=g)
    if spec.action.kind == "discrete":
        action = F.one_hot(torch.randint(spec.action.size, (batch, time), generator=g), spec.action.size).float()
    else:
        action = torch.rand(batch, time, spec.action.size, generator=g) * 2 - 1
    is_first = torch.zeros(batch, time, dtype=torch.bool)
    is_last = torch.zeros(batch, time, dtype=torch.bool)
    for row, t in firsts:
        is_first[row, t] = True
        if t:
            is_last[row, t - 1] = True
    prev = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1) * (~is_first).unsqueeze(-1)
    return Batch(
        obs=obs, action=action * (~is_last).unsqueeze(-1), prev_action=prev,
        reward=torch.randn(batch, time, generator=g) * (~is_first),
        is_first=is_first, is_last=is_last, is_terminal=is_last.clone(),
    )


def make_agent(
    spec: EnvSpec | None = None, *, seed: int = 0, model: dict[str, Any] | None = None, **changes: Any
) -> Dreamer:
    config: DreamerConfig = dreamer("nano", **({"imagination": 4} | changes))
    if model:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    return config.build(spec or make_spec(), seed=seed)
