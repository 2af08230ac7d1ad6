"""Which implementation of a kernel runs: plain PyTorch, or Triton.

``WM_KERNELS`` decides when this module is imported, and ``using`` for a block:

- ``auto`` (default): tensors on a GPU take what ``defaults.json`` names for the kernel, all others PyTorch;
- ``torch``: PyTorch everywhere;
- ``triton``: Triton everywhere; on a CPU that needs Triton's interpreter, ``TRITON_INTERPRET=1`` in the environment.

A kernel becomes the default on GPUs only by a measurement: ``defaults.json`` says for each one what runs and why.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

Backend = Literal["torch", "triton"]
Choice = Literal["auto", "torch", "triton"]

DEFAULTS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "defaults.json").read_text())
"""By kernel: ``backend``, what ``auto`` takes on a GPU, and ``why``."""

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton kernels run on CPU tensors, in numpy, slowly. Triton reads the variable once, when it is imported."""


def _valid(choice: str) -> Choice:
    if choice not in get_args(Choice):
        raise ValueError(f"WM_KERNELS must be auto, torch or triton, got {choice!r}")
    return cast(Choice, choice)


_choice: Choice = _valid(os.environ.get("WM_KERNELS", "auto"))


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Inside the block, ``choice`` stands in for ``WM_KERNELS``."""
    global _choice
    before, _choice = _choice, _valid(choice)
    try:
        yield
    finally:
        _choice = before


def backend(kernel: str, like: torch.Tensor) -> Backend:
    """What runs ``kernel`` on tensors that live where ``like`` does.

    Raises:
        RuntimeError: Triton was demanded where it cannot run.
    """
    if _choice == "torch":
        return "torch"
    if _choice == "auto":
        on_gpu = like.device.type == "cuda" and HAS_TRITON
        return "triton" if on_gpu and DEFAULTS[kernel]["backend"] == "triton" else "torch"
    if not HAS_TRITON:
        raise RuntimeError("WM_KERNELS=triton, but triton is not installed: pip install 'worldmodel[triton]'")
    if like.device.type != "cuda" and not INTERPRETS:
        raise RuntimeError(
            f"WM_KERNELS=triton, but {kernel} got tensors on {like.device}: Triton needs a CUDA device, or "
            "TRITON_INTERPRET=1 in the environment to run slowly on a CPU; WM_KERNELS=auto chooses by device"
        )
    return "triton"


def autotune(configs: Sequence[Any], key: Sequence[str]) -> Callable[[Any], Any]:
    """``triton.autotune``; the first of ``configs`` alone where nothing can be timed or nothing may vary.

    That is in the interpreter, and when ``torch.use_deterministic_algorithms`` was called before the kernel's module
    was imported: two block sizes may sum in different orders.
    """
    import triton

    fixed = INTERPRETS or torch.are_deterministic_algorithms_enabled()
    return triton.autotune(configs=list(configs[:1] if fixed else configs), key=list(key))


def implementations(call: Callable[[], object], device: torch.device) -> dict[str, Callable[[], object]]:
    """What a benchmark compares: ``call`` in PyTorch, and on a GPU also that compiled, and with Triton."""

    def under(choice: Choice, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with using(choice):
                return call()

        return run

    if device.type != "cuda":
        return {"reference": under("torch", call)}
    return {
        "reference": under("torch", call),
        "reference, compiled": under("torch", torch.compile(call)),
        "triton": under("triton", call),
    }
