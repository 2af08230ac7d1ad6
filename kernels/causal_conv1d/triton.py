"""``causal_conv1d`` in Triton: one launch forward, two backward. The equations are in this folder's README.

Both passes see the inputs as one sequence e of W-1+L rows: the state, then x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 32, 64
"""Steps and channels of one program."""


@triton.jit
def _extended(x, state, b, row, d, L, D, x_b, x_l, inside_d, W: tl.constexpr):
    """Rows ``row`` of e, float32; zero outside of it."""
    t = row - (W - 1)
    in_x = (t >= 0) & (t < L)
    in_state = (row >= 0) & (t < 0)
    value = tl.load(
        x + b * x_b + t[:, None] * x_l + d[None, :], mask=in_x[:, None] & inside_d[None, :], other=0.0
    ).to(tl.float32)
    return value + tl.load(
        state + (b * (W - 1) + row[:, None]) * D + d[None, :], mask=in_state[:, None] & inside_d[None, :], other=0.0
    ).to(tl.float32)


@triton.jit
def _owner(segments, b, row, L, W: tl.constexpr):
    """The segment of rows of e: 0 for the state."""
    t = row - (W - 1)
    return tl.load(segments + b * L + t, mask=(t >= 0) & (t < L), other=0)


@triton.jit
def _forward(
    x, weight, bias, segments, state, y, final, L, D, x_b, x_l,
    W: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside_d = d < D
    seg = tl.load(segments + b * L + t, mask=t < L, other=0)
    out = tl.zeros((ROWS, CHANNELS), tl.float32) + tl.load(bias + d, mask=inside_d, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(W):
        w = tl.load(weight + d * W + k, mask=inside_d, other=0.0).to(tl.float32)
        seen = _owner(segments, b, t + k, L, W) == seg
        out += tl.where(seen[:, None], w[None, :] * _extended(x, state, b, t + k, d, L, D, x_b, x_l, inside_d, W), 0.0)
    if SILU:
        out = out * tl.sigmoid(out)
    inside = (t < L)[:, None] & inside_d[None, :]
    tl.store(y + (b * L + t[:, None]) * D + d[None, :], out.to(y.dtype.element_ty), mask=inside)
    # rows L ... L+W-2 of e are the state after the sequence; the programs of the last steps hold them
    row = t + (W - 1)
    own = _owner(segments, b, row, L, W) == tl.load(segments + b * L + L - 1)
    kept = tl.where(own[:, None], _extended(x, state, b, row, d, L, D, x_b, x_l, inside_d, W), 0.0)
    is_tail = (row >= L) & (t < L)
    tl.store(
        final + (b * (W - 1) + (row - L)[:, None]) * D + d[None, :], kept.to(final.dtype.element_ty),
        mask=is_tail[:, None] & inside_d[None, :],
    )
    if tl.program_id(1) == 0:
        # of a sequence shorter than the window, the rest of the state stays
        old = tl.arange(0, ROWS).to(tl.int64)
        has_no_reset = tl.load(segments + b * L + L - 1) == 0
        rest = tl.where(has_no_reset, _extended(x, state, b, old, d, L, D, x_b, x_l, inside_d, W), 0.0)
        is_rest = (old >= L) & (old < W - 1)
        tl.store(
            final + (b * (W - 1) + (old - L)[:, None]) * D + d[None, :], rest.to(final.dtype.element_ty),
            mask=is_rest[:, None] & inside_d[None, :],
        )


@triton.jit
def _backward_kernel(
    x, weight, bias, segments, state, dy, dfinal, dx, dstate, partial, L, D, x_b, x_l,
    W: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):
    """Gradients of rows of e, and this program's share of those of weight and bias, (W+1, D).

    A row reaches W outputs; each of these is computed again from its own W inputs, which lie in the cache.
    """
    b = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside_d = d < D
    owner = _owner(segments, b, row, L, W)
    last = tl.load(segments + b * L + L - 1)
    shift = tl.load(bias + d, mask=inside_d, other=0.0).to(tl.float32)
    share = partial + (b * tl.num_programs(1) + tl.program_id(1)) * (W + 1) * D + d
    in_tail = (row >= L) & (row < L + W - 1) & (owner == last)
    grad = tl.load(
        dfinal + (b * (W - 1) + (row - L)[:, None]) * D + d[None, :],
        mask=in_tail[:, None] & inside_d[None, :], other=0.0,
    ).to(tl.float32)
    here = _extended(x, state, b, row, d, L, D, x_b, x_l, inside_d, W)
    for j in tl.static_range(W):
        # output t sees this row through column j of weight
        t = row - j
        is_step = (t >= 0) & (t < L)
        seg = tl.load(segments + b * L + t, mask=is_step, other=0)
        dz = tl.load(
            dy + (b * L + t[:, None]) * D + d[None, :], mask=is_step[:, None] & inside_d[None, :], other=0.0
        ).to(tl.float32)
        if SILU:
            z = tl.zeros((ROWS, CHANNELS), tl.float32) + shift[None, :]
            for k in tl.static_range(W):
                w = tl.load(weight + d * W + k, mask=inside_d, other=0.0).to(tl.float32)
                seen = _owner(segments, b, t + k, L, W) == seg
                e = _extended(x, state, b, t + k, d, L, D, x_b, x_l, inside_d, W)
                z += tl.where(seen[:, None], w[None, :] * e, 0.0)
            gate = tl.sigmoid(z)
            dz = dz * gate * (1 + z * (1 - gate))
        linked = tl.where((is_step & (owner == seg))[:, None], dz, 0.0)
        w = tl.load(weight + d * W + j, mask=inside_d, other=0.0).to(tl.float32)
        grad += w[None, :] * linked
        tl.store(share + j * D, tl.sum(linked * here, 0), mask=inside_d)
        if j == 0:
            tl.store(share + W * D, tl.sum(tl.where(is_step[:, None], dz, 0.0), 0), mask=inside_d)
    t = row - (W - 1)
    tl.store(
        dx + (b * L + t[:, None]) * D + d[None, :], grad.to(dx.dtype.element_ty),
        mask=((t >= 0) & (t < L))[:, None] & inside_d[None, :],
    )
    tl.store(
        dstate + (b * (W - 1) + row[:, None]) * D + d[None, :], grad.to(dstate.dtype.element_ty),
        mask=(t < 0)[:, None] & inside_d[None, :],
    )


def _inner_contiguous(x: Tensor) -> Tensor:
    """The tensor itself where channels lie side by side, so that a slice of a projection is not copied."""
    return x if x.stride(2) == 1 else x.contiguous()


@torch.library.custom_op("worldmodel::causal_conv1d", mutates_args=())
def causal_conv1d_op(
    x: Tensor, weight: Tensor, bias: Tensor, segments: Tensor, state: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """y and the state after the sequence."""
    (batch, length, channels), width = x.shape, weight.shape[1]
    x = _inner_contiguous(x)
    weight, bias, segments, state = (tensor.contiguous() for tensor in (weight, bias, segments, state))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = torch.empty(state.shape, dtype=state.dtype, device=x.device)
    grid = (batch, triton.cdiv(length, ROWS), triton.cdiv(channels, CHANNELS))
    _forward[grid](
        x, weight, bias, segments, state, y, final, length, channels, *x.stride()[:2],
        W=width, SILU=silu, ROWS=ROWS, CHANNELS=CHANNELS,
    )
    return y, final


@causal_conv1d_op.register_fake
def _(x, weight, bias, segments, state, silu):
    return x.new_empty(x.shape), state.new_empty(state.shape)


@torch.library.custom_op("worldmodel::causal_conv1d_backward", mutates_args=())
def _backward_op(
    x: Tensor, weight: Tensor, bias: Tensor, segments: Tensor, state: Tensor, dy: Tensor, dfinal: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the state, and of weight and bias together, (W+1, D)."""
    (batch, length, channels), width = x.shape, weight.shape[1]
    x = _inner_contiguous(x)
    weight, bias, segments, state, dy, dfinal = (
        tensor.contiguous() for tensor in (weight, bias, segments, state, dy, dfinal)
    )
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dstate = torch.empty(state.shape, dtype=state.dtype, device=x.device)
    blocks = triton.cdiv(length + width - 1, ROWS)
    partial = torch.empty(batch * blocks, width + 1, channels, dtype=torch.float32, device=x.device)
    _backward_kernel[(batch, blocks, triton.cdiv(channels, CHANNELS))](
        x, weight, bias, segments, state, dy, dfinal, dx, dstate, partial, length, channels, *x.stride()[:2],
        W=width, SILU=silu, ROWS=ROWS, CHANNELS=CHANNELS,
    )
    return dx, dstate, partial.sum(0)


@_backward_op.register_fake
def _(x, weight, bias, segments, state, dy, dfinal, silu):
    total = x.new_empty(weight.shape[1] + 1, x.shape[2], dtype=torch.float32)
    return x.new_empty(x.shape), state.new_empty(state.shape), total


def _setup(ctx, inputs, output):
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, dfinal):
    x, weight, bias, segments, state = ctx.saved_tensors
    dx, dstate, total = _backward_op(x, weight, bias, segments, state, dy, dfinal, ctx.silu)
    return dx, total[:-1].T.to(weight.dtype), total[-1].to(bias.dtype), None, dstate, None


causal_conv1d_op.register_autograd(_backward, setup_context=_setup)
