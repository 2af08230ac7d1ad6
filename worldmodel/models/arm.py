"""Gymnasium's Reacher as a model: MuJoCo itself, set to any state that was observed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.models.analytic import Certain, Point
from worldmodel.types import EnvSpec, Prediction

LINKS = (0.1, 0.11)
"""Metres from joint to joint, and from there to the fingertip."""


class Arm(Certain):
    """Reacher-v5: an observation (10) is cosines and sines of two angles, where the target is, the angles' speeds, and
    the way from target to fingertip, which tell the whole state. Implements ``WorldModel[Point]``, on the CPU, row by
    row.
    """

    def __init__(self) -> None:
        super().__init__(10)

    @functools.cached_property
    def env(self) -> Any:
        """Made when it is first asked for. Raises UserError without MuJoCo."""
        try:
            import gymnasium

            return gymnasium.make("Reacher-v5").unwrapped
        except (ImportError, AttributeError) as error:  # gymnasium has a sentence for what is missing
            raise UserError(f"Reacher-v5 cannot be made: {error}") from error

    def step(self, state: Point, action: Tensor) -> Point:
        """(..., 10), (..., 2) -> (..., 10)."""
        x, a = state.x.detach().reshape(-1, 10).double().numpy(), action.detach().reshape(-1, 2).double().numpy()
        angle = np.arctan2(x[:, 2:4], x[:, :2])
        position = np.concatenate([angle, x[:, 4:6]], 1)
        speed = np.concatenate([x[:, 6:8], np.zeros((len(x), 2))], 1)
        arrived = np.empty_like(x)
        for row, (qpos, qvel, torque) in enumerate(zip(position, speed, a.clip(-1, 1))):
            self.env.set_state(qpos, qvel)
            self.env.do_simulation(torque, self.env.frame_skip)
            arrived[row] = self.env._get_obs()
        return Point(x=torch.from_numpy(arrived).float().view(state.x.shape))

    def predict(self, previous: Point, action: Tensor, state: Point) -> Prediction:
        reward = -state.x[..., 8:10].norm(dim=-1) - action.square().sum(-1)
        return Prediction(reward=reward, continues=torch.ones_like(reward))

    def start(self, angle: Tensor, target: Tensor) -> Tensor:
        """(N, 2), (N, 2) -> (N, 10) at rest."""
        tip = self.tip(angle.cos(), angle.sin())
        return torch.cat([angle.cos(), angle.sin(), target, torch.zeros_like(angle), tip - target], -1)

    @staticmethod
    def tip(cos: Tensor, sin: Tensor) -> Tensor:
        """(..., 2), (..., 2) -> (..., 2) where the fingertip is; the second angle is against the first link."""
        (c, c2), (s, s2) = cos.unbind(-1), sin.unbind(-1)
        far = torch.stack([c * c2 - s * s2, s * c2 + c * s2], -1)
        return LINKS[0] * torch.stack([c, s], -1) + LINKS[1] * far


def reach_out(x: Tensor) -> Tensor:
    """(..., 10) -> (..., 2) in [-1, 1]: pull the fingertip to the target, along the arm's Jacobian, with damping."""
    to_go = -x[..., 8:10]
    tip = Arm.tip(x[..., :2], x[..., 2:4])
    elbow = LINKS[0] * torch.stack([x[..., 0], x[..., 2]], -1)

    def turned(arm: Tensor) -> Tensor:
        return arm[..., 0] * to_go[..., 1] - arm[..., 1] * to_go[..., 0]

    pull = torch.stack([turned(tip), turned(tip - elbow)], -1)
    return (30.0 * pull - 0.1 * x[..., 6:8]).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """The truth in a learned model's place."""

    def build(self, spec: EnvSpec) -> Arm:
        return Arm()
