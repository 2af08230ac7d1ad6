"""One pass forward and one backward: a program holds whole groups, so nothing but inputs and results is ever stored.

Backwards, with s = softmax(l), m = (1 - u) s + u/K and dm the gradient of m: dl = (1 - u) s (dm - <s, dm>).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Elements of a program."""


@triton.jit
def _softmax(logits, columns, classes):
    """(G, C) -> softmax over the columns that exist, 0 elsewhere."""
    logits = tl.where(columns < classes, logits, -float("inf"))
    weight = tl.exp(logits - tl.max(logits, 1)[:, None])
    return weight / tl.sum(weight, 1)[:, None]


@triton.jit
def _mix(softmax, columns, classes, unimix):
    """The mixture, and its logarithm; 1 and 0 where no column is."""
    probs = tl.where(columns < classes, (1 - unimix) * softmax + unimix / classes, 1.0)
    return probs, tl.log(probs)


@triton.jit
def _through_softmax(softmax, d_probs, unimix):
    """Gradient of the logits from that of the mixed probabilities."""
    return (1 - unimix) * softmax * (d_probs - tl.sum(softmax * d_probs, 1)[:, None])


@triton.jit
def _sample_forward(
    logits, noise, onehot, index, log_prob, entropy, groups, classes, unimix,
    GROUPS: tl.constexpr, CLASSES: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    columns = tl.arange(0, CLASSES)[None, :]
    inside = (rows < groups)[:, None] & (columns < classes)
    at = rows[:, None] * classes + columns
    softmax = _softmax(tl.load(logits + at, mask=inside, other=0.0).to(tl.float32), columns, classes)
    probs, log_probs = _mix(softmax, columns, classes, unimix)
    level = tl.load(noise + rows, mask=rows < groups, other=0.0).to(tl.float32)
    below = (tl.cumsum(probs, 1) <= level[:, None]) & (columns < classes - 1)
    chosen = tl.sum(below.to(tl.int32), 1)
    hot = columns == chosen[:, None]
    tl.store(onehot + at, hot.to(tl.float32), mask=inside)
    tl.store(index + rows, chosen, mask=rows < groups)
    tl.store(log_prob + rows, tl.sum(tl.where(hot, log_probs, 0.0), 1), mask=rows < groups)
    tl.store(entropy + rows, -tl.sum(probs * log_probs, 1), mask=rows < groups)


@triton.jit
def _sample_backward(
    logits, index, d_onehot, d_log_prob, d_entropy, d_logits, groups, classes, unimix,
    GROUPS: tl.constexpr, CLASSES: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    columns = tl.arange(0, CLASSES)[None, :]
    inside = (rows < groups)[:, None] & (columns < classes)
    at = rows[:, None] * classes + columns
    softmax = _softmax(tl.load(logits + at, mask=inside, other=0.0).to(tl.float32), columns, classes)
    probs, log_probs = _mix(softmax, columns, classes, unimix)
    hot = columns == tl.load(index + rows, mask=rows < groups, other=0)[:, None]
    d_probs = tl.load(d_onehot + at, mask=inside, other=0.0).to(tl.float32)
    d_log = tl.load(d_log_prob + rows, mask=rows < groups, other=0.0)[:, None]
    d_probs += tl.where(hot, d_log / probs, 0.0)
    d_probs -= tl.load(d_entropy + rows, mask=rows < groups, other=0.0)[:, None] * (log_probs + 1.0)
    tl.store(d_logits + at, _through_softmax(softmax, d_probs, unimix), mask=inside)


@triton.jit
def _kl_forward(posterior, prior, kl, groups, classes, unimix, GROUPS: tl.constexpr, CLASSES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group, columns = tl.arange(0, GROUPS)[:, None], tl.arange(0, CLASSES)[None, :]
    inside = (group < groups) & (columns < classes)
    at = row * groups * classes + group * classes + columns
    p = _softmax(tl.load(posterior + at, mask=inside, other=0.0).to(tl.float32), columns, classes)
    q = _softmax(tl.load(prior + at, mask=inside, other=0.0).to(tl.float32), columns, classes)
    p, log_p = _mix(p, columns, classes, unimix)
    q, log_q = _mix(q, columns, classes, unimix)
    tl.store(kl + row, tl.sum(tl.sum(tl.where(inside, p * (log_p - log_q), 0.0), 1), 0))


@triton.jit
def _kl_backward(
    posterior, prior, d_dyn, d_rep, d_posterior, d_prior, groups, classes, unimix,
    GROUPS: tl.constexpr, CLASSES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group, columns = tl.arange(0, GROUPS)[:, None], tl.arange(0, CLASSES)[None, :]
    inside = (group < groups) & (columns < classes)
    at = row * groups * classes + group * classes + columns
    soft_p = _softmax(tl.load(posterior + at, mask=inside, other=0.0).to(tl.float32), columns, classes)
    soft_q = _softmax(tl.load(prior + at, mask=inside, other=0.0).to(tl.float32), columns, classes)
    p, log_p = _mix(soft_p, columns, classes, unimix)
    q, log_q = _mix(soft_q, columns, classes, unimix)
    d_p = tl.load(d_rep + row) * (log_p - log_q + 1.0)
    d_q = -tl.load(d_dyn + row) * p / q
    tl.store(d_posterior + at, _through_softmax(soft_p, d_p, unimix), mask=inside)
    tl.store(d_prior + at, _through_softmax(soft_q, d_q, unimix), mask=inside)


def _tile(classes: int, groups: int) -> tuple[int, int]:
    columns = triton.next_power_of_2(classes)
    return min(triton.next_power_of_2(groups), max(1, TILE // columns)), columns


@torch.library.custom_op("worldmodel::unimix_sample", mutates_args=())
def _sample(logits: Tensor, noise: Tensor, unimix: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One-hot, log-probability, entropy, index."""
    logits, noise = logits.contiguous(), noise.contiguous()
    out = _sample_like(logits, noise, unimix)
    onehot, log_prob, entropy, index = out
    groups, columns = _tile(logits.shape[-1], 64)
    _sample_forward[(triton.cdiv(noise.numel(), groups),)](
        logits, noise, onehot, index, log_prob, entropy, noise.numel(), logits.shape[-1], unimix, groups, columns
    )
    return out


@_sample.register_fake
def _sample_like(logits: Tensor, noise: Tensor, unimix: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    onehot = torch.empty(logits.shape, device=logits.device)
    log_prob, entropy = (torch.empty(noise.shape, device=logits.device) for _ in range(2))
    return onehot, log_prob, entropy, torch.empty(noise.shape, device=logits.device, dtype=torch.int32)


@torch.library.custom_op("worldmodel::unimix_sample_backward", mutates_args=())
def _sample_gradient(
    logits: Tensor, index: Tensor, d_onehot: Tensor, d_log_prob: Tensor, d_entropy: Tensor, unimix: float
) -> Tensor:
    logits = logits.contiguous()
    d_logits = torch.empty_like(logits)
    groups, columns = _tile(logits.shape[-1], 64)
    _sample_backward[(triton.cdiv(index.numel(), groups),)](
        logits, index, d_onehot.contiguous(), d_log_prob.contiguous(), d_entropy.contiguous(), d_logits, index.numel(),
        logits.shape[-1], unimix, groups, columns,
    )
    return d_logits


@_sample_gradient.register_fake
def _(logits: Tensor, index: Tensor, d_onehot: Tensor, d_log_prob: Tensor, d_entropy: Tensor, unimix: float) -> Tensor:
    return torch.empty(logits.shape, device=logits.device, dtype=logits.dtype)


def _sample_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, ctx.unimix = inputs
    ctx.mark_non_differentiable(output[3])
    ctx.save_for_backward(logits, output[3])


def _sample_chain(
    ctx: Any, d_onehot: Tensor, d_log_prob: Tensor, d_entropy: Tensor, _: Tensor
) -> tuple[Tensor, None, None]:
    return _sample_gradient(*ctx.saved_tensors, d_onehot, d_log_prob, d_entropy, ctx.unimix), None, None


_sample.register_autograd(_sample_chain, setup_context=_sample_setup)


def sample(logits: Tensor, noise: Tensor, unimix: float) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.sample``."""
    return _sample(logits, noise, unimix)[:3]


@torch.library.custom_op("worldmodel::unimix_kl", mutates_args=())
def _kl(posterior: Tensor, prior: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """The KL twice: as what moves the prior, and as what moves the posterior."""
    posterior, prior = posterior.contiguous(), prior.contiguous()
    groups, classes = posterior.shape[-2:]
    kl = torch.empty(posterior.shape[:-2], device=posterior.device)
    shape = triton.next_power_of_2(groups), triton.next_power_of_2(classes)
    _kl_forward[(kl.numel(),)](posterior, prior, kl, groups, classes, unimix, *shape)
    return kl, kl.clone()


@_kl.register_fake
def _(posterior: Tensor, prior: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    kl = torch.empty(posterior.shape[:-2], device=posterior.device)
    return kl, torch.empty_like(kl)


@torch.library.custom_op("worldmodel::unimix_kl_backward", mutates_args=())
def _kl_gradient(
    posterior: Tensor, prior: Tensor, d_dyn: Tensor, d_rep: Tensor, unimix: float
) -> tuple[Tensor, Tensor]:
    posterior, prior = posterior.contiguous(), prior.contiguous()
    groups, classes = posterior.shape[-2:]
    d_posterior, d_prior = torch.empty_like(posterior), torch.empty_like(prior)
    shape = triton.next_power_of_2(groups), triton.next_power_of_2(classes)
    _kl_backward[(d_dyn.numel(),)](
        posterior, prior, d_dyn.contiguous(), d_rep.contiguous(), d_posterior, d_prior, groups, classes, unimix, *shape
    )
    return d_posterior, d_prior


@_kl_gradient.register_fake
def _(posterior: Tensor, prior: Tensor, d_dyn: Tensor, d_rep: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    d_posterior, d_prior = (torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (posterior, prior))
    return d_posterior, d_prior


def _kl_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    posterior, prior, ctx.unimix = inputs
    ctx.save_for_backward(posterior, prior)


def _kl_chain(ctx: Any, d_dyn: Tensor, d_rep: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_kl_gradient(*ctx.saved_tensors, d_dyn, d_rep, ctx.unimix), None


_kl.register_autograd(_kl_chain, setup_context=_kl_setup)


def balanced_kl(posterior: Tensor, prior: Tensor, unimix: float, free_nats: float) -> tuple[Tensor, Tensor]:
    """See ``reference.balanced_kl``."""
    dyn, rep = _kl(posterior, prior, unimix)
    return dyn.clamp(min=free_nats), rep.clamp(min=free_nats)
