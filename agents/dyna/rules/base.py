"""What a rule is: how policy and critics learn from a batch of transitions. What pessimism is added to its targets, and
where transitions come from, is decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from worldmodel.agents.dyna.policy import AddedNormal, SquashedNormal, SquashedPolicy
from worldmodel.agents.values.critics import Critics
from worldmodel.types import Transitions

Losses = dict[str, Tensor]
"""By name, (N,) or (), each to be averaged; "value" and "policy" are among them."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What a rule works with."""

    actor: SquashedPolicy
    value: Critics
    judge: Critics
    """``value`` on the same memory: gradients go through it and not into it."""
    model: Any
    """The world model, or None. Its parameters are never learned by a rule."""
    place: Callable[[Tensor], Any]
    """Observations (N, F) to states of the model."""
    discount: float
    real: int
    """Rows of a batch that were lived; they come first, the others were dreamed."""


class Rule(Protocol):
    """Built by its config, ``build(actor, action)``. Implemented by modules, so that what a rule learns and remembers
    is part of the agent's state."""

    unrolls: bool
    """Whether it asks for a model, and for both lived and dreamed rows."""

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What it learns itself, at the critics' rate and at the policy's."""
        ...

    def act(self, policy: SquashedNormal | AddedNormal, *, explore: bool) -> Tensor:
        """(N, A)."""
        ...

    def bootstrap(self, it: Learner, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, F) to what targets take them to be worth, (N,), and the answers that it is made of, (E, N).
        Called without gradient."""
        ...

    def losses(self, it: Learner, data: Transitions, target: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        """What to minimise, and scalars for the log; ``target`` (N,) is y of ``data``."""
        ...

    def track(self, it: Learner, healthy: Tensor) -> None:
        """After an update that moved the policy, where () ``healthy``: move slow copies."""
        ...
