"""Categoricals over the last axis, mixed with a share of the uniform distribution (DreamerV3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Sample(NamedTuple):
    """A sample and what is known of it."""

    onehot: Tensor
    """(..., K), with straight-through gradient on the mixed probabilities."""
    log_prob: Tensor
    """(...) of the sample."""
    entropy: Tensor
    """(...) of the distribution, in nats."""


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis. On CPUs torch's own takes ten times as long as its parts where the axis is shorter than a
    vector register (fewer than 16 classes)."""
    if logits.device.type != "cpu" or logits.shape[-1] >= 16:
        return torch.softmax(logits, -1)
    weight = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
    return weight / weight.sum(-1, keepdim=True)


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """(..., K) probabilities: (1 - unimix) softmax(logits) + unimix / K."""
    probs = softmax(logits.float())
    return (1 - unimix) * probs + unimix / logits.shape[-1] if unimix else probs


def index_of(probs: Tensor, noise: Tensor) -> Tensor:
    """Class indices (...) by inverting the cumulative distribution of (..., K) at ``noise`` (...) in [0, 1)."""
    below = probs.detach().cumsum(-1) <= noise.unsqueeze(-1)
    return below.sum(-1).clamp(max=probs.shape[-1] - 1)


def sample(logits: Tensor, noise: Tensor, *, unimix: float) -> Sample:
    """(..., K) logits of any float type, (...) noise in [0, 1)."""
    probs = mixed(logits, unimix)
    log_probs = torch.log(probs)
    index = index_of(probs, noise)
    onehot = F.one_hot(index, probs.shape[-1]) + (probs - probs.detach())
    return Sample(onehot, log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1), -(probs * log_probs).sum(-1))


def balanced_kl(posterior: Tensor, prior: Tensor, *, unimix: float, free_nats: float) -> tuple[Tensor, Tensor]:
    """KL[posterior || prior] of logits (..., Z, K), summed over groups, then floored: (dyn, rep), each (...).

    dyn = max(free, KL[sg(posterior) || prior]) moves the prior, rep = max(free, KL[posterior || sg(prior)]) the
    posterior. Their values are one number.
    """
    p, q = mixed(posterior, unimix), mixed(prior, unimix)
    log_p, log_q = torch.log(p), torch.log(q)
    dyn = (p.detach() * (log_p.detach() - log_q)).sum((-2, -1))
    rep = (p * (log_p - log_q.detach())).sum((-2, -1))
    return dyn.clamp(min=free_nats), rep.clamp(min=free_nats)
