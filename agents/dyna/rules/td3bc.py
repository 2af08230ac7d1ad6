"""TD3+BC (Fujimoto and Gu 2021): a deterministic policy that climbs the first critic and stays near what was done."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.policy import AddedNormal, SquashedNormal, SquashedPolicy
from worldmodel.agents.dyna.rules.base import Learner, Losses
from worldmodel.errors import check_range
from worldmodel.nn.slow import follow_
from worldmodel.types import ActionSpec, Transitions


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig:
    """The authors' numbers; ``policy_delay=2`` and ``standardise`` of the agent belong to them."""

    alpha: float = 2.5
    """Weight of values, in units of their mean absolute value, against that of cloning."""
    smoothing: float = 0.2
    """Standard deviation of the noise on the actions of targets."""
    clip: float = 0.5
    """Bound of that noise."""
    explores: float = 0.1
    """Standard deviation of the noise on actions, online."""
    rate: float = 0.005
    """Share of the policy that its slow copy takes over, whenever the policy moves."""

    def __post_init__(self) -> None:
        check_range(self, 0, "alpha", "smoothing", "clip", "explores")
        check_range(self, 0, "rate", high=1)

    def build(self, actor: SquashedPolicy, action: ActionSpec) -> TD3BC:
        return TD3BC(self, actor)


class TD3BC(nn.Module):
    """Implements ``Rule``."""

    unrolls = False

    def __init__(self, config: TD3BCConfig, actor: SquashedPolicy) -> None:
        super().__init__()
        self.config = config
        self.slow = copy.deepcopy(actor).requires_grad_(False)

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [], []

    def act(self, policy: SquashedNormal | AddedNormal, *, explore: bool) -> Tensor:
        action = policy.mode()
        return (action + self.config.explores * torch.randn_like(action)).clamp(-1, 1) if explore else action

    def bootstrap(self, it: Learner, x: Tensor) -> tuple[Tensor, Tensor]:
        action = self.slow(x).mode()
        noise = (self.config.smoothing * torch.randn_like(action)).clamp(-self.config.clip, self.config.clip)
        every = it.value.every(x, (action + noise).clamp(-1, 1), slow=True)
        return it.value.combine(every), every

    def losses(self, it: Learner, data: Transitions, target: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        action = it.actor(data.x).mode()
        # the first critic alone: the least of two is for targets
        value = it.judge.every(data.x, action)[0]
        cloned = losses.cloning_error(action=action, done=data.action)
        terms = {
            "value": it.value.loss(data.x, data.action, target),
            "policy": cloned - losses.scaled_value(value=value, weight=self.config.alpha),
        }
        return terms, {"value/mean": value.detach().mean(), "actor/cloned": cloned.detach().mean()}

    def track(self, it: Learner, healthy: Tensor) -> None:
        follow_(self.slow, it.actor, self.config.rate, healthy)
