"""Known models for the edge-of-reach problem (Sims et al. 2024): where truth, reach and optimum are all given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worldmodel.models.analytic import Certain, Pendulum, Point
from worldmodel.types import EnvSpec, Prediction


class Plateau(Certain):
    """A plane, s' = s + a, that pays by rho, the larger of |x| and |y| of s': rho / 3 up to 3, 1 up to 7, and behind
    that cliff -1, or, where it is a ``slope``, 1 - (rho - 7), whose gradient points back. Implements
    ``WorldModel[Point]`` and ``Solved``.

    >>> model = Plateau()
    >>> model.optimum(torch.tensor([[3.0, 0.0]]), 0.95).round()
    tensor([20.])
    """

    ramp, cliff = 3.0, 7.0

    def __init__(self, *, slope: bool = False) -> None:
        super().__init__(2)
        self.slope = slope

    def step(self, state: Point, action: Tensor) -> Point:
        return Point(x=state.x + action.clamp(-1, 1))

    def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
        rho = self.rho(state.x)
        beyond = 1 - (rho - self.cliff) if self.slope else -torch.ones_like(rho)
        reward = torch.where(rho > self.cliff, beyond, (rho / self.ramp).clamp(max=1.0))
        return Prediction(reward=reward, continues=torch.ones_like(rho))

    @staticmethod
    def rho(x: Tensor) -> Tensor:
        """(..., 2) -> (...)."""
        return x.abs().amax(-1)

    def beyond(self, x: Tensor, steps: int) -> Tensor:
        """(...) bool: states that ``steps`` actions may reach from starts with rho <= 1, and fewer may not."""
        return self.rho(x) > steps

    def optimum(self, x: Tensor, discount: float) -> Tensor:
        """(...) the best return: outwards to the plateau, or inwards, one a step, and then 1 for ever."""
        rho = self.rho(x)
        total, weight, there = torch.zeros_like(rho), 1.0, 1.0 / (1.0 - discount)
        # after so many steps of at most 1 every state that rollouts of some ten steps reach is on the plateau
        for i in range(1, 33):
            near = (rho + i).clamp(max=self.ramp)
            far = (rho - i).clamp(min=self.cliff)
            behind = 1 - (far - self.cliff) if self.slope else torch.where(far > self.cliff, -1.0, 1.0)
            total = total + weight * torch.where(rho > self.cliff, behind, near / self.ramp)
            weight *= discount
        return total + weight * there


@dataclass(frozen=True, kw_only=True)
class KnownConfig:
    """The truth in a learned model's place."""

    name: Literal["plateau", "slope", "pendulum"] = "plateau"
    """``Plateau``, the same with a slope for a cliff, or Gymnasium's pendulum."""

    def __post_init__(self) -> None:
        if self.name not in ("plateau", "slope", "pendulum"):
            raise ValueError(f"name must be plateau, slope or pendulum, got {self.name!r}")

    def build(self, spec: EnvSpec) -> Certain:
        return Pendulum() if self.name == "pendulum" else Plateau(slope=self.name == "slope")


def swing_up(x: Tensor) -> Tensor:
    """(..., 3) of a pendulum -> (..., 1) in [-1, 1]: pump energy until it is near the top, then hold it there."""
    cos, sin, speed = x.unbind(-1)
    angle = torch.atan2(sin, cos)
    lacking = 15.0 * (1 - cos) - 0.5 * speed.square()
    pump = torch.where(speed.abs() < 1e-3, 1.0, (lacking * speed).sign())
    hold = (-10.0 * angle - 2.0 * speed) / Pendulum.max_torque
    return torch.where(angle.abs() < math.pi / 6, hold, pump).clamp(-1, 1).unsqueeze(-1)
