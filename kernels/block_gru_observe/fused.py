"""The observe loop as one operation whose backward pass is written by hand (plain PyTorch, any device).

Forward saves nothing but its outputs. Backward recomputes what lies between for all T steps at once, walks back through
time with the gradients of deter and stoch alone, and takes every weight's gradient in one product over T*B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.block_gru_observe.reference import EPS, Weights
from worldmodel.kernels.unimix_categorical.reference import softmax


def observe(
    deter: Tensor, stoch: Tensor, keep: Tensor, action: Tensor, token: Tensor, noise: Tensor, weights: Weights,
    *, unimix: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`worldmodel.kernels.block_gru_observe.reference.observe`. Products are computed in the dtype of the
    matrices (all the same), everything between them in float32."""
    return torch.ops.worldmodel.block_gru_observe(deter, stoch, keep, action, token, noise, *weights, unimix)


@torch.library.custom_op("worldmodel::block_gru_observe", mutates_args=())
def _forward(
    deter: Tensor, stoch: Tensor, keep: Tensor, action: Tensor, token: Tensor, noise: Tensor,
    w_deter: Tensor, b_deter: Tensor, s_deter: Tensor, w_stoch: Tensor, b_stoch: Tensor, s_stoch: Tensor,
    w_mix: Tensor, b_mix: Tensor, s_mix: Tensor, w_gates: Tensor, b_gates: Tensor,
    w_post: Tensor, s_post: Tensor, w_logits: Tensor, b_logits: Tensor, unimix: float,
) -> tuple[Tensor, Tensor, Tensor]:
    (time, rows), classes, blocks = keep.shape, stoch.shape[-1], w_mix.shape[0]
    hidden, size = w_deter.shape
    own, dtype = size // blocks, w_mix.dtype
    deters, stochs, logits = _like(deter, stoch, keep)
    with torch.autocast(deter.device.type, enabled=False):
        # what does not recur: thresholds of the noise, the action's share of the mix, the keeps as columns
        share = unimix / classes * torch.arange(1, classes, device=deter.device)
        threshold = (noise.float().unsqueeze(-1) - share) / (1 - unimix)
        w_own, w_01, w_2 = w_mix.split([own, 2 * hidden, hidden], 1)
        # (2h, D) and (h, D)
        w_01, w_2 = (w.transpose(0, 1).reshape(-1, size) for w in (w_01, w_2))
        offset = torch.addmm(b_mix.to(dtype), action.to(dtype).flatten(0, 1), w_2).view(time, rows, size)
        both = torch.cat([w_deter, w_post]).t()
        b_01, s_01 = torch.stack([b_deter, b_stoch]), torch.stack([s_deter, s_stoch])
        b_update = b_gates.to(dtype).view(blocks, 1, 3 * own)
        b_logits_, alive = b_logits.to(dtype), keep.float().unsqueeze(-1)
        before = deter * alive[0]
        # (B, 2, h): before the norms of x0 and x1
        pre = torch.stack([before.to(dtype) @ w_deter.t(), (stoch.flatten(1) * alive[0]).to(dtype) @ w_stoch.t()], 1)
        pre = pre.float() + b_01
        for t in range(time):
            x = F.silu(_normed(pre) * s_01).flatten(1).to(dtype)
            y = torch.addmm(offset[t], x, w_01)
            y = torch.baddbmm(_blocked(y, blocks), _blocked(before.to(dtype), blocks), w_own)
            x = F.silu(_normed(y.transpose(0, 1).reshape(rows, size).float()) * s_mix).to(dtype)
            gates = torch.baddbmm(b_update, _blocked(x, blocks), w_gates)
            # (B, 3, g, D/g)
            gates = gates.float().view(blocks, rows, 3, own).permute(1, 2, 0, 3)
            candidate = torch.tanh(torch.sigmoid(gates[:, 0]) * gates[:, 1])
            update = torch.sigmoid(gates[:, 2] - 1.0)
            torch.lerp(before.view(rows, blocks, own), candidate, update, out=deters[t].view(rows, blocks, own))
            # x0 of the next step and the posterior read the same vector: one product
            ahead = (deters[t].to(dtype) @ both).float()
            x = F.silu(_normed(ahead[:, hidden:] + token[t]) * s_post).to(dtype)
            logits[t].view(rows, -1).copy_(torch.addmm(b_logits_, x, w_logits.t()))
            stochs[t].scatter_(-1, draw(logits[t], threshold[t]), 1.0)
            if t + 1 < time:
                before = deters[t] * alive[t + 1]
                picked = (stochs[t].view(rows, -1).to(dtype) @ w_stoch.t()).float()
                pre = torch.addcmul(b_01, torch.stack([ahead[:, :hidden], picked], 1), alive[t + 1].unsqueeze(-1))
    return deters, stochs, logits


@_forward.register_fake
def _(deter: Tensor, stoch: Tensor, keep: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(deter, stoch, keep)


def _like(deter: Tensor, stoch: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """deter, stoch (zeros) and logits of all steps."""
    time = keep.shape[0]
    return (
        deter.new_empty(time, *deter.shape, dtype=torch.float32),
        stoch.new_zeros(time, *stoch.shape, dtype=torch.float32),
        stoch.new_empty(time, *stoch.shape, dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    deter, stoch, keep, action, token, _, *weights, ctx.unimix = inputs
    ctx.save_for_backward(deter, stoch, keep, action, token, *output, *weights)


def _chain(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    deter, stoch, keep, action, token, deters, stochs, logits, *weights = ctx.saved_tensors
    full = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, (deters, stochs, logits))]
    d_deter, d_stoch, d_action, d_token, *d_weights = torch.ops.worldmodel.block_gru_observe_backward(
        *full, deter, stoch, keep, action, token, deters, stochs, logits, weights, ctx.unimix
    )
    return d_deter, d_stoch, None, d_action, d_token, None, *d_weights, None


_forward.register_autograd(_chain, setup_context=_setup)


@torch.library.custom_op("worldmodel::block_gru_observe_backward", mutates_args=())
def _backward(
    d_deters: Tensor, d_stochs: Tensor, d_logits: Tensor, deter: Tensor, stoch: Tensor, keep: Tensor, action: Tensor,
    token: Tensor, deters: Tensor, stochs: Tensor, logits: Tensor, weights: Sequence[Tensor], unimix: float,
) -> list[Tensor]:
    """Gradients of deter, stoch, action, token and each weight."""
    w, alive = Weights(*weights), keep.float().unsqueeze(-1)
    with torch.autocast(deter.device.type, enabled=False):
        mid = _recompute(deter, stoch, alive, action, token, deters, stochs, w)
        d_deter, d_stoch, steps = _back_through_time(d_deters, d_stochs, d_logits, logits, alive, mid, w, unimix)
        d_action, d_weights = _weight_gradients(deters, mid, steps, w)
    inputs = zip((d_deter, d_stoch, d_action, steps.post_pre), (deter, stoch, action, token))
    return [d.reshape(x.shape).to(x.dtype) for d, x in (*inputs, *zip(d_weights, w))]


class _Dense:
    """silu(x / rms(x) * scale) over rows, and what its backward pass needs."""

    def __init__(self, x: Tensor, scale: Tensor) -> None:
        x = x.float()
        inverse = _rms_inverse(x)
        self.normed = x * inverse
        z = self.normed * scale
        gate = torch.sigmoid(z)
        self.out = z * gate
        self.slope = gate + self.out * (1 - gate)
        self.factor = self.slope * scale * inverse

    def back(self, d_out: Tensor, rows: slice) -> Tensor:
        """Gradient of x for some of the rows."""
        e, normed = d_out * self.factor[rows], self.normed[rows]
        along = torch.linalg.vecdot(e, normed).unsqueeze(-1)
        return torch.addcmul(e, normed, along, value=-1 / e.shape[-1])

    def d_scale(self, d_out: Tensor) -> Tensor:
        """Gradient of the scale from all rows."""
        return (d_out * self.slope * self.normed).sum(0)


class _Middle(NamedTuple):
    """What lies between the saved states, over all N = T*B rows, t-major."""

    before: Tensor
    """(N, D) deter going in, after resets, in the dtype of products; ``seen`` (N, Z*K): stoch likewise."""
    seen: Tensor
    first: _Dense
    """(N, 2, h) x0 and x1."""
    shared: Tensor
    """(N, 3h) x0, x1 and the action."""
    w_own: Tensor
    """(g, D/g, D/g)"""
    w_shared: Tensor
    """(3h, D)"""
    second: _Dense
    """(N, D) the mix."""
    mixed: Tensor
    """(g, N, D/g) its output."""
    to_gates: Tensor
    """(T, g, B, 3, D/g) d gates / d deter'."""
    stay: Tensor
    """(T, B, D) d deter' / d deter along the gate."""
    third: _Dense
    """(N, h) the posterior's hidden layer."""


def _recompute(
    deter: Tensor, stoch: Tensor, alive: Tensor, action: Tensor, token: Tensor, deters: Tensor, stochs: Tensor,
    w: Weights,
) -> _Middle:
    (time, rows), blocks, hidden, size, dtype = alive.shape[:2], w.mix.shape[0], *w.deter.shape, w.mix.dtype
    own = size // blocks
    before = (torch.cat([deter.unsqueeze(0), deters[:-1]]) * alive).flatten(0, 1)
    seen = (torch.cat([stoch.unsqueeze(0), stochs[:-1]]).flatten(2) * alive).flatten(0, 1).to(dtype)
    low = before.to(dtype)
    pre = torch.stack([low @ w.deter.t(), seen @ w.stoch.t()], 1).float()
    first = _Dense(pre + torch.stack([w.deter_bias, w.stoch_bias]), torch.stack([w.deter_scale, w.stoch_scale]))
    shared = torch.cat([first.out.flatten(1).to(dtype), action.flatten(0, 1).to(dtype)], -1)
    w_own, w_shared = w.mix.split([own, 3 * hidden], 1)
    w_shared = w_shared.transpose(0, 1).reshape(-1, size)
    y = torch.addmm(w.mix_bias.to(dtype), shared, w_shared)
    y = torch.baddbmm(_blocked(y, blocks), _blocked(low, blocks), w_own)
    second = _Dense(y.transpose(0, 1).reshape(-1, size), w.mix_scale)
    mixed = _blocked(second.out.to(dtype), blocks)
    gates = torch.baddbmm(w.gates_bias.to(dtype).view(blocks, 1, -1), mixed, w.gates).float()
    # (g, N, D/g)
    reset, raw, update = gates.chunk(3, -1)
    reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1.0)
    candidate = torch.tanh(reset * raw)
    slope = update * (1 - candidate.square()) * reset
    from_update = (candidate - _blocked(before, blocks)) * update * (1 - update)
    to_gates = torch.stack([slope * raw * (1 - reset), slope, from_update], 2)
    hidden_pre = (deters.flatten(0, 1).to(dtype) @ w.posterior.t()).float() + token.flatten(0, 1)
    return _Middle(
        before=low, seen=seen, first=first, shared=shared, w_own=w_own, w_shared=w_shared, second=second, mixed=mixed,
        to_gates=to_gates.view(blocks, time, rows, 3, own).transpose(0, 1),
        stay=(1 - update).transpose(0, 1).reshape(time, rows, size),
        third=_Dense(hidden_pre, w.posterior_scale),
    )


class _Steps(NamedTuple):
    """Gradients that the weights need, over all N rows: of each layer's output before (``_pre``) or after its norm."""

    logits: Tensor
    """(N, Z*K)"""
    post: Tensor
    """(N, h)"""
    post_pre: Tensor
    gates: Tensor
    """(g, N, 3D/g)"""
    mixed: Tensor
    """(N, D)"""
    mix_pre: Tensor
    first: Tensor
    """(N, 2, h)"""
    first_pre: Tensor


def _back_through_time(
    d_deters: Tensor, d_stochs: Tensor, d_logits: Tensor, logits: Tensor, alive: Tensor, mid: _Middle, w: Weights,
    unimix: float,
) -> tuple[Tensor, Tensor, _Steps]:
    """The recurrent part: gradients of deter and stoch before step 0, and those of every layer on the way."""
    (time, rows), blocks, hidden, size, dtype = alive.shape[:2], w.mix.shape[0], *w.deter.shape, w.mix.dtype
    probs = softmax(logits)
    mixture = (1 - unimix) * probs
    w_own_t, w_gates_t, w_first_t = mid.w_own.transpose(1, 2), w.gates.transpose(1, 2), mid.w_shared[: 2 * hidden].t()
    d_deter, d_stoch = d_deters[-1], d_stochs[-1]
    d_before, d_seen = d_deter, d_stoch
    steps: list[tuple[Tensor, ...]] = []
    for t in range(time - 1, -1, -1):
        at = slice(t * rows, (t + 1) * rows)
        # straight through the mixed softmax
        inner = torch.linalg.vecdot(probs[t], d_stoch).unsqueeze(-1)
        d_logit = torch.addcmul(d_logits[t], mixture[t], d_stoch - inner).flatten(1)
        d_post = _product(d_logit, w.logits)
        d_post_pre = mid.third.back(d_post, at)
        d_deter = _product(d_post_pre, w.posterior, d_deter)
        # (g, B, 3D/g)
        d_gates = (mid.to_gates[t] * _blocked(d_deter, blocks).unsqueeze(2)).flatten(2)
        d_mixed = torch.bmm(d_gates.to(dtype), w_gates_t).transpose(0, 1).reshape(rows, size).float()
        d_mix_pre = mid.second.back(d_mixed, at)
        d_first = _product(d_mix_pre, w_first_t).view(rows, 2, hidden)
        d_first_pre = mid.first.back(d_first, at)
        d_own = torch.bmm(_blocked(d_mix_pre.to(dtype), blocks), w_own_t).transpose(0, 1).reshape(rows, size).float()
        d_before = _product(d_first_pre[:, 0], w.deter, torch.addcmul(d_own, mid.stay[t], d_deter))
        d_seen = _product(d_first_pre[:, 1], w.stoch).view_as(d_stoch)
        steps.append((d_logit, d_post, d_post_pre, d_gates, d_mixed, d_mix_pre, d_first, d_first_pre))
        if t:
            d_deter = torch.addcmul(d_deters[t - 1], d_before, alive[t])
            d_stoch = torch.addcmul(d_stochs[t - 1], d_seen, alive[t].unsqueeze(-1))
    # gates hold their blocks first: rows are their second axis
    joined = (torch.cat(step[::-1], 1 if i == 3 else 0) for i, step in enumerate(zip(*steps)))
    return d_before * alive[0], d_seen * alive[0].unsqueeze(-1), _Steps(*joined)


def _weight_gradients(deters: Tensor, mid: _Middle, d: _Steps, w: Weights) -> tuple[Tensor, Weights]:
    """Of the action, and of each weight: one product over all rows."""
    blocks, dtype = w.mix.shape[0], w.mix.dtype
    mix_pre, logits = d.mix_pre.to(dtype), d.logits.to(dtype)
    d_shared = (mix_pre.t() @ mid.shared).view(blocks, -1, mid.shared.shape[1]).transpose(1, 2)
    d_own = torch.bmm(_blocked(mid.before, blocks).transpose(1, 2), _blocked(mix_pre, blocks))
    # an operation's results must not share memory: the two halves are cloned
    bias, scale = d.first_pre.sum(0), mid.first.d_scale(d.first)
    weights = Weights(
        deter=d.first_pre[:, 0].to(dtype).t() @ mid.before,
        deter_bias=bias[0].clone(),
        deter_scale=scale[0].clone(),
        stoch=d.first_pre[:, 1].to(dtype).t() @ mid.seen,
        stoch_bias=bias[1].clone(),
        stoch_scale=scale[1].clone(),
        mix=torch.cat([d_own, d_shared], 1),
        mix_bias=d.mix_pre.sum(0),
        mix_scale=mid.second.d_scale(d.mixed),
        gates=torch.bmm(mid.mixed.transpose(1, 2), d.gates.to(dtype)),
        gates_bias=d.gates.sum(1).flatten(),
        posterior=d.post_pre.to(dtype).t() @ deters.flatten(0, 1).to(dtype),
        posterior_scale=mid.third.d_scale(d.post),
        logits=logits.t() @ mid.third.out.to(dtype),
        logits_bias=d.logits.sum(0),
    )
    # the action is the last third of what the blocks share
    return mix_pre @ mid.w_shared[2 * w.deter.shape[0] :].t(), weights


@_backward.register_fake
def _(
    d_deters: Tensor, d_stochs: Tensor, d_logits: Tensor, deter: Tensor, stoch: Tensor, keep: Tensor, action: Tensor,
    token: Tensor, deters: Tensor, stochs: Tensor, logits: Tensor, weights: Sequence[Tensor], unimix: float,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (deter, stoch, action, token, *weights)]


def _product(x: Tensor, weight: Tensor, base: Tensor | None = None) -> Tensor:
    """x @ weight (+ base) in the dtype of the weight, result float32."""
    if base is not None and weight.dtype == torch.float32:
        return torch.addmm(base, x, weight)
    product = (x.to(weight.dtype) @ weight).float()
    return product if base is None else product + base


def draw(logits: Tensor, threshold: Tensor) -> Tensor:
    """Class indices (B, Z, 1): the mixed distribution's cumulative inverted at the noise.

    (1 - unimix) P_k + unimix k/K <= noise, with P_k the softmax's cumulative, is solved for P_k: ``threshold``
    (B, Z, K-1) is known before the loop, and P_k stays unnormalised.
    """
    cumulative = torch.exp(logits - logits.amax(-1, keepdim=True)).cumsum(-1)
    return (cumulative[..., :-1] <= threshold * cumulative[..., -1:]).sum(-1, keepdim=True)


def _blocked(x: Tensor, blocks: int) -> Tensor:
    """(N, D) -> (g, N, D/g), a view."""
    return x.view(x.shape[0], blocks, -1).transpose(0, 1)


def _normed(x: Tensor) -> Tensor:
    """x / rms(x)."""
    return x * _rms_inverse(x)


def _rms_inverse(x: Tensor) -> Tensor:
    """(..., n) -> (..., 1)."""
    return torch.linalg.vecdot(x, x).unsqueeze(-1).mul_(1 / x.shape[-1]).add_(EPS).rsqrt_()
