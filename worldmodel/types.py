"""The data that crosses seams. Batch first, (B, T, ...), no trailing 1.

Letters: B batch, T time, N environments, H horizon, A action size, F feature size, Z groups, K classes,
D deterministic.
"""

from __future__ import annotations

from dataclasses import field
from typing import Generic, TypeVar

from torch import Tensor

from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec
from worldmodel.tree import struct

S = TypeVar("S")

__all__ = [
    "ActionSpec", "ArraySpec", "Batch", "EnvSpec", "Plan", "Prediction", "Step", "Trajectory", "Transitions", "Update",
]


@struct
class Step:
    """What N environments say at one time step."""

    obs: dict[str, Tensor]
    """(N, ...); images stay uint8."""
    reward: Tensor
    """(N,) float32, received on arriving at ``obs``; 0 at ``is_first``."""
    is_first: Tensor
    """(N,) bool."""
    is_last: Tensor
    """(N,) bool, end for any reason."""
    is_terminal: Tensor
    """(N,) bool, end of the MDP; truncation is ``is_last & ~is_terminal``."""


@struct
class Batch:
    """A sample of replay: B sequences of T steps, which may cross episodes (``is_first`` inside)."""

    obs: dict[str, Tensor]
    """(B, T, ...); images stay uint8."""
    action: Tensor
    """(B, T, A) chosen after seeing ``obs`` of the same step; zero at ``is_last``."""
    prev_action: Tensor
    """(B, T, A) the action that led to ``obs``; zero at ``is_first``."""
    reward: Tensor
    """(B, T) float32, received on arriving at ``obs``."""
    is_first: Tensor
    """(B, T) bool."""
    is_last: Tensor
    """(B, T) bool."""
    is_terminal: Tensor
    """(B, T) bool."""
    context: dict[str, Tensor] = field(default_factory=dict)
    """(B, ...) the memory that replay holds of the step *before* step 0; empty where there is none."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """(B, T, ...) what replay holds of every step, where it is asked to deliver that (``ReplayConfig.memory``)."""
    index: Tensor | None = None
    """(B, 2) int64, (environment, absolute step) of step 0; what ``Replay.write_back`` and priorities need."""
    weight: Tensor | None = None
    """(B,) importance weights of a prioritised sampler."""
    starts: Batch | None = None
    """(W, C, ...) other sequences, whose ends imagination begins from, where replay is asked for such windows."""


@struct
class Transitions:
    """N steps without order, as learners off the policy take them; (N, ...) features and what became of them."""

    x: Tensor
    """(N, F) features of the state that was left."""
    action: Tensor
    """(N, A)."""
    reward: Tensor
    """(N,) received on arriving."""
    next_x: Tensor
    """(N, F) features of the state arrived in."""
    terminal: Tensor
    """(N,) float, 1 where the MDP ended there."""
    edge: Tensor
    """(N,) float, 1 where whoever made this data went no further, though the MDP did not end: nothing in it tells what
    follows, and a value learned from it is never corrected there."""


@struct
class Prediction:
    """What a model says about arriving somewhere."""

    reward: Tensor
    """(...) expected reward."""
    continues: Tensor
    """(...) probability of going on, undiscounted."""


@struct
class Trajectory(Generic[S]):
    """An imagined rollout."""

    states: S
    """(B, H+1, ...) the start, then H imagined states; trimmed where the model ``Trims``."""
    action: Tensor
    """(B, H, A) action[t] leads from state t to state t+1."""
    reward: Tensor
    """(B, H) reward[t] belongs to arriving in state t+1."""
    continues: Tensor
    """(B, H) continues[t] belongs to arriving in state t+1."""


@struct
class Plan:
    """What a planner returns; handed back to it as warm start."""

    action: Tensor
    """(B, A) the action to take now."""
    mean: Tensor
    """(B, H, A) ``mean[t]`` is meant for t steps from now: a planner shifts it when it is handed back."""
    std: Tensor
    """(B, H, A)."""
    kept: Tensor
    """(B, K, H, A) good sequences that the next plan begins with; K = 0 where the planner keeps none."""


@struct
class Update:
    """What ``Agent.learn`` returns; everything stays on the device until it is logged."""

    metrics: dict[str, Tensor]
    """Scalars by name: "loss/reward", "value/mean"."""
    memory: dict[str, Tensor]
    """(B, T, ...) fresh latents to write back over the batch's steps; empty where the agent keeps none."""
    priority: Tensor | None = None
    """(B, T) new priorities for a prioritised sampler."""
