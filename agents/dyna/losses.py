"""The losses of SAC and of its offline kin, each a pure function; sources: Haarnoja et al. 2018, MOPO (Yu et al. 2020),
RAVL (Sims et al. 2024, agent.py of its code)."""

from __future__ import annotations

import torch
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


def cloning_error(*, action: Tensor, done: Tensor) -> Tensor:
    """(N,) mean over A of (pi(s) - a)^2."""
    return (action - done).square().mean(-1)


def scaled_value(*, value: Tensor, weight: float) -> Tensor:
    """(N,) alpha Q / mean |Q|, the mean over the batch and without gradient (TD3+BC, eq. 4)."""
    return weight / value.detach().abs().mean().clamp(min=1e-8) * value


def conservative_gap(*, asked: Tensor, log_density: Tensor, done: Tensor, temperature: float) -> Tensor:
    """() sum over members of  mean_s T log sum_k exp(Q(s, a_k) / T - log mu(a_k|s))  -  mean Q(s, a)  (CQL, eq. 4;
    COMBO, eq. 2). The sum is K times what it estimates, the integral of exp(Q / T), whatever mu is; the authors' code
    divides log mu by T too, with which that holds for T = 1 alone.

    Args: asked (E, N, K) of actions that were drawn; log_density (N, K) that they were drawn with; done (E, M) of the
        data's actions.
    """
    soft = temperature * (asked / temperature - log_density).logsumexp(-1)
    return (soft.mean(-1) - done.mean(-1)).sum()


def inconsistency(*, value: Tensor) -> Tensor:
    """(N,) what members of a model differ in about the value of what comes next (MOBILE, eq. 9): the standard deviation
    over members of the mean over samples of (S, E, N) values; 0 of a single member."""
    each = value.mean(0)
    return each.std(0) if len(each) > 1 else torch.zeros_like(each[0])


def adversarial_loss(*, log_prob: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
    """() mean of A log p over rows that are alive, A standardised among them and without gradient (RAMBO, eq. 9).

    Args: (N,) each; advantage r + gamma V(s') - Q(s, a).
    """
    count = alive.sum().clamp(min=1.0)
    centred = (advantage - (advantage * alive).sum() / count) * alive
    spread = (centred.square().sum() / (count - 1).clamp(min=1.0)).sqrt()
    return ((centred / (spread + 1e-6)).detach() * log_prob * alive).sum() / count


def mixed_returns(
    *, value: Tensor, reward: Tensor, alive: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Lambda-returns of a finite rollout with weights that add up to one (LEQ, eq. 4):

        q_H = Q_H,  w_H = 1;   q_t = (Q_t + lam w_{t+1} (m_t r_t + gamma m_{t+1} q_{t+1})) / w_t,  w_t = 1 + lam w_{t+1}

    Args: value (N, H+1) Q(s_t, a_t); reward (N, H) of arriving in t + 1; alive (N, H+1) m, 1 until an end.
    Returns: (N, H+1) q, and (N, H+1) what a change of q_t changes q_0 by.
    """
    back, weight, carried = [value[:, -1]], 1.0, []
    for t in reversed(range(reward.shape[1])):
        mixed = lam * weight / (1 + lam * weight)
        ahead = alive[:, t] * reward[:, t] + discount * alive[:, t + 1] * back[-1]
        back.append((1 - mixed) * value[:, t] + mixed * ahead)
        carried.append(mixed * discount * alive[:, t + 1])
        weight = 1 + lam * weight
    share = torch.stack([torch.ones_like(value[:, 0]), *reversed(carried)], 1).cumprod(1)
    return torch.stack([*reversed(back)], 1), share
