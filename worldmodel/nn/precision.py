"""In which numbers networks compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Numbers = Literal["float32", "bfloat16"]
Precision = Literal["auto", "float32", "bfloat16"]


def chosen(asked: Precision, device: torch.device) -> Numbers:
    """"auto" is bfloat16 on a GPU and float32 on a CPU."""
    if asked == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return asked


def computing(numbers: Numbers, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products and convolutions are in these numbers while it is open, for one phase of an update: within one
    such block torch reuses the first cast of a weight, so a weight first used without gradient would get none from
    later uses."""
    return torch.autocast(device.type, torch.bfloat16) if numbers == "bfloat16" else nullcontext()
