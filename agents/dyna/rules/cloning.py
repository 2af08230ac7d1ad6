"""Behaviour cloning: the policy does what was done; its critics learn what that is worth, and no policy climbs them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.policy import AddedNormal, SquashedNormal, SquashedPolicy
from worldmodel.agents.dyna.rules.base import Learner, Losses
from worldmodel.types import ActionSpec, Transitions


@dataclass(frozen=True, kw_only=True)
class CloningConfig:
    """Squared errors of the policy's mode. Critics are evaluated beside it (fitted Q evaluation), so that what it is
    thought to be worth can be compared with that of others."""

    def build(self, actor: SquashedPolicy, action: ActionSpec) -> Cloning:
        return Cloning()


class Cloning(nn.Module):
    """Implements ``Rule``."""

    unrolls = False

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [], []

    def act(self, policy: SquashedNormal | AddedNormal, *, explore: bool) -> Tensor:
        return policy.mode()

    def bootstrap(self, it: Learner, x: Tensor) -> tuple[Tensor, Tensor]:
        every = it.value.every(x, it.actor(x).mode(), slow=True)
        return it.value.combine(every), every

    def losses(self, it: Learner, data: Transitions, target: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        action = it.actor(data.x).mode()
        terms = {
            "value": it.value.loss(data.x, data.action, target),
            "policy": losses.cloning_error(action=action, done=data.action),
        }
        return terms, {"value/mean": it.judge.value(data.x, action).detach().mean()}

    def track(self, it: Learner, healthy: Tensor) -> None:
        """It has no slow copies."""
