"""The observe loop of a block-GRU RSSM, step after step in plain differentiable PyTorch: the specification."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-4
"""Of every RMSNorm."""


class Weights(NamedTuple):
    """D deter, h hidden, Z groups, K classes, g blocks."""

    deter: Tensor
    """(h, D), with ``deter_bias`` and ``deter_scale`` (h,): x0 = silu(rms(W s + b) * scale)."""
    deter_bias: Tensor
    deter_scale: Tensor
    stoch: Tensor
    """(h, Z*K), with ``stoch_bias`` and ``stoch_scale`` (h,): x1."""
    stoch_bias: Tensor
    stoch_scale: Tensor
    mix: Tensor
    """(g, D/g + 3h, D/g): rows of a block's own share of deter, then of x0, x1 and the action."""
    mix_bias: Tensor
    """(D,)"""
    mix_scale: Tensor
    """(D,)"""
    gates: Tensor
    """(g, D/g, 3D/g): columns reset, candidate, update inside each block."""
    gates_bias: Tensor
    """(3D,) block by block."""
    posterior: Tensor
    """(h, D): the share of deter' in the posterior's hidden layer; that of the token comes in as ``token``."""
    posterior_scale: Tensor
    """(h,)"""
    logits: Tensor
    """(Z*K, h)"""
    logits_bias: Tensor
    """(Z*K,)"""


def observe(
    deter: Tensor, stoch: Tensor, keep: Tensor, action: Tensor, token: Tensor, noise: Tensor, weights: Weights,
    *, unimix: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Filter T steps.

    Args:
        deter: (B, D) before step 0. stoch: (B, Z, K) before step 0, one-hot or not.
        keep: (T, B) 1, or 0 where an episode begins: deter and stoch before that step are forgotten.
        action: (T, B, h) embedded previous action. token: (T, B, h) the token's share of the posterior's hidden layer,
        bias included. noise: (T, B, Z) in [0, 1).
    Returns: deter (T, B, D); stoch (T, B, Z, K), one-hot, with straight-through gradient on the mixed probabilities;
        logits (T, B, Z, K).
    """
    w = weights
    deters, stochs, posteriors = [], [], []
    for t in range(keep.shape[0]):
        alive = keep[t, :, None]
        deter, stoch = deter * alive, stoch * alive.unsqueeze(-1)
        x0 = F.silu(_rms(F.linear(deter, w.deter, w.deter_bias)) * w.deter_scale)
        x1 = F.silu(_rms(F.linear(stoch.flatten(1), w.stoch, w.stoch_bias)) * w.stoch_scale)
        shared = torch.cat([x0, x1, action[t]], -1)
        blocks = w.mix.shape[0]
        own = deter.unflatten(-1, (blocks, -1))
        # (B, g, D/g + 3h)
        x = torch.cat([own, shared.unsqueeze(1).expand(-1, blocks, -1)], -1)
        y = torch.einsum("bgi,gio->bgo", x, w.mix).flatten(1) + w.mix_bias
        hidden = F.silu(_rms(y) * w.mix_scale).unflatten(-1, (blocks, -1))
        gates = torch.einsum("bgi,gio->bgo", hidden, w.gates).flatten(1) + w.gates_bias
        reset, candidate, update = (z.flatten(1) for z in gates.unflatten(-1, (blocks, 3, -1)).unbind(2))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        deter = deter + torch.sigmoid(update - 1.0) * (candidate - deter)
        post = F.silu(_rms(F.linear(deter, w.posterior) + token[t]) * w.posterior_scale)
        logits = F.linear(post, w.logits, w.logits_bias).view_as(stoch)
        stoch = sample(logits, noise[t], unimix)
        deters.append(deter)
        stochs.append(stoch)
        posteriors.append(logits)
    return torch.stack(deters), torch.stack(stochs), torch.stack(posteriors)


def sample(logits: Tensor, noise: Tensor, unimix: float) -> Tensor:
    """(B, Z, K), (B, Z) -> one-hot (B, Z, K): the mixed distribution's cumulative inverted at the noise, with
    straight-through gradient."""
    classes = logits.shape[-1]
    probs = (1 - unimix) * torch.softmax(logits, -1) + unimix / classes
    index = (probs.detach().cumsum(-1) <= noise.unsqueeze(-1)).sum(-1).clamp(max=classes - 1)
    return F.one_hot(index, classes) + (probs - probs.detach())


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
