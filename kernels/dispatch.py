"""Which implementation of a kernel runs: plain PyTorch, Triton, or the package mamba-ssm.

``WM_KERNELS`` decides when this module is imported, and ``using`` for a block:

- ``auto`` (default): tensors on a GPU take what ``defaults.json`` names for the kernel, all others PyTorch;
- ``reference``: PyTorch everywhere;
- ``triton``: Triton everywhere; on a CPU that needs Triton's interpreter, ``TRITON_INTERPRET=1`` in the environment;
- ``mamba_ssm``: the scans of Mamba by mamba-ssm, for comparison (``mamba_ssm.py``), the rest as ``auto``.

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

from worldmodel.errors import UserError

Backend = Literal["reference", "triton", "mamba_ssm"]
Choice = Literal["auto", "reference", "triton", "mamba_ssm"]

DEFAULTS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "defaults.json").read_text())
"""By kernel: ``backend``, what ``auto`` takes on a GPU, and ``why``."""

BY_MAMBA_SSM = ("ssd_scan", "ssd_step", "selective_scan")
"""Kernels that mamba-ssm has as well."""

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_MAMBA_SSM = importlib.util.find_spec("mamba_ssm") is not None
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton kernels run on CPU tensors, in numpy, slowly. Triton reads the variable once, when it is imported."""


def _valid(choice: str) -> Choice:
    if choice not in get_args(Choice):
        raise UserError(f"WM_KERNELS must be auto, reference, triton or mamba_ssm, got {choice!r}")
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
        UserError: something was demanded where it cannot run, or float16 on a CPU.
    """
    device = like.device.type
    if device == "cpu" and like.dtype == torch.float16:
        raise UserError(
            f"{kernel} got float16 tensors on a CPU, which computes with float32 and bfloat16 here; convert them, or "
            "use a GPU"
        )
    if _choice == "reference":
        return "reference"
    if _choice == "triton":
        return _triton(kernel, device)
    if _choice == "mamba_ssm" and kernel in BY_MAMBA_SSM:
        return _mamba_ssm(kernel, device)
    return "triton" if device == "cuda" and HAS_TRITON and DEFAULTS[kernel]["backend"] == "triton" else "reference"


def explain(device: str) -> str:
    """What runs on "cpu" or "cuda", and why, for people."""
    if _choice != "auto":
        return f"{_choice}, as WM_KERNELS says"
    fast = [name for name, entry in DEFAULTS.items() if device == "cuda" and entry["backend"] == "triton"]
    if not fast or not HAS_TRITON:
        why = "none of the Triton kernels was measured to be faster" if device == "cuda" else "on a CPU"
        return f"PyTorch, {why} (WM_KERNELS=auto)"
    return f"Triton for {', '.join(fast)}, measured to be faster; PyTorch for the rest (WM_KERNELS=auto)"


def _triton(kernel: str, device: str) -> Backend:
    if not HAS_TRITON:
        raise UserError("WM_KERNELS=triton, but triton is not installed: pip install 'worldmodel[triton]'")
    if device != "cuda" and not INTERPRETS:
        raise UserError(
            f"WM_KERNELS=triton, but {kernel} got tensors on {device}: Triton needs a CUDA device, or "
            "TRITON_INTERPRET=1 in the environment to run slowly on a CPU; WM_KERNELS=auto chooses by device"
        )
    return "triton"


def _mamba_ssm(kernel: str, device: str) -> Backend:
    if not HAS_MAMBA_SSM:
        raise UserError(
            "WM_KERNELS=mamba_ssm, but mamba-ssm is not installed: docs/kernels.md says what works with which torch; "
            "WM_KERNELS=auto needs nothing"
        )
    if device != "cuda":
        raise UserError(
            f"WM_KERNELS=mamba_ssm, but {kernel} got tensors on {device}: mamba-ssm needs a CUDA device; "
            "WM_KERNELS=auto chooses by device"
        )
    return "mamba_ssm"


def autotune(configs: Sequence[Any], key: Sequence[str]) -> Callable[[Any], Any]:
    """``triton.autotune``; the first of ``configs`` alone where nothing can be timed or nothing may vary.

    That is in the interpreter, and when ``torch.use_deterministic_algorithms`` was called before the kernel's module
    was imported: two block sizes may sum in different orders.
    """
    import triton

    fixed = INTERPRETS or torch.are_deterministic_algorithms_enabled()
    return triton.autotune(configs=list(configs[:1] if fixed else configs), key=list(key))


def implementations(
    call: Callable[[], object], device: torch.device, kernel: str = ""
) -> dict[str, Callable[[], object]]:
    """What a benchmark compares: ``call`` in PyTorch, and on a GPU also that compiled, with Triton, and with mamba-ssm
    where that is installed and has the ``kernel``."""

    def under(choice: Choice, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with using(choice):
                return call()

        return run

    if device.type != "cuda":
        return {"reference": under("reference", call)}
    theirs = {"mamba-ssm": under("mamba_ssm", call)} if HAS_MAMBA_SSM and kernel in BY_MAMBA_SSM else {}
    return {
        "reference": under("reference", call),
        "reference, compiled": under("reference", torch.compile(call)),
        "triton": under("triton", call),
        **theirs,
    }
