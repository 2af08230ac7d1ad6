"""The truth on the seam of learned models: what planners find where nothing had to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.errors import UserError
from worldmodel.specs import Simulates
from worldmodel.tree import struct
from worldmodel.types import Batch, Prediction


@struct
class Simulated:
    """States of environments, and what was said on arriving in them."""

    fields: dict[str, Tensor]
    """(..., *) the simulation's own, in its own precision."""
    reward: Tensor
    """(...)"""
    continues: Tensor
    """(...)"""


class Simulator(nn.Module):
    """Implements ``WorldModel[Simulated]`` by the environment's own rules, on the CPU, without gradients.

    It knows by :meth:`capture` alone: running environments are handed over before each decision.

    >>> from worldmodel.envs.toys import ToyConfig
    >>> env = ToyConfig(task="glide").build()
    >>> first, model = env.reset(seed=0), Simulator(ToyConfig(task="glide"))
    >>> state = model.capture([env])
    >>> after = model.step(state, torch.zeros(1, 2))
    >>> abs(float(after.reward) - env.step(np.zeros(2, np.float32)).reward) < 1e-6
    True
    """

    def __init__(self, env: Any) -> None:
        """Args: env, an EnvConfig that ``Simulates``. Raises: UserError for another."""
        super().__init__()
        if not isinstance(env, Simulates):
            raise UserError(
                f"{type(env).__name__} cannot be simulated; planning with the truth is for the toys and the Control "
                f"Suite, or for a configuration with simulation(), see Simulates in worldmodel/specs.py"
            )
        self.env: Any = env
        self.simulation = env.simulation()
        self.loss_scales: dict[str, float] = {}
        self.feature_dim = self.features(self.initial(1)).shape[-1]

    def capture(self, envs: Sequence[Any]) -> Simulated:
        """(N,) the states that environments are in now."""
        fields = {key: torch.from_numpy(x) for key, x in self.simulation.capture(envs).items()}
        zero = torch.zeros(len(envs))
        return Simulated(fields=fields, reward=zero, continues=torch.ones_like(zero))

    def initial(self, batch_size: int) -> Simulated:
        """An environment's first state, ``batch_size`` times."""
        env = self.env.build(0)
        env.reset(seed=0)
        state = self.capture([env])
        env.close()
        fields = {key: x.repeat_interleave(batch_size, 0) for key, x in state.fields.items()}
        zero = torch.zeros(batch_size)
        return Simulated(fields=fields, reward=zero, continues=torch.ones_like(zero))

    def observe(self, state: Simulated, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> Simulated:
        """Raises UserError: states are captured, not observed."""
        raise UserError("a Simulator does not see observations; give it the environments themselves, by capture(envs)")

    def step(self, state: Simulated, action: Tensor) -> Simulated:
        """(M, ...) and (M, A): one decision."""
        arrays = {key: x.numpy() for key, x in state.fields.items()}
        after, reward, is_terminal = self.simulation.advance(arrays, action.detach().numpy())
        return Simulated(
            fields={key: torch.from_numpy(x) for key, x in after.items()},
            reward=torch.from_numpy(np.asarray(reward, np.float32)),
            continues=1.0 - torch.from_numpy(np.asarray(is_terminal, np.float32)),
        )

    def predict(self, previous: Simulated, action: Tensor, state: Simulated) -> Prediction:
        """What the environment said on arriving."""
        return Prediction(reward=state.reward, continues=state.continues)

    def features(self, state: Simulated) -> Tensor:
        """All numbers of the state side by side, float32."""
        lead = state.reward.shape
        return torch.cat([x.reshape(*lead, -1).float() for x in state.fields.values()], -1)

    def loss(self, batch: Batch, state: Simulated) -> tuple[dict[str, Tensor], Simulated]:
        """There is nothing to learn."""
        return {}, state
