"""Copies of networks that follow slowly."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow_(slow: nn.Module, fast: nn.Module, rate: float, healthy: Tensor) -> None:
    """Move the parameters of ``slow`` by a share ``rate`` of the way to those of ``fast``, in place; by nothing after
    an update that was not () ``healthy``."""
    moved: list[Tensor] = [*slow.parameters()]
    # a tensor for each: as one scalar weight it would be read by the host, which waits for a GPU
    rates = [rate * healthy.float()] * len(moved)
    torch._foreach_lerp_(moved, [*fast.parameters()], rates)  # pyright: ignore[reportPrivateImportUsage]
