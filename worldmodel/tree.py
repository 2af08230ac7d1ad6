"""Frozen dataclasses of tensors that torch treats as pytrees, and the few operations on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def struct(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass whose fields are pytree children.

    >>> @struct
    ... class Point:
    ...     x: Tensor
    >>> map(lambda t: t + 1, Point(x=torch.zeros(2))).x
    tensor([1., 1.])
    """
    cls = dataclass(frozen=True, kw_only=True)(cls)
    pytree.register_dataclass(cls)
    return cls


def map(fn: Callable[..., Any], tree: T, *rest: T) -> T:
    """Apply ``fn`` leaf by leaf; all trees have the same structure."""
    return pytree.tree_map(fn, tree, *rest)


def leaves(tree: Any) -> list[Any]:
    """The leaves, in the order of the fields."""
    return pytree.tree_leaves(tree)


def stack(trees: Sequence[T], dim: int = 0) -> T:
    """Stack equal structures along a new axis."""
    return pytree.tree_map(lambda *leaf: torch.stack(leaf, dim), *trees)


def cat(trees: Sequence[T], dim: int = 0) -> T:
    """Concatenate equal structures along an axis."""
    return pytree.tree_map(lambda *leaf: torch.cat(leaf, dim), *trees)


def where(mask: Tensor, yes: T, no: T) -> T:
    """Choose leaf entries by a boolean mask over the leading axes: (B,) chooses whole rows."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)

    return pytree.tree_map(choose, yes, no)


def detach(tree: T) -> T:
    """Cut every leaf from the graph."""
    return pytree.tree_map(lambda x: x.detach(), tree)


def index(tree: T, at: Any) -> T:
    """``leaf[at]`` for every leaf."""
    return pytree.tree_map(lambda x: x[at], tree)


def flatten_time(tree: T) -> T:
    """(B, T, ...) -> (B*T, ...) for every leaf."""
    return pytree.tree_map(lambda x: x.flatten(0, 1), tree)


def to(tree: T, device: torch.device | str) -> T:
    """Move every leaf to a device."""
    return pytree.tree_map(lambda x: x.to(device, non_blocking=True), tree)


def differing(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """How many tensors of two states differ in name or shape, and the first of them; empty where none does.

    >>> differing({"w": torch.zeros(2)}, {"w": torch.zeros(3), "b": torch.zeros(1)})
    '2 tensors differ, first b, which is missing there and (1,)'
    """
    there, here = ({name: tuple(x.shape) for name, x in state.items()} for state in (theirs, ours))
    wrong = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if not wrong:
        return ""
    first = wrong[0]
    shapes = f"{there.get(first, 'missing')} there and {here.get(first, 'missing')}"
    return f"{len(wrong)} tensors differ, first {first}, which is {shapes}"
