"""How Q-functions learn: with the model in imagined states (TD-MPC, TD-MPC2, FOWM), or apart from it (TCRL)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.agents.tdmpc2.policy import Prior
from worldmodel.agents.values.ensemble_q import EnsembleQ
from worldmodel.agents.values.expectile import Expectile
from worldmodel.models.implicit import ImplicitModel, Latent, Unrolled, padded
from worldmodel.returns import steps_ahead
from worldmodel.types import Batch


@dataclass(frozen=True)
class Critic:
    """Losses of Q-functions, and of the value of states that is an expectile of theirs; it owns none of them."""

    model: ImplicitModel
    policy: Prior
    value: EnsembleQ
    states: Expectile | None
    """Targets continue with it where it is there."""
    steps: int
    """Rewards before the bootstrap, apart."""
    discount: float | Tensor
    """Of everything, or (K,) of each task."""

    def joint(
        self, batch: Batch, unrolled: Unrolled
    ) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Tensor]]:
        """Losses (B, T), weighted by the model's ``step_weights``, with gradient to the imagined states; priorities
        (B, T) where replay is prioritised, and metrics."""
        before, action = self.model.features(unrolled.states)[:, :-1], batch.action[:, :-1]
        weight, losses, priority = self.model.step_weights(batch.is_first), {}, None
        if self.states is not None:
            # before targets ask it: within one block of autocast, weights keep the cast of their first use
            losses["states"] = weight * padded(self.states.loss(before, self._done(before, action)))
        target = self.target(batch, unrolled.encoded)
        if batch.weight is None:
            each = self.value.loss(before, action, target)
        else:
            each, error = self.value.judged(before, action, target)
            priority = self._priority(batch, error)
        losses["value"] = weight * padded(each)
        return losses, priority, {"value/target": target.mean()}

    def apart(self, batch: Batch) -> tuple[Tensor, Latent, dict[str, Tensor]]:
        """() the loss in the first states of sequences, encoded, constants, these (B, 1), and metrics (TCRL, eq. 4)."""
        assert isinstance(self.discount, float)
        ahead = steps_ahead(reward=batch.reward, is_first=batch.is_first, discount=self.discount, steps=self.steps)
        rows = torch.arange(len(batch.reward), device=batch.reward.device)
        with torch.no_grad():
            first = self.model.encode({key: x[:, 0] for key, x in batch.obs.items()}, shift=True)
            later = self.model.encode({key: x[rows, ahead.at] for key, x in batch.obs.items()}, shift=True)
            value = self._following(Latent(z=later))
            target = ahead.reward + ahead.discount * (~batch.is_terminal[rows, ahead.at]).float() * value
        states = Latent(z=first.unsqueeze(1))
        each = self.value.loss(self.model.features(states)[:, 0], batch.action[:, 0], target)
        # an episode that ended in the first step leads nowhere
        inside = (ahead.at > 0).float()
        loss = (inside * each).sum() / inside.sum().clamp(min=1.0)
        return loss, states, {"loss/value": loss.detach(), "value/target": target.mean()}

    @torch.no_grad()
    def target(self, batch: Batch, seen: Latent) -> Tensor:
        """(B, T-1) r + discount (1 - terminal) min Q(s', a'), a' ~ policy, in states that were seen (TD-MPC2, eq. 4),
        or V(s') instead of Q (FOWM)."""
        alive = (~batch.is_terminal[:, 1:]).float()
        discount = self.discount[self.model.task_of(seen)] if isinstance(self.discount, Tensor) else self.discount
        return batch.reward[:, 1:] + discount * alive * self._following(seen)

    @torch.no_grad()
    def advantage(self, features: Tensor, action: Tensor) -> Tensor:
        """(...) how much better than usual what was done is."""
        assert self.states is not None
        return self._done(features, action) - self.states.value(features)

    def _following(self, state: Latent) -> Tensor:
        """(...) what targets continue with."""
        features = self.model.features(state)
        if self.states is not None:
            return self.states.value(features)
        return self.value.target(features, self.policy(features).sample())

    @torch.no_grad()
    def _done(self, features: Tensor, action: Tensor) -> Tensor:
        """(...) what the slow Q-functions say of what was done."""
        return self.value.target(features, action)

    def _priority(self, batch: Batch, error: Tensor) -> Tensor:
        """(B, T) of first steps sum_t rho^t sum_q |Q_q - target| given these errors (B, T-1); of others none, which is
        infinite (TD-MPC)."""
        power = self.model.config.rho ** torch.arange(error.shape[1], device=error.device)
        first = (error * (~batch.is_first[:, 1:]).float() * power).sum(1, keepdim=True).clamp(max=1e4) + 1e-6
        return torch.cat([first, torch.full_like(error, torch.inf)], 1)
