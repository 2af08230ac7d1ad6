"""Values of states as upper expectiles of what was done there, and weights of what was done better (IQL, Kostrikov et
al. 2022): nothing is asked of actions that the data does not hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.errors import check_range
from worldmodel.nn.normed import Activation, Init, Norm, NormedMLP


def expectile_weight(*, error: Tensor, expectile: float) -> Tensor:
    """|tau - 1(u < 0)|: tau where what is regressed to lies above, 1 - tau where it does not."""
    return torch.where(error > 0, expectile, 1 - expectile)


def expectile_loss(*, error: Tensor, expectile: float) -> Tensor:
    """|tau - 1(u < 0)| u^2, u = target - prediction (IQL, eq. 4)."""
    return expectile_weight(error=error.detach(), expectile=expectile) * error.square()


def advantage_weight(*, advantage: Tensor, beta: float, limit: float) -> Tensor:
    """min(exp(beta (Q - V)), limit) (IQL, eq. 7)."""
    return (beta * advantage).exp().clamp(max=limit).detach()


@dataclass(frozen=True, kw_only=True)
class ExpectileConfig:
    """A state's value beside Q-functions; the defaults are FOWM's."""

    expectile: float = 0.9
    """tau: 0.5 is the mean of what was done, 1 its best."""
    beta: float = 3.0
    """Inverse temperature of advantages."""
    limit: float = 100.0
    """The largest weight of an action."""
    units: int = 512
    layers: int = 2
    activation: Activation = "elu"
    norm: Norm = "first"
    init: Init = "orthogonal"

    def __post_init__(self) -> None:
        check_range(self, 0, "expectile", high=1)
        check_range(self, 0, "beta", "limit")

    def build(self, feature_dim: int) -> Expectile:
        return Expectile(self, feature_dim)


class Expectile(nn.Module):
    """V(s), regressed to Q(s, a) of what was done by an asymmetric square."""

    def __init__(self, config: ExpectileConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.net = NormedMLP(
            feature_dim, config.units, config.layers, 1, activation=config.activation, norm=config.norm,
            init=config.init,
        )

    def value(self, features: Tensor) -> Tensor:
        """(..., F) -> (...) float32."""
        return self.net(features).squeeze(-1).float()

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        """(...) of being the expectile of ``target`` (...), a constant; features may carry gradient."""
        return expectile_loss(error=target.detach() - self.value(features), expectile=self.config.expectile)

    def weight(self, advantage: Tensor) -> Tensor:
        """(...) how much an action of that advantage is to be cloned, without gradient."""
        return advantage_weight(advantage=advantage, beta=self.config.beta, limit=self.config.limit)
