"""LEQ (Park and Lee 2025): lower expectiles of lambda-returns, for a critic without slow copies in its targets and for
a deterministic policy by the gradient of the dynamics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.policy import AddedNormal, SquashedNormal, SquashedPolicy
from worldmodel.agents.dyna.rules.base import Learner, Losses
from worldmodel.agents.values.expectile import expectile_loss, expectile_weight
from worldmodel.errors import check_range
from worldmodel.rollout import unroll
from worldmodel.types import ActionSpec, Transitions


@dataclass(frozen=True, kw_only=True)
class LEQConfig:
    """The authors' numbers. The dreamed rows of a batch are where its rollouts begin: their pool holds states that were
    dreamed from data before."""

    horizon: int = 10
    lam: float = 0.95
    expectile: float = 0.1
    """tau: below 0.5 promises count less than disappointments; chosen for each dataset."""
    share: float = 0.25
    """rho: weight of rollouts against that of data."""

    def __post_init__(self) -> None:
        check_range(self, 1, "horizon")
        check_range(self, 0, "expectile", "share", high=1)
        if not 0 < self.lam <= 1:
            raise ValueError(f"lam must be in (0, 1], got {self.lam}")

    def build(self, actor: SquashedPolicy, action: ActionSpec) -> LEQ:
        return LEQ(self)


class LEQ(nn.Module):
    """Implements ``Rule``."""

    unrolls = True

    def __init__(self, config: LEQConfig) -> None:
        super().__init__()
        self.config = config

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [], []

    def act(self, policy: SquashedNormal | AddedNormal, *, explore: bool) -> Tensor:
        return policy.sample() if explore else policy.mode()

    def bootstrap(self, it: Learner, x: Tensor) -> tuple[Tensor, Tensor]:
        every = it.value.every(x, it.actor(x).mode())
        return it.value.combine(every), every

    def losses(self, it: Learner, data: Transitions, target: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        c, lived = self.config, tree.index(data, slice(None, it.real))
        x, action, value, back, alive, slope = self.dreamed(it, data.x[it.real :])
        ahead = it.discount ** torch.arange(c.horizon, device=x.device) * alive[:, :-1]
        told, tried = x[:, :-1], action[:, :-1]
        q, q_lived = it.value.every(told, tried), it.value.every(lived.x, lived.action)
        with torch.no_grad():
            slow, slow_lived = it.value.every(told, tried, slow=True), it.value.every(lived.x, lived.action, slow=True)
        low = expectile_loss(error=back[:, :-1] - q, expectile=c.expectile)
        weight = expectile_weight(error=back - value, expectile=c.expectile)
        weight = torch.cat([weight[:, :-1], torch.full_like(weight[:, -1:], 0.5)], 1)
        terms = {
            # of the authors' expectile loss at 0.5: half of the squared error
            "value": (1 - c.share) * 0.5 * (q_lived - target[: it.real]).square().sum(0),
            "expectile": c.share * (low * ahead).sum(0),
            "steady": (1 - c.share) * (q_lived - slow_lived).square().sum(0).mean()
            + c.share * ((q - slow).square() * ahead).sum(0).mean(),
            "policy": -((weight * alive).unsqueeze(-1) * slope * it.actor(x).mode()).sum((1, 2)),
        }
        return terms, {"value/mean": value.mean(), "value/returns": back.mean(), "branch/alive": alive[:, -1].mean()}

    def dreamed(self, it: Learner, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rollouts by the policy's mode from (N, F), all without gradient: features (N, H+1, F), actions (N, H+1, A),
        Q, lambda-returns, whether the state was reached alive (N, H+1), and the gradient of each return by its own
        action (N, H+1, A), later actions following the policy."""
        horizon, actions, model = self.config.horizon, it.actor, it.model

        def promised(nudge: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            path = unroll(
                model, lambda now, t: actions(model.features(now)).mode() + nudge[:, t], it.place(x), horizon
            )
            states = model.features(path.states)
            action = torch.cat([path.action, (actions(states[:, -1]).mode() + nudge[:, -1]).unsqueeze(1)], 1)
            value = it.judge.value(states, action)
            goes_on = (path.continues > 0.5).float()
            alive = torch.cat([torch.ones_like(goes_on[:, :1]), goes_on], 1).cumprod(1)
            back, share = losses.mixed_returns(
                value=value, reward=path.reward, alive=alive, discount=it.discount, lam=self.config.lam
            )
            return back[:, 0].sum(), (states, action, value, back, alive, share)

        # every later return enters the first one by its share alone, so one gradient holds that of each
        slope, dreamt = torch.func.grad(promised, has_aux=True)(x.new_zeros(len(x), horizon + 1, actions.actions))
        states, action, value, back, alive, share = (part.detach() for part in dreamt)
        slope = slope.detach() / share.clamp(min=1e-12).unsqueeze(-1)
        return states, action, value, back, alive, torch.where(share.unsqueeze(-1) > 0, slope, 0.0)

    def track(self, it: Learner, healthy: Tensor) -> None:
        """It has no slow copies of its own."""
