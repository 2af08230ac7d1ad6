"""Small courses in the plane, on the seam of learned models: what planners stumble over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldmodel.models.analytic import Analytic, Point
from worldmodel.types import Prediction

Disc = tuple[float, float, float]
"""x, y and radius."""


class Course(Analytic):
    """A mass at (x, y) with speed, pushed by actions in [-1, 1]. Implements ``WorldModel[Point]``.

    Reward on arriving is the highest bump at that place, less the price of an obstacle it lies in; a pit ends it all.
    """

    goals: Tensor
    walls: Tensor
    pits: Tensor

    thrust, damping, price = 0.05, 0.8, 1.0

    def __init__(
        self, *, goals: Sequence[Disc], walls: Sequence[Disc] = (), pits: Sequence[Disc] = (), is_sparse: bool = False
    ) -> None:
        """Args: goals: a Gaussian bump of that width each; ``is_sparse``: 1 within the radius, 0 outside. walls: discs
        that cost ``price`` a step. pits: discs that are the end."""
        super().__init__(4)
        self.is_sparse = is_sparse
        for name, discs in (("goals", goals), ("walls", walls), ("pits", pits)):
            self.register_buffer(name, torch.tensor(list(discs), dtype=torch.float32).reshape(-1, 3))

    def step(self, state: Point, action: Tensor) -> Point:
        place, speed = state.x[..., :2], state.x[..., 2:]
        speed = self.damping * speed + self.thrust * action.clamp(-1, 1)
        return Point(x=torch.cat([place + speed, speed], -1))

    def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
        place = state.x[..., :2]
        far, radius = self._distance(place, self.goals)
        bump = (far < radius).float() if self.is_sparse else torch.exp(-0.5 * (far / radius).square())
        reward = bump.amax(-1)
        far, radius = self._distance(place, self.walls)
        reward = reward - self.price * (far < radius).any(-1).float()
        far, radius = self._distance(place, self.pits)
        return Prediction(reward=reward, continues=1.0 - (far < radius).any(-1).float())

    @staticmethod
    def _distance(place: Tensor, discs: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K) to the middle of each disc, and the radii (K,)."""
        # the root has no gradient at 0
        square = (place.unsqueeze(-2) - discs[:, :2]).square().sum(-1)
        return (square + 1e-12).sqrt(), discs[:, 2]
