"""Loss in one pass over the logits, gradient in one more: neither a one-hot nor a softmax is ever stored.

The forward pass keeps three numbers a row: log-sum-exp, the bin below the target, the weight of the bin above.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _forward(logits, bins, target, mask, loss, norm, index, weight, bin_count, BINS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BINS)
    inside = column < bin_count
    x = tl.load(logits + row * bin_count + column, mask=inside, other=-float("inf")).to(tl.float32)
    edges = tl.load(bins + column, mask=inside, other=float("inf")).to(tl.float32)
    low, high = tl.load(bins), tl.load(bins + bin_count - 1)
    y = tl.minimum(tl.maximum(tl.load(target + row).to(tl.float32), low), high)
    # bins strictly below the target; its upper neighbour is at least the second and at most the last
    above = tl.minimum(tl.maximum(tl.sum((edges < y).to(tl.int32), 0), 1), bin_count - 1)
    lower, upper = tl.load(bins + above - 1), tl.load(bins + above)
    share = (y - lower) / (upper - lower)
    top = tl.max(x, 0)
    total = top + tl.log(tl.sum(tl.exp(x - top), 0))
    # beyond the bins x is minus infinity, and nothing may be multiplied with that
    x = tl.where(inside, x, 0.0)
    picked = tl.sum(tl.where(column == above - 1, x * (1 - share), 0.0) + tl.where(column == above, x * share, 0.0), 0)
    tl.store(loss + row, tl.where(tl.load(mask + row) != 0, total - picked, 0.0))
    tl.store(norm + row, total)
    tl.store(index + row, above - 1)
    tl.store(weight + row, share)


@triton.jit
def _backward(logits, mask, norm, index, weight, d_loss, d_logits, bin_count, BINS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BINS)
    inside = column < bin_count
    x = tl.load(logits + row * bin_count + column, mask=inside, other=-float("inf")).to(tl.float32)
    below, share = tl.load(index + row), tl.load(weight + row)
    code = tl.where(column == below, 1 - share, 0.0) + tl.where(column == below + 1, share, 0.0)
    gradient = tl.load(d_loss + row).to(tl.float32) * (tl.exp(x - tl.load(norm + row)) - code)
    gradient = tl.where(tl.load(mask + row) != 0, gradient, 0.0)
    tl.store(d_logits + row * bin_count + column, gradient, mask=inside)


@torch.library.custom_op("worldmodel::twohot_loss", mutates_args=())
def _loss(logits: Tensor, bins: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, log-sum-exp, bin below, weight of the bin above; rows (N, K), (N,)."""
    rows, count = logits.shape
    out = _like(logits, bins, target, mask)
    _forward[(rows,)](
        logits.contiguous(), bins.contiguous(), target.contiguous(), mask.contiguous(), *out, count,
        triton.next_power_of_2(count),
    )
    return out


@_loss.register_fake
def _like(logits: Tensor, bins: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, norm, weight = (torch.empty(logits.shape[0], device=logits.device) for _ in range(3))
    return loss, norm, torch.empty(logits.shape[0], device=logits.device, dtype=torch.int32), weight


@torch.library.custom_op("worldmodel::twohot_loss_backward", mutates_args=())
def _gradient(logits: Tensor, mask: Tensor, norm: Tensor, index: Tensor, weight: Tensor, d_loss: Tensor) -> Tensor:
    rows, count = logits.shape
    d_logits = torch.empty(logits.shape, device=logits.device, dtype=logits.dtype)
    _backward[(rows,)](
        logits.contiguous(), mask.contiguous(), norm, index, weight, d_loss.contiguous(), d_logits, count,
        triton.next_power_of_2(count),
    )
    return d_logits


@_gradient.register_fake
def _(logits: Tensor, mask: Tensor, norm: Tensor, index: Tensor, weight: Tensor, d_loss: Tensor) -> Tensor:
    return torch.empty(logits.shape, device=logits.device, dtype=logits.dtype)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, _, mask = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(logits, mask, *output[1:])


def _chain(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
    return _gradient(*ctx.saved_tensors, d_loss), None, None, None


_loss.register_autograd(_chain, setup_context=_setup)


def twohot_loss(logits: Tensor, bins: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """See ``reference.twohot_loss``."""
    flat = target.detach().reshape(-1)
    kept = torch.ones_like(flat, dtype=torch.uint8) if mask is None else mask.reshape(-1).to(torch.uint8)
    return _loss(logits.reshape(-1, logits.shape[-1]), bins, flat, kept)[0].view(target.shape)
