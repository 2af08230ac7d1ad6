"""RAMBO (Rigter et al. 2022): the model is changed, within what the data allows, to be worse for the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.rules.base import Learner
from worldmodel.errors import check_range
from worldmodel.nn.optim import Adam
from worldmodel.types import Transitions


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """The authors' numbers."""

    every: int = 0
    """Updates of the agent between two rounds; 0: the model stays as it was fitted."""
    steps: int = 1000
    """Updates of the model in a round."""
    length: int = 5
    """Steps of its rollouts."""
    rows: int = 256
    """Of a rollout, and of the data beside it."""
    weight: float = 3e-4
    """lambda, chosen for each dataset; 0: it goes on learning the data, unopposed."""
    lr: float = 3e-4
    bounds_scale: float = 0.001
    """What pulls the limits of log-variances together, here."""

    def __post_init__(self) -> None:
        check_range(self, 0, "every", "weight", "lr", "bounds_scale")
        check_range(self, 1, "steps", "length", "rows")


class Adversary:
    """Owns an optimiser of the model's parameters."""

    def __init__(self, config: AdversaryConfig, model: Any) -> None:
        self.config = config
        self.begin(model)

    def begin(self, model: Any) -> None:
        """Anew, after the model was fitted."""
        self.optimizer = Adam([(model.parameters(), self.config.lr)])

    def round(self, it: Learner, draw: Callable[[int], Transitions]) -> dict[str, Tensor]:
        """``steps`` updates of the model along rollouts from the data; means of what it minimised.

        Args: draw: so many real transitions, at random.
        """
        c, made, said = self.config, 0, []
        while made < c.steps:
            begun = draw(c.rows)
            state, alive = it.place(begun.x), torch.ones_like(begun.reward)
            for _ in range(min(c.length, c.steps - made)):
                state, alive, found = self.update(it, state, alive, draw(c.rows))
                said.append(found)
                made += 1
        return {name: torch.stack([found[name] for found in said]).mean() for name in said[0]}

    def update(
        self, it: Learner, state: Any, alive: Tensor, data: Transitions
    ) -> tuple[Any, Tensor, dict[str, Tensor]]:
        """One: the state that its rollout came to, which rows of it are alive (N,), and scalars."""
        c, model = self.config, it.model
        with torch.no_grad():
            x = model.features(state)
            action = it.actor(x).sample()
            arrived = model.step(state, action)
            said, after = model.predict(state, action, arrived), model.features(arrived)
            goes_on = (said.continues > 0.5).float()
            ahead = it.value.value(after, it.actor(after).mode())
            advantage = said.reward + it.discount * goes_on * ahead - it.value.value(x, action)
        adverse = losses.adversarial_loss(
            log_prob=model.log_prob(state, action, arrived), advantage=advantage, alive=alive
        )
        misfit = model.misfit(data, c.bounds_scale)
        total = c.weight * adverse + misfit
        self.optimizer.backward(total)
        self.optimizer.step(torch.isfinite(total))
        return arrived, alive * goes_on, {"adverse": adverse.detach(), "misfit": misfit.detach()}
