"""The recurrence in one launch, a program for some rows; backwards it runs the other way."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 128


@triton.jit
def _forward(reward, continues, bootstrap, lam, out, rows, time, lam_row, lam_time, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = row * time + time - 1
    last = tl.load(bootstrap + at, mask=inside, other=0.0).to(tl.float32)
    for i in range(0, time):
        at = row * time + (time - 1 - i)
        r = tl.load(reward + at, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(continues + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(bootstrap + at, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(lam + row * lam_row + (time - 1 - i) * lam_time, mask=inside, other=0.0).to(tl.float32)
        last = r + c * ((1 - weight) * v + weight * last)
        tl.store(out + at, last, mask=inside)


@triton.jit
def _backward(
    d_out, out, continues, bootstrap, lam, d_reward, d_continues, d_bootstrap, d_lam, rows, time, lam_row, lam_time,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    carried = tl.zeros((ROWS,), tl.float32)
    for t in range(0, time):
        at = row * time + t
        c = tl.load(continues + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(bootstrap + at, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(lam + row * lam_row + t * lam_time, mask=inside, other=0.0).to(tl.float32)
        # the last step is followed by its own bootstrap
        is_last = t == time - 1
        later = tl.load(out + at + 1, mask=inside & (t < time - 1), other=0.0).to(tl.float32)
        later = tl.where(is_last, v, later)
        total = tl.load(d_out + at, mask=inside, other=0.0).to(tl.float32) + carried
        carried = total * c * weight
        tl.store(d_reward + at, total, mask=inside)
        tl.store(d_continues + at, total * ((1 - weight) * v + weight * later), mask=inside)
        tl.store(d_bootstrap + at, total * c * (1 - weight) + tl.where(is_last, carried, 0.0), mask=inside)
        tl.store(d_lam + at, total * c * (later - v), mask=inside)


@torch.library.custom_op("worldmodel::lambda_return", mutates_args=())
def lambda_return(reward: Tensor, continues: Tensor, bootstrap: Tensor, lam: Tensor) -> Tensor:
    """(B, T) each; ``lam`` may be expanded."""
    rows, time = reward.shape
    out = torch.empty(rows, time, device=reward.device)
    _forward[(triton.cdiv(rows, ROWS),)](
        reward.contiguous(), continues.contiguous(), bootstrap.contiguous(), lam, out, rows, time, *lam.stride(), ROWS
    )
    return out


@lambda_return.register_fake
def _(reward: Tensor, continues: Tensor, bootstrap: Tensor, lam: Tensor) -> Tensor:
    return torch.empty(reward.shape, device=reward.device)


@torch.library.custom_op("worldmodel::lambda_return_backward", mutates_args=())
def _gradient(d_out: Tensor, out: Tensor, continues: Tensor, bootstrap: Tensor, lam: Tensor) -> list[Tensor]:
    """Of reward, continues, bootstrap and lam."""
    rows, time = d_out.shape
    grads = [torch.empty(rows, time, device=out.device) for _ in range(4)]
    _backward[(triton.cdiv(rows, ROWS),)](
        d_out.contiguous(), out, continues.contiguous(), bootstrap.contiguous(), lam, *grads, rows, time, *lam.stride(),
        ROWS,
    )
    return grads


@_gradient.register_fake
def _(d_out: Tensor, out: Tensor, continues: Tensor, bootstrap: Tensor, lam: Tensor) -> list[Tensor]:
    return [torch.empty(out.shape, device=out.device) for _ in range(4)]


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, continues, bootstrap, lam = inputs
    ctx.dtypes = [x.dtype for x in inputs]
    ctx.save_for_backward(output, continues, bootstrap, lam)


def _chain(ctx: Any, d_out: Tensor) -> tuple[Tensor, ...]:
    return tuple(g.to(dtype) for g, dtype in zip(_gradient(d_out, *ctx.saved_tensors), ctx.dtypes))


lambda_return.register_autograd(_chain, setup_context=_setup)
