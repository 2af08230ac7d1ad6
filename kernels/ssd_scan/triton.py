"""``ssd_scan`` in Triton: one launch forward, two backward. The equations are in this folder's README.

A program owns one head of one sequence and keeps its state, P x N, in registers. ``_chunks`` walks over chunks of Q
steps with matrix products; ``_steps`` walks over steps, for L = 1 and where the state after every step is wanted, which
costs more bytes than the products save.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldmodel.kernels.reduce import sum_partials


@triton.jit
def _rows(base, at, t, inside, stride, offset, columns, valid):
    """(len(t), len(columns)) float32 of a (B, L, ...) tensor: rows t of sequence ``at``, zero outside."""
    where = base + at + t[:, None] * stride + offset + columns[None, :]
    return tl.load(where, mask=inside[:, None] & valid[None, :], other=0.0).to(tl.float32)


@triton.jit
def _chunk_decays(dt, segments, b, h, t, inside, c, L, dt_b, dt_l, a, Q: tl.constexpr):
    """What both passes need of a chunk: steps, segment masks, and decays from its start, between steps, to its end."""
    q = tl.arange(0, Q)
    steps = tl.load(dt + b * dt_b + t * dt_l + h, mask=inside, other=0.0).to(tl.float32)
    # the padding belongs to the last step's segment: the state passes through it
    seg = tl.load(segments + b * L + tl.minimum(t, L - 1))
    last = tl.load(segments + b * L + tl.minimum(c * Q + Q, L) - 1)
    before = tl.load(segments + b * L + tl.maximum(c * Q - 1, 0), mask=c > 0, other=0)
    cum = tl.cumsum(steps * a, 0)
    total = tl.sum(steps * a, 0)
    linked = (seg[:, None] == seg[None, :]) & (q[:, None] >= q[None, :])
    # clamped: the masked half would overflow
    decay = tl.where(linked, tl.exp(tl.minimum(cum[:, None] - cum[None, :], 0.0)), 0.0)
    from_start = tl.where(seg == before, tl.exp(tl.minimum(cum, 0.0)), 0.0)
    to_end = tl.where(seg == last, tl.exp(tl.minimum(total - cum, 0.0)), 0.0)
    through = tl.where(last == before, tl.exp(tl.minimum(total, 0.0)), 0.0)
    return steps, seg, decay, from_start, to_end, through


@triton.jit
def _chunks(
    x, dt, A, B, C, D, segments, state, y, final, starts, L, chunks, x_b, x_l, dt_b, dt_l, B_b, B_l, C_b, C_l,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr,
):
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    g = h // (H // G)
    p, n, q = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, Q)
    tile = p[:, None] * N + n[None, :]
    in_tile = (p[:, None] < P) & (n[None, :] < N)
    a = tl.load(A + h).to(tl.float32)
    skip = tl.load(D + h).to(tl.float32)
    hidden = tl.load(state + (b * H + h) * P * N + tile, mask=in_tile, other=0.0).to(tl.float32)
    for c in range(chunks):
        t = (c * Q + q).to(tl.int64)
        inside = t < L
        steps, _seg, decay, from_start, to_end, through = _chunk_decays(
            dt, segments, b, h, t, inside, c, L, dt_b, dt_l, a, Q
        )
        u = _rows(x, b * x_b, t, inside, x_l, h * P, p, p < P)
        Bc = _rows(B, b * B_b, t, inside, B_l, g * N, n, n < N)
        Cc = _rows(C, b * C_b, t, inside, C_l, g * N, n, n < N)
        inputs = u * steps[:, None]
        tl.store(starts + ((b * chunks + c) * H + h) * P * N + tile, hidden, mask=in_tile)
        scores = tl.dot(Cc, tl.trans(Bc), input_precision=PRECISION) * decay
        out = tl.dot(scores, inputs, input_precision=PRECISION) + skip * u
        out += from_start[:, None] * tl.dot(Cc, tl.trans(hidden), input_precision=PRECISION)
        tl.store(
            y + (b * L + t[:, None]) * H * P + h * P + p[None, :],
            out.to(y.dtype.element_ty), mask=inside[:, None] & (p[None, :] < P),
        )
        hidden = through * hidden + tl.dot(tl.trans(inputs * to_end[:, None]), Bc, input_precision=PRECISION)
    tl.store(final + (b * H + h) * P * N + tile, hidden, mask=in_tile)


@triton.jit
def _chunks_backward(
    x, dt, A, B, C, D, segments, starts, final, dy, dfinal, dx, ddt, dBC, dAD, dstate,
    L, chunks, tokens, x_b, x_l, dt_b, dt_l, B_b, B_l, C_b, C_l,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr,
):
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    g = h // (H // G)
    p, n, q = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, Q)
    tile = p[:, None] * N + n[None, :]
    in_tile = (p[:, None] < P) & (n[None, :] < N)
    a = tl.load(A + h).to(tl.float32)
    skip = tl.load(D + h).to(tl.float32)
    grad = tl.load(dfinal + (b * H + h) * P * N + tile, mask=in_tile, other=0.0).to(tl.float32)
    hidden_end = tl.load(final + (b * H + h) * P * N + tile, mask=in_tile, other=0.0)
    da = tl.zeros((Q,), tl.float32)
    dskip = tl.zeros((Q,), tl.float32)
    for back in range(chunks):
        c = chunks - 1 - back
        t = (c * Q + q).to(tl.int64)
        inside = t < L
        steps, seg, decay, from_start, to_end, through = _chunk_decays(
            dt, segments, b, h, t, inside, c, L, dt_b, dt_l, a, Q
        )
        keep = seg == tl.load(segments + b * L + tl.minimum(tl.maximum(t - 1, 0), L - 1), mask=t > 0, other=0)
        u = _rows(x, b * x_b, t, inside, x_l, h * P, p, p < P)
        Bc = _rows(B, b * B_b, t, inside, B_l, g * N, n, n < N)
        Cc = _rows(C, b * C_b, t, inside, C_l, g * N, n, n < N)
        dout = _rows(dy, b * L * H * P, t, inside, H * P, h * P, p, p < P)
        hidden = tl.load(starts + ((b * chunks + c) * H + h) * P * N + tile, mask=in_tile, other=0.0)
        inputs = u * steps[:, None]

        scores = tl.dot(Cc, tl.trans(Bc), input_precision=PRECISION) * decay
        dscores = tl.dot(dout, tl.trans(inputs), input_precision=PRECISION) * decay
        dC = tl.dot(dscores, Bc, input_precision=PRECISION)
        dC += from_start[:, None] * tl.dot(dout, hidden, input_precision=PRECISION)
        dB = tl.dot(tl.trans(dscores), Cc, input_precision=PRECISION)
        dB += to_end[:, None] * tl.dot(inputs, grad, input_precision=PRECISION)
        dinputs = tl.dot(tl.trans(scores), dout, input_precision=PRECISION)
        dinputs += to_end[:, None] * tl.dot(Bc, tl.trans(grad), input_precision=PRECISION)

        # log-decays: what each step's cumulative sum weighs, then summed over the later steps of its segment
        weight = tl.sum(Cc * dC, 1) - tl.sum(Bc * dB, 1)
        weight += tl.where(q == Q - 1, tl.sum(tl.sum(grad * hidden_end, 1), 0), 0.0)
        later = (q[None, :] >= q[:, None]) & (seg[None, :] == seg[:, None])
        dlog = tl.where(keep, tl.sum(tl.where(later, weight[None, :], 0.0), 1), 0.0)

        tl.store(
            dx + (b * L + t[:, None]) * H * P + h * P + p[None, :],
            (dinputs * steps[:, None] + skip * dout).to(dx.dtype.element_ty),
            mask=inside[:, None] & (p[None, :] < P),
        )
        direct = tl.sum(dinputs * u, 1)
        tl.store(ddt + (b * L + t) * H + h, (a * dlog + direct).to(ddt.dtype.element_ty), mask=inside)
        row = ((b * L + t[:, None]) * H + h) * N + n[None, :]
        in_row = inside[:, None] & (n[None, :] < N)
        tl.store(dBC + row, dB, mask=in_row)
        tl.store(dBC + tokens * H * N + row, dC, mask=in_row)
        da += dlog * steps
        dskip += tl.sum(dout * u, 1)
        grad = through * grad + tl.dot(tl.trans(dout * from_start[:, None]), Cc, input_precision=PRECISION)
        hidden_end = hidden
    tl.store(dstate + (b * H + h) * P * N + tile, grad.to(dstate.dtype.element_ty), mask=in_tile)
    tl.store(dAD + b * 2 * H + h, tl.sum(da, 0))
    tl.store(dAD + b * 2 * H + H + h, tl.sum(dskip, 0))


@triton.jit
def _steps(
    x, dt, A, B, C, D, segments, state, y, final, states, L, x_b, x_l, dt_b, dt_l, B_b, B_l, C_b, C_l,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, STORE: tl.constexpr,
):
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    g = h // (H // G)
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    tile = p[:, None] * N + n[None, :]
    in_tile = (p[:, None] < P) & (n[None, :] < N)
    a = tl.load(A + h).to(tl.float32)
    skip = tl.load(D + h).to(tl.float32)
    hidden = tl.load(state + (b * H + h) * P * N + tile, mask=in_tile, other=0.0).to(tl.float32)
    before = tl.full((), 0, tl.int32)
    token = b * L
    for t in range(L):
        seg = tl.load(segments + token)
        step = tl.load(dt + b * dt_b + t * dt_l + h).to(tl.float32)
        u = tl.load(x + b * x_b + t * x_l + h * P + p, mask=p < P, other=0.0).to(tl.float32)
        Bt = tl.load(B + b * B_b + t * B_l + g * N + n, mask=n < N, other=0.0).to(tl.float32)
        Ct = tl.load(C + b * C_b + t * C_l + g * N + n, mask=n < N, other=0.0).to(tl.float32)
        decay = tl.where(seg == before, tl.exp(step * a), 0.0)
        hidden = decay * hidden + (step * u)[:, None] * Bt[None, :]
        if STORE:
            tl.store(states + (token * H + h) * P * N + tile, hidden, mask=in_tile)
        out = tl.sum(hidden * Ct[None, :], 1) + skip * u
        tl.store(y + (token * H + h) * P + p, out.to(y.dtype.element_ty), mask=p < P)
        before = seg
        token += 1
    tl.store(final + (b * H + h) * P * N + tile, hidden, mask=in_tile)


@triton.jit
def _steps_backward(
    x, dt, A, B, C, D, segments, state, states, dy, dfinal, dstates, dx, ddt, dBC, dAD, dstate,
    L, tokens, x_b, x_l, dt_b, dt_l, B_b, B_l, C_b, C_l,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, HAS_DSTATES: tl.constexpr,
):
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    g = h // (H // G)
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    tile = p[:, None] * N + n[None, :]
    in_tile = (p[:, None] < P) & (n[None, :] < N)
    a = tl.load(A + h).to(tl.float32)
    skip = tl.load(D + h).to(tl.float32)
    grad = tl.load(dfinal + (b * H + h) * P * N + tile, mask=in_tile, other=0.0).to(tl.float32)
    da = tl.zeros((BLOCK_P,), tl.float32)
    dskip = tl.zeros((BLOCK_P,), tl.float32)
    for back in range(L):
        t = L - 1 - back
        token = b * L + t
        seg = tl.load(segments + token)
        before = tl.load(segments + token - 1, mask=t > 0, other=0)
        step = tl.load(dt + b * dt_b + t * dt_l + h).to(tl.float32)
        u = tl.load(x + b * x_b + t * x_l + h * P + p, mask=p < P, other=0.0).to(tl.float32)
        Bt = tl.load(B + b * B_b + t * B_l + g * N + n, mask=n < N, other=0.0).to(tl.float32)
        Ct = tl.load(C + b * C_b + t * C_l + g * N + n, mask=n < N, other=0.0).to(tl.float32)
        dout = tl.load(dy + (token * H + h) * P + p, mask=p < P, other=0.0).to(tl.float32)
        if t > 0:
            past = tl.load(states + ((token - 1) * H + h) * P * N + tile, mask=in_tile, other=0.0)
        else:
            past = tl.load(state + (b * H + h) * P * N + tile, mask=in_tile, other=0.0).to(tl.float32)
        decay = tl.where(seg == before, tl.exp(step * a), 0.0)
        decayed = decay * past
        hidden = decayed + (step * u)[:, None] * Bt[None, :]
        grad += dout[:, None] * Ct[None, :]
        if HAS_DSTATES:
            grad += tl.load(dstates + (token * H + h) * P * N + tile, mask=in_tile, other=0.0)
        # (BLOCK_P,) each; the sums over p are taken once, at the end
        dlog = tl.sum(grad * decayed, 1)
        dinput = tl.sum(grad * Bt[None, :], 1)
        ddt_t = tl.sum(a * dlog + dinput * u, 0)
        tl.store(dx + (token * H + h) * P + p, (dinput * step + skip * dout).to(dx.dtype.element_ty), mask=p < P)
        tl.store(ddt + token * H + h, ddt_t.to(ddt.dtype.element_ty))
        row = (token * H + h) * N + n
        tl.store(dBC + row, tl.sum(grad * (step * u)[:, None], 0), mask=n < N)
        tl.store(dBC + tokens * H * N + row, tl.sum(hidden * dout[:, None], 0), mask=n < N)
        da += dlog * step
        dskip += dout * u
        grad = decay * grad
    tl.store(dstate + (b * H + h) * P * N + tile, grad.to(dstate.dtype.element_ty), mask=in_tile)
    tl.store(dAD + b * 2 * H + h, tl.sum(da, 0))
    tl.store(dAD + b * 2 * H + H + h, tl.sum(dskip, 0))


def _rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself where each step lies in one piece, so that slices of one projection are not copied."""
    return tensor if tensor[0, 0].is_contiguous() else tensor.contiguous()


def _constants(x: Tensor, B: Tensor, length: int) -> dict[str, int]:
    _, _, heads, width = x.shape
    groups, size = B.shape[2:]
    # tensor cores multiply tiles of at least 16
    blocks = {"BLOCK_P": max(16, triton.next_power_of_2(width)), "BLOCK_N": max(16, triton.next_power_of_2(size))}
    return {"H": heads, "G": groups, "P": width, "N": size, **blocks}


def _chunk(length: int, size: int) -> int:
    """Steps per chunk: one chunk where it fits; smaller beside large states, which share the registers."""
    return min(64 if size <= 32 else 32, max(16, triton.next_power_of_2(length)))


def _precision(x: Tensor) -> str:
    """bfloat16 fits into TF32; float32 takes three such products, about float32, unless PyTorch's own take one."""
    exact = x.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return "tf32x3" if exact else "tf32"


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


@torch.library.custom_op("worldmodel::ssd_scan", mutates_args=())
def ssd_scan_op(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor,
    return_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and either the state after every step or those before every chunk, kept for backward."""
    batch, length, heads, _ = x.shape
    x, dt, B, C = (_rows_contiguous(tensor) for tensor in (x, dt, B, C))
    A, D, segments, state = (tensor.contiguous() for tensor in (A, D, segments, state))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = torch.empty(state.shape, dtype=torch.float32, device=x.device)
    saved = _saved(x, B, return_states)
    common = (x, dt, A, B, C, D, segments, state, y, final, saved, length)
    grid, constants = (batch * heads,), _constants(x, B, length)
    if return_states or length == 1:
        _steps[grid](*common, *_strides(x, dt, B, C), **constants, STORE=return_states, num_warps=4)
    else:
        Q = _chunk(length, B.shape[3])
        _chunks[grid](
            *common, triton.cdiv(length, Q), *_strides(x, dt, B, C), **constants, Q=Q, PRECISION=_precision(x),
            num_warps=4 if B.shape[3] <= 32 else 8,
        )
    return y, final, saved


def _saved(x: Tensor, B: Tensor, return_states: bool) -> Tensor:
    """Where forward leaves states: after every step; or before every chunk; or nowhere, for one step."""
    batch, length, heads, width = x.shape
    size = B.shape[3]
    count = length if return_states else 0 if length == 1 else -(-length // _chunk(length, size))
    return torch.empty(batch, count, heads, width, size, dtype=torch.float32, device=x.device)


@ssd_scan_op.register_fake
def _(x, dt, A, B, C, D, segments, state, return_states):
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=torch.float32), _saved(x, B, return_states)


@torch.library.custom_op("worldmodel::ssd_scan_backward", mutates_args=())
def _backward_op(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Tensor, state: Tensor,
    final: Tensor, saved: Tensor, dy: Tensor, dfinal: Tensor, dstates: Tensor | None, return_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of dt, of A and D (2, H), of B and C (2, B, L, G, N), and of the initial state."""
    batch, length, heads, _ = x.shape
    groups, size = B.shape[2:]
    x, dt, B, C = (_rows_contiguous(tensor) for tensor in (x, dt, B, C))
    A, D, segments, state, dy, dfinal = (tensor.contiguous() for tensor in (A, D, segments, state, dy, dfinal))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=x.device)
    dstate = torch.empty(state.shape, dtype=state.dtype, device=x.device)
    dBC = torch.empty(2, batch, length, heads, size, dtype=torch.float32, device=x.device)
    dAD = torch.empty(batch, 2, heads, dtype=torch.float32, device=x.device)
    grid, constants, tokens = (batch * heads,), _constants(x, B, length), batch * length
    outputs = (dx, ddt, dBC, dAD, dstate)
    if return_states or length == 1:
        _steps_backward[grid](
            x, dt, A, B, C, D, segments, state, saved, dy, dfinal,
            dfinal if dstates is None else dstates.contiguous(), *outputs, length, tokens, *_strides(x, dt, B, C),
            **constants, HAS_DSTATES=dstates is not None, num_warps=4,
        )
    else:
        Q = _chunk(length, size)
        _chunks_backward[grid](
            x, dt, A, B, C, D, segments, saved, final, dy, dfinal, *outputs, length, triton.cdiv(length, Q), tokens,
            *_strides(x, dt, B, C), **constants, Q=Q, PRECISION=_precision(x), num_warps=8,
        )
    rows = 2 * tokens * groups
    dBC, dAD = sum_partials(dBC.view(rows, heads // groups, size), B.dtype, dAD.view(batch, 2 * heads))
    return dx, ddt, dAD.view(2, heads), dBC.view(2, *B.shape), dstate


@_backward_op.register_fake
def _(x, dt, A, B, C, D, segments, state, final, saved, dy, dfinal, dstates, return_states):
    dx, ddt, dstate = (tensor.new_empty(tensor.shape) for tensor in (x, dt, state))
    return dx, ddt, A.new_empty(2, A.shape[0], dtype=torch.float32), B.new_empty(2, *B.shape), dstate


def _setup(ctx, inputs, output):
    *tensors, ctx.return_states = inputs
    _, final, saved = output
    ctx.save_for_backward(*tensors, final, saved)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dfinal, dsaved):
    x, dt, A, B, C, D, segments, state, final, saved = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dfinal = torch.zeros_like(final) if dfinal is None else dfinal
    dx, ddt, dAD, dBC, dstate = _backward_op(
        x, dt, A, B, C, D, segments, state, final, saved, dy, dfinal, dsaved, ctx.return_states
    )
    return dx, ddt, dAD[0].to(A.dtype), dBC[0], dBC[1], dAD[1].to(D.dtype), None, dstate, None


ssd_scan_op.register_autograd(_backward, setup_context=_setup)
