"""What checks are made with: specs, batches of random data, and comparisons that name what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec

Seen = Literal["image", "vector", "both"]
ActionKind = Literal["discrete", "continuous"]

B, T = 3, 8
"""Rows and steps of a sample: unlike, so that axes cannot be swapped unnoticed."""
TOLERANCE = 1e-4
"""Of a difference, relative to the largest entry: far above rounding in float32, far below any dependence."""


def make_spec(seen: Seen = "image", *, pixels: int = 32, action: ActionKind = "discrete") -> EnvSpec:
    """Observes "image" uint8 (pixels, pixels, 3), "vector" float32 (4,), or both; acts by 3 choices or 2 forces."""
    known = {
        "image": ArraySpec(shape=(pixels, pixels, 3), dtype="uint8"), "vector": ArraySpec(shape=(4,), dtype="float32"),
    }
    obs = known if seen == "both" else {seen: known[seen]}
    return EnvSpec(name="check", obs=obs, action=ActionSpec(kind=action, size=3 if action == "discrete" else 2))


def make_batch(
    spec: EnvSpec, batch: int = B, time: int = T, *, seed: int = 0, firsts: tuple[tuple[int, int], ...] = ()
) -> Batch:
    """Random data; an episode begins at every (row, step) of ``firsts``, and the step before it ends one."""
    g = torch.Generator().manual_seed(seed)
    lead = (batch, time)
    is_first, is_last = torch.zeros(lead, dtype=torch.bool), torch.zeros(lead, dtype=torch.bool)
    for row, t in firsts:
        is_first[row, t] = True
        if t:
            is_last[row, t - 1] = True
    action = make_action(spec.action, lead, seed=seed + 1)
    before = torch.cat([make_action(spec.action, (batch, 1), seed=seed + 2), action[:, :-1]], 1)
    return Batch(
        obs={key: _observation(array, lead, g) for key, array in spec.obs.items()},
        action=action * (~is_last).unsqueeze(-1),
        prev_action=before * (~is_first).unsqueeze(-1),
        reward=torch.randn(lead, generator=g) * (~is_first),
        is_first=is_first, is_last=is_last, is_terminal=is_last.clone(),
    )


def make_action(spec: ActionSpec, lead: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """(\\*lead, A) random actions: one-hots, or numbers in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    if spec.kind == "discrete":
        return F.one_hot(torch.randint(spec.size, lead, generator=g), spec.size).float()
    return torch.rand(*lead, spec.size, generator=g) * 2 - 1


def at_time(batch: Batch, start: int, stop: int) -> Batch:
    """Steps ``start`` to ``stop`` of every row."""
    return replace(batch, **{name: _cut(getattr(batch, name), start, stop) for name in _TIMED})


def named(tree: Any) -> dict[str, Any]:
    """Leaves by their path: {"deter": ..., "obs.image": ...}."""
    found, _ = pytree.tree_flatten_with_path(tree)
    return {".".join(map(_word, path)) or "it": leaf for path, leaf in found}


def difference(a: Any, b: Any) -> str:
    """Which leaf differs most between two trees of one structure, and by how much; "" where none does."""
    worst, said = 0.0, ""
    left, right = named(a), named(b)
    if left.keys() != right.keys():
        return f"fields {sorted(left)} became {sorted(right)}"
    for name, x in left.items():
        y = right[name]
        if x.shape != y.shape:
            return f"{name} has shape {tuple(x.shape)} and {tuple(y.shape)}"
        x, y = x.detach().double(), y.detach().double()
        scale = max(float(x.abs().max()), 0.1) if x.numel() else 1.0
        gap = float((x - y).abs().max()) / scale if x.numel() else 0.0
        if not gap <= max(worst, TOLERANCE):  # a NaN differs
            worst, said = gap, f"{name} differs by {gap * scale:.2g}"
    return said


def copied(tree: Any) -> Any:
    """The same values in memory of their own."""
    return pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, tree)


def changed(before: Any, after: Any) -> list[str]:
    """Names of the leaves whose values are no longer the same, bit for bit."""
    now = named(after)
    return [name for name, x in named(before).items() if not torch.equal(x, now[name])]


def _word(part: Any) -> str:
    """One step of a path: a field's name, a key, an index."""
    return str(next(getattr(part, kind) for kind in ("name", "key", "idx") if hasattr(part, kind)))


_TIMED = ("obs", "action", "prev_action", "reward", "is_first", "is_last", "is_terminal")


def _cut(value: Any, start: int, stop: int) -> Any:
    return pytree.tree_map(lambda x: x[:, start:stop], value)


def _observation(array: ArraySpec, lead: tuple[int, ...], g: torch.Generator) -> Tensor:
    shape = (*lead, *array.shape)
    if array.dtype == "uint8":
        return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    if array.classes:
        return torch.randint(0, array.classes, shape, generator=g)
    return torch.randn(shape, generator=g).to(getattr(torch, array.dtype))
