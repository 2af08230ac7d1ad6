"""A batch that several processes share: what has to be computed over all of it. In one process everything is itself.

Models, objectives and optimisers call these functions and know nothing of processes; ``train/distributed.py`` says who
shares. Every process (rank) holds as many rows as every other, so a mean of means is the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_group: Any = None


@contextmanager
def sharing(group: Any) -> Iterator[None]:
    """Inside the block, batches are shared by the processes of ``group`` (a ``torch.distributed.ProcessGroup``)."""
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before


def count() -> int:
    """How many processes share."""
    return 1 if _group is None else dist.get_world_size(_group)


def index() -> int:
    """Which of them this one is, from 0."""
    return 0 if _group is None else dist.get_rank(_group)


def average_(x: Tensor) -> None:
    """Replace ``x`` by its mean over all processes."""
    if _group is not None:
        dist.all_reduce(x, group=_group)
        x.div_(count())


def all_true(condition: Tensor) -> Tensor:
    """Whether () ``condition`` holds in all processes."""
    if _group is None:
        return condition
    share = condition.float()
    average_(share)
    return share > 1 - 0.5 / count()


def rows(x: Tensor) -> Tensor:
    """(n, ...) of each process to (processes x n, ...), in their order. Gradient flows back to where rows came from."""
    return x if _group is None else _Rows.apply(x)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(count())]
        dist.all_gather(parts, x.contiguous(), group=_group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # every process's loss may depend on these rows
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=_group)
        return total.chunk(count())[index()]
