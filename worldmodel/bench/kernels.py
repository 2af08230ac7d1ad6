"""Milliseconds of every kernel beside its reference, over what this machine can copy and multiply.

A kernel takes part by a file ``kernels/NAME/bench.py`` with ``cases(device)`` and ``TESTS``, files of tests/kernels: a
kernel that does not pass them is not reported.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worldmodel.bench.setup import load, surroundings
from worldmodel.bench.timing import Block, Clock, Plan, Subject, alternate, clock_of, run_block, subject, summary
from worldmodel.errors import UserError, unknown
from worldmodel.kernels.passes import Case

ROOT = Path(__file__).resolve().parents[2]
KERNELS = tuple(sorted(path.parent.name for path in (Path(__file__).parents[1] / "kernels").glob("*/bench.py")))
COMPILED = "reference, compiled"
IN_GRAPH = 20
"""Calls that one CUDA graph holds, so that launching it is shared by many."""

Say = Callable[[str], None]


def document(
    names: Sequence[str], *, device: torch.device, plan: Plan, said: dict[str, Any], say: Say
) -> dict[str, Any]:
    """Test, then time, and say under which conditions. No names: every kernel.

    Raises: UserError for a name that does not exist, where tests fail, and where there are none, outside a checkout.
    """
    for name in names:
        if name not in KERNELS:
            raise UserError(unknown("kernel", name, KERNELS))
    chosen = tuple(dict.fromkeys(names)) or KERNELS
    benches = {name: importlib.import_module(f"worldmodel.kernels.{name}.bench") for name in chosen}
    proofs = {}
    for name, bench in benches.items():
        say(f"{name}: tests")
        proofs[name] = prove(name, bench.TESTS)
    # threads that share a machine with others make times of small calls worthless
    torch.set_num_threads(1)
    before, limits = surroundings(device), ceilings(device, plan)
    kernels: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for name, bench in benches.items():
        torch.manual_seed(0)
        cases = bench.cases(device)
        kernels[name] = {
            "tests": proofs[name],
            "cases": {what: {"moved": case.moved, "operations": case.operations} for what, case in cases.items()},
        }
        for what, case in cases.items():
            say(f"{name}: {what}")
            rows |= {f"{name}: {what}: {who}": row for who, row in measure(case, limits, device, plan).items()}
    return {
        "part": "kernels", **said, **before, "seed": 0, "load_at_end": load(), "ceilings": limits, "kernels": kernels,
        "rows": rows,
    }


@functools.lru_cache
def prove(name: str, tests: tuple[str, ...]) -> str:
    """Run a kernel's tests in a process of their own; what pytest says in the end."""
    folder = ROOT / "tests" / "kernels"
    if not folder.is_dir():
        raise UserError(
            "bench kernels reports kernels that pass their tests, which only a checkout has; run it in a clone of the "
            "repository"
        )
    files = [str((folder / file).relative_to(ROOT)) for file in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing was said"]
    if done.returncode:
        failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
        raise UserError(
            f"the tests of {name} do not pass, so nothing is reported: {failed}; `python -m pytest {' '.join(files)}` "
            "tells more"
        )
    return lines[-1]


def ceilings(device: torch.device, plan: Plan) -> dict[str, float]:
    """What the machine does at best: bytes that a copy reads and writes, and operations of a matrix product, both a
    millisecond; of large ones, in bfloat16 on a GPU and float32 on a CPU."""
    on_gpu = device.type == "cuda"
    source = torch.zeros(2**28 if on_gpu else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    width = 8192 if on_gpu else 512
    factor = torch.randn(width, width, device=device).to(torch.bfloat16 if on_gpu else torch.float32)
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: factor @ factor}
    clock = clock_of(device)
    blocks = alternate({name: subject(call, clock) for name, call in calls.items()}, plan)
    ms = {name: summary(row)["median_ms"] for name, row in blocks.items()}
    return {
        "copy_bytes_per_ms": round(2 * source.numel() / ms["copy"]),
        "matmul_operations_per_ms": round(2 * width**3 / ms["matmul"]),
    }


def measure(case: Case, limits: dict[str, float], device: torch.device, plan: Plan) -> dict[str, Any]:
    """A row for each implementation, on a GPU also for calls inside a CUDA graph: times, and these over the least that
    copying the bytes and multiplying would take, and over the compiled reference's. What fails says so in its row."""
    subjects: dict[str, Subject] = {}
    rows: dict[str, Any] = {}
    clock = clock_of(device)
    for who, call in case.calls.items():
        try:
            call()
            subjects[who] = subject(call, clock)
            if device.type == "cuda":
                subjects[f"{who}, in a graph"] = captured(call, clock)
        except Exception as error:
            rows[who] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    copy = case.moved / limits["copy_bytes_per_ms"]
    matmul = case.operations / limits["matmul_operations_per_ms"]
    for who, blocks in alternate(subjects, plan).items():
        row = rows[who] = summary(blocks)
        row |= {"over_copy": _times(row["median_ms"], copy), "over_matmul": _times(row["median_ms"], matmul)}
    for who in subjects:
        base = COMPILED + ", in a graph" * who.endswith("in a graph")
        if base in subjects:
            rows[who]["over_compiled"] = _times(rows[who]["median_ms"], rows[base]["median_ms"])
    return rows


def captured(call: Callable[[], object], clock: Clock) -> Subject:
    """Calls inside a CUDA graph, which nobody has to launch one by one; at least ``IN_GRAPH`` of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(IN_GRAPH):
            call()

    def run(count: int) -> Block:
        block = run_block(graph.replay, max(1, count // IN_GRAPH), clock)
        return Block(
            calls_ms=[ms / IN_GRAPH for ms in block.calls_ms], wall_ms=block.wall_ms / IN_GRAPH,
            cpu_ms=block.cpu_ms / IN_GRAPH,
        )

    return run


def table(found: dict[str, Any]) -> RenderableType:
    """The document for people."""
    machine, limits = found["machine"], found["ceilings"]
    title = (
        f"kernels: {machine['gpu'] or machine['cpu']}, {found['threads']} threads, load {found['load']} to "
        f"{found['load_at_end']}; a copy moves {limits['copy_bytes_per_ms'] / 1e6:.3g} GB/s, a matrix product does "
        f"{limits['matmul_operations_per_ms'] / 1e9:.3g} TFLOP/s"
    )
    parts: list[RenderableType] = [Text(title, style="bold")]
    for kernel, facts in found["kernels"].items():
        for case in facts["cases"]:
            times = Table(box=None, padding=(0, 1, 0, 2))
            times.add_column("", min_width=32)
            for name in ("ms", "p95", "x copy", "x matmul", "x compiled"):
                times.add_column(name, justify="right", min_width=9)
            parts += [Text(f"{kernel}: {case}"), times]
            begins = f"{kernel}: {case}: "
            for name, row in found["rows"].items():
                who = name.removeprefix(begins)
                if who == name:
                    continue
                if "error" in row:
                    parts.append(Text(f"  {who}: {row['error']}", style="yellow"))
                    continue
                numbers = [f"{row[key]:.4g}" for key in ("median_ms", "p95_ms")]
                for key in ("over_copy", "over_matmul", "over_compiled"):
                    numbers.append(f"{row[key]:.3g}" if key in row else "")
                times.add_row(who, *numbers)
    return Group(*parts)


def _times(ms: float, least: float) -> float:
    return round(ms / least, 3) if least else float("inf")
