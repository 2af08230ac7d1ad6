"""Milliseconds of every kernel: its reference, its other implementations, on this machine.

    python tools/bench_kernels.py --out docs/results/kernels_cpu.json
    python tools/bench_kernels.py block_gru_observe lambda_return --device cuda --out docs/results/kernels_gpu.json

A kernel takes part by a file ``kernels/NAME/bench.py`` with ``cases(device) -> {case: {implementation: call}}``. The
implementations of a case alternate, call by call, so that a noisy neighbour meets all of them. On a GPU a call is
between two events; on a CPU the time is that of one thread. An implementation that fails is written down as such.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/bench.py"))


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(calls: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, Any]:
    """Median, quartiles and best per implementation."""
    spent: dict[str, list[float]] = {}
    failed: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
            spent[name] = []
        except Exception as error:
            failed[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    end = time.perf_counter() + seconds * len(spent)
    while spent and (time.perf_counter() < end or len(next(iter(spent.values()))) < 10):
        for name, times in spent.items():
            times.append(elapsed(calls[name], device))
    out = dict(failed)
    for name, times in spent.items():
        low, median, high = statistics.quantiles(times, n=4)
        out[name] = {"median_ms": median, "q1_ms": low, "q3_ms": high, "best_ms": min(times), "calls": len(times)}
    return out


def hardware(device: torch.device) -> str:
    """What the numbers are of."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"one thread of {names[0] if names else platform.processor()}"


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"any of {', '.join(KERNELS)}; all by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="per implementation and case")
    parser.add_argument("--out", type=Path, help="JSON file; the entries of other kernels in it are kept")
    args = parser.parse_args()
    for name in args.kernels:
        if name not in KERNELS:
            parser.error(f"unknown kernel {name!r}; there are {', '.join(KERNELS)}")
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    measured: dict[str, Any] = {}
    for name in args.kernels or KERNELS:
        torch.manual_seed(0)
        cases = importlib.import_module(f"worldmodel.kernels.{name}.bench").cases(device)
        measured[name] = {}
        for case, calls in cases.items():
            row = measured[name][case] = measure(calls, device, args.seconds)
            shown = (f"{who} {m['median_ms']:.3f}" if "error" not in m else f"{who} failed" for who, m in row.items())
            print(f"{name}, {case}: {', '.join(shown)} ms", flush=True)
    if not args.out:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    entry = {
        "command": " ".join(["python", "tools/bench_kernels.py", *sys.argv[1:]]),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(device),
        "load": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{n: installed.get(n, "none") for n in ("torch", "triton")}},
        "seed": 0,
    }
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(old | {name: entry | {"cases": m} for name, m in measured.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
