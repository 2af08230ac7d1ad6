"""Uniformly random actions: the baseline of every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.rng import Stream
from worldmodel.tree import struct
from worldmodel.types import ArraySpec, Batch, EnvSpec, Step, Update


@struct
class RandomCarry:
    """Nothing but a random stream."""

    rng: Tensor


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """Uniform over choices, or over [-1, 1]."""

    def build(self, spec: EnvSpec, *, device: torch.device | str = "cpu", seed: int = 0) -> RandomAgent:
        return RandomAgent(spec)


class RandomAgent:
    """Implements ``Agent[RandomCarry]``; learns nothing."""

    memory_spec: dict[str, ArraySpec] = {}  # noqa: RUF012

    def __init__(self, spec: EnvSpec) -> None:
        self.action = spec.action

    def initial(self, num_envs: int, *, seed: int = 0) -> RandomCarry:
        return RandomCarry(rng=Stream(seed=seed).state)

    def act(self, carry: RandomCarry, step: Step, *, explore: bool) -> tuple[Tensor, RandomCarry]:
        """(N, A); exploring or not makes no difference."""
        n, size = step.reward.shape[0], self.action.size
        with Stream(state=carry.rng) as stream:
            if self.action.kind == "discrete":
                action = F.one_hot(torch.randint(size, (n,)), size).float()
            else:
                action = torch.rand(n, size) * 2 - 1
        return action, RandomCarry(rng=stream.state)

    def memory(self, carry: RandomCarry) -> dict[str, Tensor]:
        return {}

    def learn(self, batch: Batch) -> Update:
        return Update(metrics={}, memory={})

    def report(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return
