"""The only code that unrolls a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.protocols import Forks, Trims, WorldModel
from worldmodel.types import Trajectory

S = TypeVar("S")


def unroll(model: WorldModel[S], choose: Callable[[S, int], Tensor], state: S, horizon: int) -> Trajectory[S]:
    """Dream ``horizon`` steps from ``state`` (B, ...), with the actions ``choose(state, t) -> (B, A)``.

    A model that ``Forks`` leaves the past of ``state`` where it is, instead of carrying it along from step to step.

    Gradients flow wherever the caller lets them: wrap in ``torch.no_grad`` for score-function learning.
    """
    states, actions = _walk(model, choose, state, horizon)
    return _trajectory(model, states, actions)


def imagine(model: WorldModel[S], policy: Callable[[Tensor], Tensor], state: S, horizon: int) -> Trajectory[S]:
    """:func:`unroll` with actions that a policy chooses by the features alone: ``policy(features) -> (B, A)``."""
    return unroll(model, lambda now, t: policy(model.features(now)), state, horizon)


def proposals(model: WorldModel[S], policy: Callable[[Tensor], Tensor], state: S, horizon: int) -> Tensor:
    """The actions (B, H, A) of :func:`imagine` alone: nothing is predicted."""
    return _walk(model, lambda now, t: policy(model.features(now)), state, horizon)[1]


def follow(model: WorldModel[S], state: S, action: Tensor) -> Trajectory[S]:
    """Unroll given actions (B, H, A) from ``state`` (B, ...)."""
    states = [trimmed(model, state)]
    for t in range(action.shape[1]):
        state = model.step(state, action[:, t])
        states.append(trimmed(model, state))
    return _trajectory(model, states, action)


def trimmed(model: WorldModel[S], state: S) -> S:
    """The state as rollouts keep it: without caches, where the model ``Trims``."""
    return model.trim(state) if isinstance(model, Trims) else state


def _walk(
    model: WorldModel[S], choose: Callable[[S, int], Tensor], state: S, horizon: int
) -> tuple[list[S], Tensor]:
    """States, the first one included, as rollouts keep them, and actions (B, H, A)."""
    states, actions = [trimmed(model, state)], []
    if isinstance(model, Forks):
        state = model.fork(state, 1)
    for t in range(horizon):
        action = choose(state, t)
        state = model.step(state, action)
        states.append(trimmed(model, state))
        actions.append(action)
    return states, torch.stack(actions, 1)


def _trajectory(model: WorldModel[S], states: list[S], action: Tensor) -> Trajectory[S]:
    stacked = tree.stack(states, 1)
    before = tree.index(stacked, (slice(None), slice(None, -1)))
    after = tree.index(stacked, (slice(None), slice(1, None)))
    # What does not recur is predicted for the whole rollout at once.
    prediction = model.predict(before, action, after)
    return Trajectory(states=stacked, action=action, reward=prediction.reward, continues=prediction.continues)
