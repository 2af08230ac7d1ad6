"""Noise held still: what chance would decide is the same for every shape, so outputs of different calls compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

UNIFORM = 2**0.5 - 1
"""Every uniform number. No simple fraction: cumulative probabilities of fresh networks lie on those."""
NORMAL = 0.6
"""Every standard normal number. Not 0, or a standard deviation would never show."""


class Still(TorchDispatchMode):
    """While open, random operations of torch return constants.

    >>> with Still():
    ...     a, b = torch.rand(2), torch.rand(3)
    >>> bool((a == b[:2]).all())
    True
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fill = _FILLS.get(func.overloadpacket)
        # asked first: an operation in place overwrites the probabilities it reads
        still = fill(args, kwargs) if fill is not None else None
        out = func(*args, **kwargs)
        return out if still is None else still(out)


Fill = Callable[[tuple[Any, ...], dict[str, Any]], Callable[[Any], Any]]


def _constant(value: float) -> Fill:
    return lambda args, kwargs: lambda out: out.fill_(value)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], at: int, name: str, default: Any) -> Any:
    return args[at] if len(args) > at else kwargs.get(name, default)


def _uniform(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    low, high = _argument(args, kwargs, 1, "from", 0.0), _argument(args, kwargs, 2, "to", 1.0)
    return lambda out: out.fill_(low + (high - low) * UNIFORM)


def _normal_(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    mean, std = _argument(args, kwargs, 1, "mean", 0.0), _argument(args, kwargs, 2, "std", 1.0)
    return lambda out: out.fill_(mean + std * NORMAL)


def _normal(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    mean, std = _argument(args, kwargs, 0, "mean", 0.0), _argument(args, kwargs, 1, "std", 1.0)
    return lambda out: out.copy_(torch.as_tensor(mean + std * NORMAL))


def _exponential(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    rate = _argument(args, kwargs, 1, "lambd", 1.0)
    return lambda out: out.fill_(1.0 / rate)


def _bernoulli(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    chance = torch.as_tensor(_argument(args, kwargs, 1, "p", args[0]))
    is_one = chance > UNIFORM
    return lambda out: out.copy_(is_one.expand_as(out))


def _multinomial(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    weights, count, again = args[0], args[1], _argument(args, kwargs, 2, "replacement", False)
    chosen = weights.argmax(-1, keepdim=True) if again else weights.topk(count, -1).indices
    return lambda out: out.copy_(chosen.expand_as(out))


def _randint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return lambda out: out.fill_(args[0] if len(args) > 2 else 0)


def _randperm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return lambda out: out.copy_(torch.arange(out.shape[0]))


def _dropout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda out: (args[0].clone(), out[1].fill_(True))


_FILLS: dict[Any, Fill] = {
    torch.ops.aten.rand: _constant(UNIFORM),
    torch.ops.aten.rand_like: _constant(UNIFORM),
    torch.ops.aten.uniform_: _uniform,
    torch.ops.aten.randn: _constant(NORMAL),
    torch.ops.aten.randn_like: _constant(NORMAL),
    torch.ops.aten.normal_: _normal_,
    torch.ops.aten.normal: _normal,
    torch.ops.aten.exponential_: _exponential,
    torch.ops.aten.bernoulli: _bernoulli,
    torch.ops.aten.bernoulli_: _bernoulli,
    torch.ops.aten.multinomial: _multinomial,
    torch.ops.aten.randint: _randint,
    torch.ops.aten.randint_like: _constant(0),
    torch.ops.aten.randperm: _randperm,
    torch.ops.aten.native_dropout: _dropout,
}
