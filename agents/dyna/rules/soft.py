"""Soft actor-critic (Haarnoja et al. 2018): the rule of SAC, REDQ, EDAC, MBPO and of all that only change its data or
its targets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.policy import AddedNormal, SquashedNormal, SquashedPolicy, TemperatureConfig
from worldmodel.agents.dyna.rules.base import Learner, Losses
from worldmodel.types import ActionSpec, Transitions


@dataclass(frozen=True, kw_only=True)
class SoftConfig:
    """A policy that climbs its critics and keeps some entropy."""

    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    backup: Literal["soft", "plain"] = "soft"
    """Whether targets hold the entropy of what follows."""

    def build(self, actor: SquashedPolicy, action: ActionSpec) -> Soft:
        return Soft(self, action)


class Soft(nn.Module):
    """Implements ``Rule``."""

    unrolls = False

    def __init__(self, config: SoftConfig, action: ActionSpec) -> None:
        super().__init__()
        self.config, temperature = config, config.temperature
        self.log_alpha = nn.Parameter(torch.full((), math.log(max(temperature.initial, 1e-8))))
        self.log_alpha.requires_grad_(temperature.is_learned)
        self.entropy = -float(action.size) if temperature.target is None else temperature.target

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [], [self.log_alpha]

    def act(self, policy: SquashedNormal | AddedNormal, *, explore: bool) -> Tensor:
        return policy.sample() if explore else policy.mode()

    def alpha(self) -> Tensor:
        """() the price of certainty, without gradient."""
        return self.log_alpha.detach().exp().clamp(max=self.config.temperature.highest)

    def bootstrap(self, it: Learner, x: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = it.actor(x).sample_with_log_prob()
        every = it.value.every(x, action, slow=True)
        value = it.value.combine(every)
        if self.config.backup == "soft":
            value = losses.soft_value(value=value, log_prob=log_prob, alpha=self.alpha())
        return value, every

    def losses(self, it: Learner, data: Transitions, target: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        critic = it.value.loss(data.x, data.action, target)
        action, log_prob = it.actor(data.x).sample_with_log_prob()
        value, alpha = it.judge.value(data.x, action), self.alpha()
        terms = {"value": critic, "policy": losses.policy_loss(value=value, log_prob=log_prob, alpha=alpha)}
        if self.log_alpha.requires_grad:
            terms["temperature"] = losses.temperature_loss(
                log_alpha=self.log_alpha, log_prob=log_prob, target=self.entropy
            )
        return terms, {
            "value/mean": value.detach().mean(), "actor/entropy": -log_prob.detach().mean(), "actor/alpha": alpha,
        }

    def track(self, it: Learner, healthy: Tensor) -> None:
        """It has no slow copies."""
