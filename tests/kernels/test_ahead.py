"""Every kernel compiles for a GPU that is not here, types, tiles and shared memory included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIRST = {
    2: ("causal_conv1d", "selective_scan", "ssd_scan", "ssd_step", "lambda_return", "twohot_loss", "laprop_agc"),
    4: ("unimix_categorical",),
}
"""How many of a benchmark's cases come before the first one is repeated at another size, and whose benchmarks."""
COMPILED = {
    "causal_conv1d.triton._forward", "causal_conv1d.triton._backward_kernel",
    "selective_scan.triton._forward", "selective_scan.triton._backward_kernel",
    "ssd_scan.triton._chunks", "ssd_scan.triton._chunks_backward",
    "ssd_scan.triton._steps", "ssd_scan.triton._steps_backward", "reduce._sum_both",
    "lambda_return.triton._forward", "lambda_return.triton._backward",
    "twohot_loss.triton._forward", "twohot_loss.triton._backward",
    "unimix_categorical.triton._sample_forward", "unimix_categorical.triton._sample_backward",
    "unimix_categorical.triton._kl_forward", "unimix_categorical.triton._kl_backward",
    "laprop_agc.triton._partial_norms", "laprop_agc.triton._decide", "laprop_agc.triton._update",
}


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100() -> None:
    pytest.importorskip("triton")
    rows = [row for first, kernels in FIRST.items() for row in compiled(kernels, first)]
    assert {row["kernel"] for row in rows} == COMPILED
    assert all(row["spilled"] <= 256 for row in rows), rows


def compiled(kernels: tuple[str, ...], first: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.ahead", *kernels, "--first", str(first)],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
