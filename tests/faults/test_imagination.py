"""F23: the bookkeeping of a dream, worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.agents.dreamer.losses import imagined_targets
from worldmodel.rollout import imagine
from worldmodel.types import Prediction


class Chain:
    """States 0, 1, 2, ...; the action is added. Reward 10 s + s' on the way from s to s'; state 3 is terminal."""

    def features(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return state + action

    def predict(self, before: Tensor, action: Tensor, after: Tensor) -> Prediction:
        assert torch.equal(before + action, after), "an action leads from its state to the next one"
        return Prediction(reward=(10 * before + after)[..., 0], continues=(after != 3).float()[..., 0])


def test_a_dream_of_four_steps_by_hand() -> None:
    dream = imagine(Chain(), lambda features: torch.ones_like(features), torch.zeros(1, 1), 4)  # type: ignore[arg-type]
    assert dream.states[0, :, 0].tolist() == [0, 1, 2, 3, 4] and dream.action[0, :, 0].tolist() == [1, 1, 1, 1]
    assert dream.reward.tolist() == [[1, 12, 23, 34]] and dream.continues.tolist() == [[1, 1, 0, 1]]
    # values 100 s, lambda 1/2, discount 1/2, and a start that is alive
    continues = torch.cat([torch.ones(1, 1), dream.continues], 1) * 0.5
    value = 100 * dream.states[..., 0]
    return_, weight = imagined_targets(reward=dream.reward, continues=continues, value=value, lam=0.5)
    # R3 = 34 + .5 * 400; R2 = 23, it ends there; R1 = 12 + .5 (.5 * 200 + .5 * 23); R0 = 1 + .5 (.5 * 100 + .5 * R1)
    assert return_.tolist() == [[42.9375, 67.75, 23.0, 234.0]]
    # nothing counts that is decided after the end
    assert weight.tolist() == [[0.5, 0.25, 0.125, 0.0]]
