"""Ensembles: the networks of all members as stacked parameters, one batched product a layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.nn.blocks import init_weight, mish

Init = Callable[[Tensor, int], None]
"""Fills one member's weight (in, out) in place, given its fan-in."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": mish, "silu": F.silu, "elu": F.elu, "relu": F.relu, "tanh": torch.tanh,
}


def uniform(x: Tensor, fan_in: int) -> None:
    """On +-1/sqrt(in), which PyTorch's own linear layers draw weights and biases from."""
    x.uniform_(-(fan_in**-0.5), fan_in**-0.5)


def edac_start(hidden: Iterable[nn.Module], last: nn.Module, limit: float) -> None:
    """In place: biases of 0.1 in hidden linear layers, all of the last one uniform on +-limit (An et al. 2021)."""
    with torch.no_grad():
        for layer in hidden:
            cast(Tensor, layer.bias).fill_(0.1)
        for p in last.parameters():
            p.uniform_(-limit, limit)


class EnsembleLinear(nn.Module):
    """E linear layers; ``weight`` (E, in, out), ``bias`` (E, out)."""

    def __init__(
        self, members: int, inputs: int, outputs: int, *, init: Init = init_weight, bias: Init | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, outputs))
        with torch.no_grad():
            for member in self.weight:
                init(member, inputs)
            if bias is not None:
                bias(self.bias, inputs)

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """(E, N, in), or (1, N, in) for all alike -> (E, N, out); ``members`` (K,) int64: of these alone."""
        weight, bias = (self.weight, self.bias) if members is None else (self.weight[members], self.bias[members])
        return torch.baddbmm(bias.unsqueeze(1), x.expand(len(weight), -1, -1), weight)


class EnsembleNorm(nn.Module):
    """E normalisations of the last axis in float32: "layer" with scale and shift, "rms" with scale."""

    def __init__(self, members: int, size: int, kind: Literal["layer", "rms"], *, eps: float = 1e-5) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.scale = nn.Parameter(torch.ones(members, size))
        self.shift = nn.Parameter(torch.zeros(members, size)) if kind == "layer" else None

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """(E, N, size)."""
        scale, shift = self.scale, self.shift
        if members is not None:
            scale, shift = scale[members], None if shift is None else shift[members]
        full = x.float()
        if shift is None:
            normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps) * scale.unsqueeze(1)
        else:
            normed = F.layer_norm(full, full.shape[-1:], eps=self.eps)
            normed = torch.addcmul(shift.unsqueeze(1), normed, scale.unsqueeze(1))
        return normed.to(x.dtype)


class EnsembleMLP(nn.Module):
    """E networks of one shape: (linear -> dropout -> norm -> activation) for each of ``units``, then linear.

    Members begin apart, each with weights of its own. What asks for a few members gets the product of their weights
    alone. Q-functions, dynamics with mean and variance, latent heads that disagree: all are this with other outputs.

    >>> heads = EnsembleMLP(5, inputs=8, outputs=3, units=(16, 16))
    >>> heads(torch.zeros(7, 2, 8)).shape
    torch.Size([5, 7, 2, 3])
    >>> heads(torch.zeros(7, 2, 8), members=torch.tensor([4, 1])).shape
    torch.Size([2, 7, 2, 3])
    """

    def __init__(
        self, members: int, inputs: int, outputs: int, *, units: tuple[int, ...],
        norm: Literal["layer", "rms", "first", "none"] = "layer",
        activation: Literal["mish", "silu", "elu", "relu", "tanh"] = "mish",
        dropout: float = 0.0, init: Init = init_weight, bias: Init | None = None, out_scale: float = 1.0,
    ) -> None:
        """Args:
            units: widths of the hidden layers.
            norm: "first": a LayerNorm in the first hidden layer alone, and a tanh instead of its activation (TD-MPC).
            dropout: in the first hidden layer alone, before its norm (TD-MPC2), where a call asks for it.
            init: of every weight; the default is the house's, with standard deviation 1/sqrt(in).
            bias: of every bias; None: 0. A ReLU network whose biases are 0 answers twice as much to an input twice as
                far out, so that what grows where the data is grows without end beyond it.
            out_scale: multiplies the last layer's initial weights and biases; 0 makes every member begin at 0.
        """
        super().__init__()
        if members < 1:
            raise ValueError(f"an ensemble needs at least 1 member, got {members}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        widths = (inputs, *units, outputs)
        self.members, self.dropout = members, dropout
        layers = [EnsembleLinear(members, a, b, init=init, bias=bias) for a, b in itertools.pairwise(widths)]
        self.layers = nn.ModuleList(layers)
        self.norms: nn.ModuleList | None = None
        self.is_bounded = norm == "first"
        """Whether what the first hidden layer says is."""
        if norm == "first":
            self.norms = nn.ModuleList(EnsembleNorm(members, u, "layer") for u in units[:1])
        elif norm != "none":
            self.norms = nn.ModuleList(EnsembleNorm(members, u, norm) for u in units)
        self.activation = ACTIVATIONS[activation]
        with torch.no_grad():
            layers[-1].weight.mul_(out_scale)
            layers[-1].bias.mul_(out_scale)

    def forward(self, x: Tensor, members: Tensor | None = None, *, drop: bool = False) -> Tensor:
        """(..., in) -> (E, ..., out): all members see the same.

        Args: members: (K,) int64, answers of these alone, (K, ..., out). drop: with dropout, different in each member.
        """
        out = self._run(x.reshape(1, -1, x.shape[-1]), members, drop)
        return out.view(len(out), *x.shape[:-1], -1)

    def each(self, x: Tensor, members: Tensor | None = None, *, drop: bool = False) -> Tensor:
        """(E, ..., in) -> (E, ..., out): every member, or every one of ``members``, sees rows of its own."""
        return self._run(x.flatten(1, -2), members, drop).view(*x.shape[:-1], -1)

    def _run(self, x: Tensor, members: Tensor | None, drop: bool) -> Tensor:
        last, norms = len(self.layers) - 1, [*(self.norms or ())]
        for i, layer in enumerate(self.layers):
            x = layer(x, members)
            if i == last:
                break
            if i == 0 and drop and self.dropout:
                x = F.dropout(x, self.dropout)
            if i < len(norms):
                x = norms[i](x, members)
            x = torch.tanh(x) if self.is_bounded and not i else self.activation(x)
        return x
