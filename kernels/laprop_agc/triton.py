"""Three launches whatever the number of tensors: partial norms, one decision, one pass over everything.

Sums are partial sums in a fixed order, without atomics: the same gradient gives the same bits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldmodel.kernels.laprop_agc.reference import CHUNK, Layout, Rule

BLOCK = 256
"""Partial sums read at once."""
WARPS = 16
"""Of a chunk; with four, registers spill."""


@triton.jit
def _partial_norms(flat, grad, start, stop, partial_p, partial_g, CHUNK: tl.constexpr):
    chunk = tl.program_id(0)
    at = tl.load(start + chunk) + tl.arange(0, CHUNK)
    inside = at < tl.load(stop + chunk)
    p = tl.load(flat + at, mask=inside, other=0.0)
    g = tl.load(grad + at, mask=inside, other=0.0)
    tl.store(partial_p + chunk, tl.sum(p * p, 0))
    tl.store(partial_g + chunk, tl.sum(g * g, 0))


@triton.jit
def _sum(partial, first, last, BLOCK: tl.constexpr):
    """Of chunks first to last."""
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(first, last + 1, BLOCK):
        here = at + tl.arange(0, BLOCK)
        total += tl.load(partial + here, mask=here <= last, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _decide(
    partial_g, chunks, healthy, count, norm, did, scalars, log_beta1, log_beta2, lr, warmup, BLOCK: tl.constexpr
):
    total = _sum(partial_g, 0, chunks - 1, BLOCK)
    # not a number is not below infinity either
    ok = (total < float("inf")) & (tl.load(healthy) != 0)
    steps = tl.load(count) + tl.where(ok, 1.0, 0.0)
    tl.store(count, steps)
    steps = tl.maximum(steps, 1.0)
    warm = tl.where(warmup > 0, tl.minimum((steps - 1.0) / tl.maximum(warmup, 1.0), 1.0), 1.0)
    # 1 - beta^t in double precision: for beta = 0.999 and small t single precision keeps four digits of it
    many = steps.to(tl.float64)
    rest1 = 1.0 - tl.exp(many * log_beta1)
    rest2 = 1.0 - tl.exp(many * log_beta2)
    tl.store(norm, tl.sqrt(total))
    tl.store(did, ok.to(tl.int8))
    tl.store(scalars, tl.where(ok, 1.0, 0.0))
    tl.store(scalars + 1, (1.0 / rest2).to(tl.float32))
    tl.store(scalars + 2, tl.where(ok, lr * warm / rest1.to(tl.float32), 0.0))


@triton.jit
def _update(
    flat, grad, nu, mu, slow, start, stop, first, last, partial_p, partial_g, scalars, rate1, rate2, eps, clip,
    slow_start, slow_size, slow_rate, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0)
    at = tl.load(start + chunk) + tl.arange(0, CHUNK)
    inside = at < tl.load(stop + chunk)
    ok, correction, rate = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)
    begin, end = tl.load(first + chunk), tl.load(last + chunk)
    size = tl.sqrt(_sum(partial_p, begin, end, BLOCK))
    norm = tl.sqrt(_sum(partial_g, begin, end, BLOCK))
    factor = tl.where(clip > 0, 1.0 / tl.maximum(norm / (tl.maximum(clip, 1e-30) * tl.maximum(size, 1e-3)), 1.0), 1.0)
    # by selection: a gradient that is not finite must not be multiplied with anything
    g = tl.where(ok > 0, tl.load(grad + at, mask=inside, other=0.0), 0.0)
    g = g * tl.where(ok > 0, factor, 1.0)
    n = tl.load(nu + at, mask=inside, other=0.0)
    n += rate2 * ok * (g * g - n)
    m = tl.load(mu + at, mask=inside, other=0.0)
    # where all gradients so far were 0: 0 / eps
    m += rate1 * ok * (g / (tl.sqrt(n * correction) + eps) - m)
    p = tl.load(flat + at, mask=inside, other=0.0) - rate * m
    tl.store(nu + at, n, mask=inside)
    tl.store(mu + at, m, mask=inside)
    tl.store(flat + at, p, mask=inside)
    copied = inside & (at >= slow_start) & (at < slow_start + slow_size)
    old = tl.load(slow + at - slow_start, mask=copied, other=0.0)
    tl.store(slow + at - slow_start, old + slow_rate * ok * (p - old), mask=copied)


@torch.library.custom_op("worldmodel::laprop_agc", mutates_args=("flat", "nu", "mu", "count", "slow"))
def _step(
    flat: Tensor, grad: Tensor, nu: Tensor, mu: Tensor, count: Tensor, slow: Tensor, healthy: Tensor, start: Tensor,
    stop: Tensor, first: Tensor, last: Tensor, lr: float, beta1: float, beta2: float, eps: float, clip: float,
    warmup: int, slow_start: int, slow_rate: float,
) -> tuple[Tensor, Tensor]:
    chunks = start.shape[0]
    partial_p, partial_g = (torch.empty(chunks, device=flat.device) for _ in range(2))
    scalars, norm = torch.empty(3, device=flat.device), torch.empty((), device=flat.device)
    did = torch.empty((), device=flat.device, dtype=torch.int8)
    _partial_norms[(chunks,)](flat, grad, start, stop, partial_p, partial_g, CHUNK, num_warps=WARPS)
    _decide[(1,)](
        partial_g, chunks, healthy.to(torch.int8), count, norm, did, scalars, math.log(beta1), math.log(beta2), lr,
        float(warmup), BLOCK,
    )
    _update[(chunks,)](
        flat, grad, nu, mu, slow, start, stop, first, last, partial_p, partial_g, scalars, 1 - beta1, 1 - beta2, eps,
        clip, slow_start, slow.numel(), slow_rate, CHUNK, BLOCK, num_warps=WARPS,
    )
    return norm, did.bool()


@_step.register_fake
def _(flat: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty((), device=flat.device), torch.empty((), device=flat.device, dtype=torch.bool)


def step(
    flat: Tensor, grad: Tensor, nu: Tensor, mu: Tensor, count: Tensor, slow: Tensor, healthy: Tensor, layout: Layout,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """See ``reference.step``."""
    r = rule
    return _step(
        flat, grad, nu, mu, count, slow, healthy, *layout[1:], r.lr, r.beta1, r.beta2, r.eps, r.clip, r.warmup,
        r.slow_start, r.slow_rate,
    )
