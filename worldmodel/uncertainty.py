"""How unsure a model is, over sequences."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worldmodel import tree
from worldmodel.errors import UserError
from worldmodel.protocols import Uncertain


def doubt(model: object, states: Any, action: Tensor) -> Tensor:
    """Disagreement about what follows each state (B, T, ...) and action (B, T, A): (B, T) float32.

    Raises: UserError where the model is not ``Uncertain``.
    """
    if not isinstance(model, Uncertain):
        raise UserError(
            f"uncertainty has a weight, but {type(model).__name__} has no disagreement; give the model an ensemble "
            f"(agent.model.disagreement = DisagreementConfig()), or take a weight of 0"
        )
    return model.disagreement(tree.flatten_time(states), action.flatten(0, 1)).float().view(action.shape[:2])
