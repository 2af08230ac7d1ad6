"""The behaviour losses of DreamerV3, each a function on (B, T)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldmodel import ranks
from worldmodel.distributions import BoundedNormal, Categorical
from worldmodel.returns import lambda_return, reach_weight


def imagined_targets(
    *, reward: Tensor, continues: Tensor, value: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """Returns and weights of imagined rollouts.

    Args:
        reward: (N, H) on arrival in states 1..H.
        continues: (N, H+1) discounted, of states 0..H.
        value: (N, H+1) of states 0..H.
    Returns: lambda-returns (N, H) of states 0..H-1, and weights (N, H) of the same states.
    """
    return_ = lambda_return(reward=reward, continues=continues[:, 1:], bootstrap=value[:, 1:], lam=lam)
    return return_, reach_weight(continues[:, :-1])


def reinforce_loss(policy: BoundedNormal | Categorical, action: Tensor, advantage: Tensor, entropy: float) -> Tensor:
    """-(log pi(sg a) sg(adv) + eta H), shape of ``advantage`` (DreamerV3, eq. 6)."""
    return -(policy.log_prob(action.detach()) * advantage.detach() + entropy * policy.entropy())


def dynamics_loss(policy: BoundedNormal | Categorical, advantage: Tensor, entropy: float) -> Tensor:
    """-(adv + eta H) with gradient through the imagined returns (Dreamer, eq. 7; continuous actions)."""
    return -(advantage + entropy * policy.entropy())


@torch.no_grad()
def selection_kl(policy: BoundedNormal | Categorical, action: Tensor, steps: slice) -> Tensor:
    """A lower bound () of the mean KL[selected || policy] in nats, over ``steps`` of (N, H): what selection does to the
    actions that the policy is taught as its own. That of the best of K samples is at most ln K - (K - 1) / K.

    By convexity the KL of averages is at most the average KL: of frequencies for choices, and, for numbers, of the
    normal with the first two moments that the selected have where the policy's are 0 and 1 (the least KL with these).
    """
    if isinstance(policy, Categorical):
        chosen = action[:, steps].detach().flatten(0, 1).mean(0).clamp(min=1e-8)
        expected = policy.probs[:, steps].flatten(0, 1).mean(0).clamp(min=1e-8)
        return (chosen * (chosen.log() - expected.log())).sum()
    scaled = ((action - policy.mean) / policy.std)[:, steps].flatten(0, 1)
    mean, var = scaled.mean(0), scaled.var(0, correction=0).clamp(min=1e-8)
    return 0.5 * (var + mean.square() - 1 - var.log()).sum()


def replay_value_loss(
    value: Any, *, features: Tensor, reward: Tensor, is_last: Tensor, is_terminal: Tensor, bootstrap: Tensor,
    discount: float, lam: float,
) -> Tensor:
    """Critic loss on the real sequence, (B, T-1), with gradient into the world model (DreamerV3, "Critic learning").

    Returns are lambda-returns over real rewards; at every state the bootstrap is that state's *imagined* return. An
    episode's last step bootstraps and stops the chain (no value loss there: the next index is another episode), a
    terminal one does not bootstrap. The final index has no successor and is left out, of the average too.

    Args: features (B, T, F) live; reward, is_last, is_terminal, bootstrap (B, T).
    """
    last, terminal = is_last.float(), is_terminal.float()
    return_ = lambda_return(
        reward=reward[:, 1:],
        continues=(1 - terminal[:, 1:]) * discount,
        bootstrap=bootstrap[:, 1:],
        lam=(1 - last[:, 1:]) * lam,
    )
    return value.loss(features[:, :-1], return_.detach()) * (1 - last[:, :-1])


class ReturnNormalizer(nn.Module):
    """Scale of returns: an average of the range between the 5th and 95th percentile, at least 1 (DreamerV3, eq. 7)."""

    low: Tensor
    high: Tensor
    quantiles: Tensor

    def __init__(self, rate: float = 0.01, low: float = 0.05, high: float = 0.95) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("quantiles", torch.tensor((low, high)), persistent=False)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def forward(self, return_: Tensor) -> Tensor:
        """Take in a batch of returns (any shape) and give the scale, a scalar. Non-finite returns change nothing."""
        flat = ranks.rows(return_.detach().float().flatten())
        low, high = torch.quantile(flat, self.quantiles).unbind()
        finite = torch.isfinite(low) & torch.isfinite(high)
        self.low.copy_(torch.where(finite, self.low + self.rate * (low - self.low), self.low))
        self.high.copy_(torch.where(finite, self.high + self.rate * (high - self.high), self.high))
        return (self.high - self.low).clamp(min=1.0)

    @torch.no_grad()
    def keep(self, healthy: Tensor, low: Tensor, high: Tensor) -> None:
        """Go back to ``low`` and ``high`` where the update was not healthy."""
        self.low.copy_(torch.where(healthy, self.low, low))
        self.high.copy_(torch.where(healthy, self.high, high))
