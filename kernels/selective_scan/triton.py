"""``selective_scan`` in Triton: one launch forward, two backward. The equations are in this folder's README.

A program owns some channels of one sequence, keeps their states in registers and walks over the steps. Forward saves
the state after every K steps; backward computes the K states between two of them again, into scratch memory that stays
in the cache. Where the caller wants all states, K is 1 and nothing is computed twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldmodel.kernels.reduce import sum_partials

EVERY = 16
"""Steps between saved states."""


@triton.jit
def _step(x, dt, B, segments, b, t, d, n, a, hidden, L, D, x_b, x_l, dt_b, dt_l, B_b, B_l, N: tl.constexpr):
    """The state after step t, and what it was made of."""
    seg = tl.load(segments + b * L + t)
    before = tl.load(segments + b * L + t - 1, mask=t > 0, other=0)
    step = tl.load(dt + b * dt_b + t * dt_l + d, mask=d < D, other=0.0).to(tl.float32)
    u = tl.load(x + b * x_b + t * x_l + d, mask=d < D, other=0.0).to(tl.float32)
    Bt = tl.load(B + b * B_b + t * B_l + n, mask=n < N, other=0.0).to(tl.float32)
    decay = tl.where(seg == before, tl.exp(step[:, None] * a), 0.0)
    return decay * hidden + (step * u)[:, None] * Bt[None, :], decay, step, u, Bt


@triton.jit
def _forward(
    x, dt, A, B, C, skip, segments, state, y, final, saved, L, D, blocks, x_b, x_l, dt_b, dt_l, B_b, B_l, C_b, C_l,
    N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, K: tl.constexpr,
):
    b = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    tile = d[:, None] * N + n[None, :]
    in_tile = (d[:, None] < D) & (n[None, :] < N)
    a = tl.load(A + tile, mask=in_tile, other=0.0).to(tl.float32)
    gain = tl.load(skip + d, mask=d < D, other=0.0).to(tl.float32)
    hidden = tl.load(state + b * D * N + tile, mask=in_tile, other=0.0).to(tl.float32)
    for t in range(L):
        hidden, _, _, u, _ = _step(
            x, dt, B, segments, b, t, d, n, a, hidden, L, D, x_b, x_l, dt_b, dt_l, B_b, B_l, N
        )
        if (t + 1) % K == 0:
            tl.store(saved + (b * (L // K) + t // K) * D * N + tile, hidden, mask=in_tile)
        Ct = tl.load(C + b * C_b + t * C_l + n, mask=n < N, other=0.0).to(tl.float32)
        out = tl.sum(hidden * Ct[None, :], 1) + gain * u
        tl.store(y + (b * L + t) * D + d, out.to(y.dtype.element_ty), mask=d < D)
    tl.store(final + b * D * N + tile, hidden, mask=in_tile)


@triton.jit
def _backward_kernel(
    x, dt, A, B, C, skip, segments, state, saved, dy, dfinal, dstates, scratch, dx, ddt, dBC, dparams, dstate,
    L, D, blocks, chunks, x_b, x_l, dt_b, dt_l, B_b, B_l, C_b, C_l, tokens,
    N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, K: tl.constexpr, HAS_DSTATES: tl.constexpr,
):
    b = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    tile = d[:, None] * N + n[None, :]
    in_tile = (d[:, None] < D) & (n[None, :] < N)
    a = tl.load(A + tile, mask=in_tile, other=0.0).to(tl.float32)
    gain = tl.load(skip + d, mask=d < D, other=0.0).to(tl.float32)
    grad = tl.load(dfinal + b * D * N + tile, mask=in_tile, other=0.0).to(tl.float32)
    da = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
    dgain = tl.zeros((BLOCK_D,), tl.float32)
    own = scratch + tl.program_id(0).to(tl.int64) * K * BLOCK_D * BLOCK_N
    own += tl.arange(0, BLOCK_D)[:, None] * BLOCK_N + n[None, :]
    for back in range(chunks):
        c = chunks - 1 - back
        count = tl.minimum(L - c * K, K)
        if c > 0:
            start = tl.load(saved + (b * (L // K) + c - 1) * D * N + tile, mask=in_tile, other=0.0)
        else:
            start = tl.load(state + b * D * N + tile, mask=in_tile, other=0.0).to(tl.float32)
        if K > 1:
            hidden = start
            for j in range(count):
                tl.store(own + j * BLOCK_D * BLOCK_N, hidden)
                hidden, _, _, _, _ = _step(
                    x, dt, B, segments, b, c * K + j, d, n, a, hidden, L, D, x_b, x_l, dt_b, dt_l, B_b, B_l, N
                )
            tl.debug_barrier()
        for i in range(count):
            j = count - 1 - i
            t = c * K + j
            token = b * L + t
            past = start
            if K > 1:
                past = tl.load(own + j * BLOCK_D * BLOCK_N)
            hidden, decay, step, u, Bt = _step(
                x, dt, B, segments, b, t, d, n, a, past, L, D, x_b, x_l, dt_b, dt_l, B_b, B_l, N
            )
            Ct = tl.load(C + b * C_b + t * C_l + n, mask=n < N, other=0.0).to(tl.float32)
            dout = tl.load(dy + token * D + d, mask=d < D, other=0.0).to(tl.float32)
            grad += dout[:, None] * Ct[None, :]
            if HAS_DSTATES:
                grad += tl.load(dstates + token * D * N + tile, mask=in_tile, other=0.0)
            dlog = grad * decay * past
            dinput = tl.sum(grad * Bt[None, :], 1)
            tl.store(dx + token * D + d, (dinput * step + gain * dout).to(dx.dtype.element_ty), mask=d < D)
            tl.store(
                ddt + token * D + d, (tl.sum(dlog * a, 1) + dinput * u).to(ddt.dtype.element_ty), mask=d < D
            )
            row = (token * blocks + block) * N + n
            tl.store(dBC + row, tl.sum(grad * (step * u)[:, None], 0), mask=n < N)
            tl.store(dBC + tokens * blocks * N + row, tl.sum(hidden * dout[:, None], 0), mask=n < N)
            da += dlog * step[:, None]
            dgain += dout * u
            grad = decay * grad
        if K > 1:
            tl.debug_barrier()
    tl.store(dstate + b * D * N + tile, grad.to(dstate.dtype.element_ty), mask=in_tile)
    tl.store(dparams + b * D * (N + 1) + tile, da, mask=in_tile)
    tl.store(dparams + b * D * (N + 1) + D * N + d, dgain, mask=d < D)


def _every(return_states: bool) -> int:
    return 1 if return_states else EVERY


def _blocks(channels: int, size: int) -> dict[str, int]:
    """About a thousand states per program."""
    block_n = triton.next_power_of_2(size)
    return {"BLOCK_D": min(max(8, 1024 // block_n), triton.next_power_of_2(channels)), "BLOCK_N": block_n}


def _inner_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself where channels lie side by side, so that a slice of a projection is not copied."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _saved(x: Tensor, A: Tensor, return_states: bool) -> Tensor:
    """Where forward leaves the states after every step, or after every so many."""
    batch, length, channels = x.shape
    return torch.empty(
        batch, length // _every(return_states), channels, A.shape[1], dtype=torch.float32, device=x.device
    )


@torch.library.custom_op("worldmodel::selective_scan", mutates_args=())
def selective_scan_op(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor,
    return_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and either the state after every step or some of them, kept for backward."""
    (batch, length, channels), size = x.shape, A.shape[1]
    x, dt, B, C = (_inner_contiguous(tensor) for tensor in (x, dt, B, C))
    A, D, segments, state = (tensor.contiguous() for tensor in (A, D, segments, state))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = torch.empty(state.shape, dtype=torch.float32, device=x.device)
    saved = _saved(x, A, return_states)
    sizes = _blocks(channels, size)
    blocks = triton.cdiv(channels, sizes["BLOCK_D"])
    _forward[(batch * blocks,)](
        x, dt, A, B, C, D, segments, state, y, final, saved, length, channels, blocks, *_strides(x, dt, B, C),
        N=size, K=_every(return_states), **sizes,
    )
    return y, final, saved


@selective_scan_op.register_fake
def _(x, dt, A, B, C, D, segments, state, return_states):
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=torch.float32), _saved(x, A, return_states)


@torch.library.custom_op("worldmodel::selective_scan_backward", mutates_args=())
def _backward_op(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor,
    saved: Tensor, dy: Tensor, dfinal: Tensor, dstates: Tensor | None, return_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of dt, of A and D (D * (N+1)), of B and C (2, B, L, N), and of the initial state."""
    (batch, length, channels), size = x.shape, A.shape[1]
    x, dt, B, C = (_inner_contiguous(tensor) for tensor in (x, dt, B, C))
    A, D, segments, state, dy, dfinal = (tensor.contiguous() for tensor in (A, D, segments, state, dy, dfinal))
    sizes, every = _blocks(channels, size), _every(return_states)
    blocks = triton.cdiv(channels, sizes["BLOCK_D"])

    def partial(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=x.device)

    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=x.device)
    dstate = torch.empty(state.shape, dtype=state.dtype, device=x.device)
    dBC = partial(2 * batch * length, blocks, size)
    dparams = partial(batch, channels * (size + 1))
    scratch = partial(batch * blocks, every if every > 1 else 0, sizes["BLOCK_D"], sizes["BLOCK_N"])
    _backward_kernel[(batch * blocks,)](
        x, dt, A, B, C, D, segments, state, saved, dy, dfinal, dfinal if dstates is None else dstates.contiguous(),
        scratch, dx, ddt, dBC, dparams, dstate, length, channels, blocks, triton.cdiv(length, every),
        *_strides(x, dt, B, C), batch * length, N=size, K=every, HAS_DSTATES=dstates is not None, **sizes,
    )
    dBC, dparams = sum_partials(dBC, B.dtype, dparams)
    return dx, ddt, dparams, dBC.view(2, *B.shape), dstate


@_backward_op.register_fake
def _(x, dt, A, B, C, D, segments, state, saved, dy, dfinal, dstates, return_states):
    dx, ddt, dstate = (tensor.new_empty(tensor.shape) for tensor in (x, dt, state))
    return dx, ddt, A.new_empty(A.numel() + A.shape[0], dtype=torch.float32), B.new_empty(2, *B.shape), dstate


def _setup(ctx, inputs, output):
    *tensors, ctx.return_states = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dfinal, dsaved):
    x, dt, A, B, C, D, segments, state, saved = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dfinal = torch.zeros_like(state, dtype=torch.float32) if dfinal is None else dfinal
    dx, ddt, dparams, dBC, dstate = _backward_op(
        x, dt, A, B, C, D, segments, state, saved, dy, dfinal, dsaved, ctx.return_states
    )
    dA, dD = dparams.split([A.numel(), A.shape[0]])
    return dx, ddt, dA.view(A.shape).to(A.dtype), dBC[0], dBC[1], dD.to(D.dtype), None, dstate, None


selective_scan_op.register_autograd(_backward, setup_context=_setup)
