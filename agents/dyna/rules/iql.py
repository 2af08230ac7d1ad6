"""Implicit Q-learning (Kostrikov et al. 2022): values of what was done alone, an upper expectile of which is the value
of a state, and a policy that clones what was better than that."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from worldmodel.agents.dyna.policy import AddedNormal, SquashedNormal, SquashedPolicy
from worldmodel.agents.dyna.rules.base import Learner, Losses
from worldmodel.agents.values.expectile import advantage_weight, expectile_loss
from worldmodel.errors import check_range
from worldmodel.nn.ensemble import EnsembleMLP, uniform
from worldmodel.nn.normed import Standardise
from worldmodel.types import ActionSpec, Transitions


@dataclass(frozen=True, kw_only=True)
class IQLConfig:
    """The authors' numbers for locomotion."""

    expectile: float = 0.7
    """tau: 0.5 is the mean of what was done, 1 its best."""
    beta: float = 3.0
    """Inverse temperature of advantages."""
    limit: float = 100.0
    """The largest weight of an action."""
    units: tuple[int, ...] = (256, 256)
    """Of the state's value."""

    def __post_init__(self) -> None:
        check_range(self, 0, "expectile", high=1)
        check_range(self, 0, "beta", "limit")

    def build(self, actor: SquashedPolicy, action: ActionSpec) -> IQL:
        return IQL(self, actor.feature_dim)


class IQL(nn.Module):
    """Implements ``Rule``. No policy's action is ever judged: nothing is asked of what the data does not hold."""

    unrolls = False

    def __init__(self, config: IQLConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.inputs = Standardise(feature_dim)
        self.net = EnsembleMLP(
            1, feature_dim, 1, units=config.units, norm="none", activation="relu", init=uniform, bias=uniform
        )

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [*self.net.parameters()], []

    def act(self, policy: SquashedNormal | AddedNormal, *, explore: bool) -> Tensor:
        return policy.sample() if explore else policy.mode()

    def worth(self, x: Tensor) -> Tensor:
        """(..., F) -> (...) V."""
        return self.net(self.inputs(x))[0].squeeze(-1)

    def bootstrap(self, it: Learner, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self.worth(x)
        return value, value.unsqueeze(0)

    def losses(self, it: Learner, data: Transitions, target: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        done, worth = it.value.target(data.x, data.action).detach(), self.worth(data.x)
        advantage = done - worth.detach()
        weight = advantage_weight(advantage=advantage, beta=self.config.beta, limit=self.config.limit)
        terms = {
            "value": it.value.loss(data.x, data.action, target),
            "state": expectile_loss(error=done - worth, expectile=self.config.expectile),
            "policy": -weight * it.actor(data.x).log_prob(data.action),
        }
        return terms, {
            "value/mean": worth.detach().mean(), "actor/advantage": advantage.mean(),
            "actor/limited": (weight >= self.config.limit).float().mean(),
        }

    def track(self, it: Learner, healthy: Tensor) -> None:
        """It has no slow copies."""
