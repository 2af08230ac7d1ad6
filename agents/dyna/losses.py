"""The losses of SAC and of its offline kin, each a pure function; sources: Haarnoja et al. 2018, MOPO (Yu et al. 2020),
RAVL (Sims et al. 2024, agent.py of its code)."""

from __future__ import annotations

from torch import Tensor


def critic_target(*, reward: Tensor, terminal: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """y = r + gamma (1 - d) V(s'), (N,) each; V holds what was subtracted for entropy, penalty and reach."""
    return (reward + discount * (1 - terminal) * next_value).detach()


def soft_value(*, value: Tensor, log_prob: Tensor, alpha: Tensor | float) -> Tensor:
    """V(s') = Q(s', a') - alpha log pi(a'|s'), a' ~ pi."""
    return value - alpha * log_prob


def reach_aware(*, value: Tensor, cost: Tensor, edge: Tensor) -> Tensor:
    """The value of a state, less what its distance from all inputs costs where the data goes no further."""
    return value - edge * cost


def penalised_reward(*, reward: Tensor, doubt: Tensor, weight: float) -> Tensor:
    """r - lambda u(s, a) (MOPO, eq. 5)."""
    return reward - weight * doubt


def policy_loss(*, value: Tensor, log_prob: Tensor, alpha: Tensor | float) -> Tensor:
    """(N,) alpha log pi(a|s) - Q(s, a), a ~ pi with gradient."""
    return alpha * log_prob - value


def temperature_loss(*, log_alpha: Tensor, log_prob: Tensor, target: float) -> Tensor:
    """(N,) -log alpha (log pi + H), H the entropy that is kept."""
    return -log_alpha * (log_prob.detach() + target)
