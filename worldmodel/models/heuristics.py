"""How unsure an ensemble of Gaussians is: one number from the members' predictions ("Revisiting Design Choices in
Offline Model-Based Reinforcement Learning", Lu et al. 2022, section 4).

Every function takes mean and std, (E, ..., D), and gives (...); ||.|| is the Euclidean norm over D.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def max_aleatoric(mean: Tensor, std: Tensor) -> Tensor:
    """max_i ||sigma_i||: the penalty of MOPO, as its code has it."""
    return std.norm(dim=-1).amax(0)


def max_pairwise(mean: Tensor, std: Tensor) -> Tensor:
    """max_ij ||mu_i - mu_j||: that of MOReL."""
    return (mean.unsqueeze(0) - mean.unsqueeze(1)).norm(dim=-1).amax((0, 1))


def likelihood_variance(mean: Tensor, std: Tensor) -> Tensor:
    """Var_i log N(mu*; mu_i, sigma_i^2), of the ensemble's mean mu* (LOMPO's, with the mean in the sample's place)."""
    scaled = (mean.mean(0) - mean) / std
    logs = (-0.5 * scaled.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    return logs.var(0, unbiased=False)


def ensemble_variance(mean: Tensor, std: Tensor) -> Tensor:
    """sum_d sigma*^2 of the mixture: sigma*^2 = mean_i(sigma_i^2 + mu_i^2) - mu*^2."""
    return (std.square().mean(0) + mean.var(0, unbiased=False)).sum(-1)


def ensemble_std(mean: Tensor, std: Tensor) -> Tensor:
    """The root of :func:`ensemble_variance`."""
    return ensemble_variance(mean, std).sqrt()


def mean_std(mean: Tensor, std: Tensor) -> Tensor:
    """||std_i mu_i||: what members disagree on, without the noise that they agree on."""
    return mean.std(0, unbiased=False).norm(dim=-1)


def average_std(mean: Tensor, std: Tensor) -> Tensor:
    """mean_d std_i mu_i: COPlanner's, of means where its code draws a sample of each member."""
    return mean.std(0, unbiased=False).mean(-1)


def leave_one_out(mean: Tensor, std: Tensor) -> Tensor:
    """max_i KL(P_i || P_-i), P_-i the Gaussian with the moments of the mixture of all others."""
    count = len(mean)
    total, squares = mean.sum(0), (std.square() + mean.square()).sum(0)
    others = (total - mean) / (count - 1)
    variance = (squares - std.square() - mean.square()) / (count - 1) - others.square()
    variance = variance.clamp(min=1e-12)
    kl = 0.5 * (variance.log() - 2 * std.log() + (std.square() + (mean - others).square()) / variance - 1)
    return kl.sum(-1).amax(0)


HEURISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "max_aleatoric": max_aleatoric,
    "max_pairwise": max_pairwise,
    "likelihood_variance": likelihood_variance,
    "ensemble_std": ensemble_std,
    "ensemble_variance": ensemble_variance,
    "mean_std": mean_std,
    "average_std": average_std,
    "leave_one_out": leave_one_out,
}


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two (N,) without ties: how well a heuristic orders true errors."""
    ranks = [x.argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
