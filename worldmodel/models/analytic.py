"""Models known in closed form, on the seam of learned ones: what planners are held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor, nn

from worldmodel.tree import struct
from worldmodel.types import Batch, Prediction


@struct
class Point:
    """A position in a state space."""

    x: Tensor
    """(..., n)."""


class Analytic(nn.Module):
    """What fully observed models have in common: they see ``obs["vector"]`` and learn nothing."""

    origin: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.feature_dim = size
        self.loss_scales: dict[str, float] = {}
        self.register_buffer("origin", torch.zeros(size))

    def initial(self, batch_size: int) -> Point:
        return Point(x=self.origin.expand(batch_size, -1).clone())

    def observe(self, state: Point, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> Point:
        """(B, T, n): the observation is the state."""
        return Point(x=obs["vector"])

    def features(self, state: Point) -> Tensor:
        return state.x

    def loss(self, batch: Batch, state: Point) -> tuple[dict[str, Tensor], Point]:
        return {}, Point(x=batch.obs["vector"])


class Certain(Analytic):
    """The truth where penalties ask a model how unsure it is. Implements ``Uncertain`` and ``Varies``."""

    def disagreement(self, state: Point, action: Tensor) -> Tensor:
        """(...) 0: one opinion, without noise."""
        return state.x.new_zeros(state.x.shape[:-1])

    def outcomes(self, state: Point, action: Tensor, count: int) -> Tensor:
        """(count, 1, ..., n) what comes next, every time."""
        return self.step(state, action).x.expand(count, 1, *state.x.shape)

    def step(self, state: Point, action: Tensor) -> Point:
        """Each has its own."""
        raise NotImplementedError


class LinearQuadratic(Analytic):
    """x' = A x + B a, reward -(x'Qx + a'Ra). Implements ``WorldModel[Point]``.

    >>> model = double_integrator()
    >>> model.step(Point(x=torch.tensor([[1.0, 0.5]])), torch.tensor([[-1.0]])).x
    tensor([[1.0500, 0.4000]])
    """

    a: Tensor
    b: Tensor
    q: Tensor
    r: Tensor

    def __init__(self, a: Tensor, b: Tensor, q: Tensor, r: Tensor) -> None:
        """Args: a (n, n), b (n, A), q (n, n), r (A, A)."""
        super().__init__(a.shape[0])
        for name, value in (("a", a), ("b", b), ("q", q), ("r", r)):
            self.register_buffer(name, value.float())

    def step(self, state: Point, action: Tensor) -> Point:
        return Point(x=state.x @ self.a.mT + action @ self.b.mT)

    def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
        """The cost of the state that was left and of the action."""
        cost = _form(previous.x, self.q) + _form(action, self.r)
        return Prediction(reward=-cost, continues=torch.ones_like(cost))

    def optimum(self, discount: float = 1.0) -> tuple[Tensor, Tensor]:
        """(n, n) P and (A, n) K of the Riccati equation: without bounds on actions, the best return from x is -x'Px, by
        a = -K x."""
        a, b, q, r = (np.asarray(m.cpu(), np.float64) for m in (self.a, self.b, self.q, self.r))
        a, b = math.sqrt(discount) * a, math.sqrt(discount) * b
        p = linalg.solve_discrete_are(a, b, q, r)
        gain = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
        return torch.from_numpy(p).float(), torch.from_numpy(gain).float()

    def value(self, discount: float = 1.0) -> Any:
        """-x'Px as a function of features (..., n)."""
        p = self.optimum(discount)[0].to(self.origin.device)
        return lambda features: -_form(features, p)


def double_integrator(*, seconds: float = 0.1, effort: float = 0.1) -> LinearQuadratic:
    """Position and speed of a mass that is pushed; ``effort`` is the price of a push."""
    a = torch.tensor([[1.0, seconds], [0.0, 1.0]])
    return LinearQuadratic(a, torch.tensor([[0.0], [seconds]]), torch.eye(2), effort * torch.eye(1))


class Pendulum(Certain):
    """Gymnasium's Pendulum-v1: (cos, sin, speed), actions in [-1, 1] for torques in [-2, 2]. Implements
    ``WorldModel[Point]``."""

    gravity, mass, length, seconds, max_speed, max_torque = 10.0, 1.0, 1.0, 0.05, 8.0, 2.0

    def __init__(self) -> None:
        super().__init__(3)

    def step(self, state: Point, action: Tensor) -> Point:
        cos, sin, speed = state.x.unbind(-1)
        angle, torque = torch.atan2(sin, cos), self.max_torque * action[..., 0].clamp(-1, 1)
        pull = 1.5 * self.gravity / self.length * sin + 3.0 / (self.mass * self.length**2) * torque
        speed = (speed + self.seconds * pull).clamp(-self.max_speed, self.max_speed)
        angle = angle + self.seconds * speed
        return Point(x=torch.stack([angle.cos(), angle.sin(), speed], -1))

    def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
        """-(angle^2 + speed^2 / 10 + torque^2 / 1000) of the state that was left."""
        cos, sin, speed = previous.x.unbind(-1)
        torque = self.max_torque * action[..., 0].clamp(-1, 1)
        cost = torch.atan2(sin, cos).square() + 0.1 * speed.square() + 0.001 * torque.square()
        return Prediction(reward=-cost, continues=torch.ones_like(cost))


def _form(x: Tensor, matrix: Tensor) -> Tensor:
    """x' M x over the last axis."""
    return ((x @ matrix) * x).sum(-1)
