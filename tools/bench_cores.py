"""Cores beside each other on this machine: CPU time of an update at nano size, memory of a filtered sequence by T, and
of a planner's candidates that share a window or copy it.

    python tools/bench_cores.py --out docs/results/cores_cpu.json

An update is `Dreamer.learn` of the preset quickstart (16 x 16 steps); blocks of the cores alternate, and the time is
that of the process, on one thread. Memory is how far the process' peak grows while the world model's losses of 4
sequences of T steps are computed and differentiated, each core in a process of its own, at equal parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from worldmodel import tree
from worldmodel.check.samples import make_batch
from worldmodel.configs.sizes import NANO_CORES, dreamer
from worldmodel.models.cores.transformer import TransformerConfig
from worldmodel.train.manifest import provenance
from worldmodel.train.memory import keep_freed_memory
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec

SPEC = EnvSpec(
    name="bench", obs={"image": ArraySpec(shape=(32, 32, 3), dtype="uint8")}, action=ActionSpec(kind="discrete", size=3)
)
LENGTHS = (64, 256, 1024)


WIDTHS = {"mamba": "d_model", "transformer": "width"}
"""What decides how many parameters a core has."""


@functools.cache
def cores() -> dict[str, Any]:
    """Every nano core, and those of :data:`WIDTHS` as wide as makes their parameters most nearly those of the RSSM."""
    found: dict[str, Any] = dict(NANO_CORES)
    goal = parameters(NANO_CORES["rssm"])
    for name, field in WIDTHS.items():
        narrow = [dataclasses.replace(NANO_CORES[name], **{field: width}) for width in range(32, 161, 16)]
        found[f"{name}, of the RSSM's size"] = min(narrow, key=lambda core: abs(parameters(core) - goal))
    return found


def parameters(core: Any) -> int:
    """Of a core in the nano world model."""
    return sum(p.numel() for p in core.build(SPEC.action.size, 128).parameters())


def config(core: str) -> Any:
    """The nano Dreamer of quickstart with that core."""
    nano = dreamer("nano", imagination=10, lr=3e-3)
    return dataclasses.replace(nano, model=dataclasses.replace(nano.model, core=cores()[core]))


def updates(blocks: int, calls: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds of an update, as a run makes it: median, least and most over the blocks, and over the RSSM's."""
    keep_freed_memory()
    agents = {name: config(name).build(SPEC) for name in cores()}
    batch = make_batch(SPEC, 16, 16, firsts=((1, 4), (5, 9)))
    took: dict[str, list[float]] = {name: [] for name in agents}
    for block in range(blocks + 1):
        for name, agent in agents.items():
            start = time.process_time()
            for _ in range(calls):
                agent.learn(batch)
            if block:  # the first warms up
                took[name].append(1000 * (time.process_time() - start) / calls)
    base = statistics.median(took["rssm"])
    return {
        name: {
            "parameters_of_core": sum(p.numel() for p in agents[name].model.core.parameters()),
            "median_ms": round(statistics.median(ms), 1), "least_ms": round(min(ms), 1), "most_ms": round(max(ms), 1),
            "over_rssm": round(statistics.median(ms) / base, 2),
        }
        for name, ms in took.items()
    }


def growth(core: str) -> dict[str, float]:
    """By T, MiB by which this process' peak has grown since 2 steps."""
    model = config(core).model.build(SPEC)

    def run(steps: int) -> None:
        losses, _ = model.loss(make_batch(SPEC, 4, steps), model.initial(4))
        torch.stack([x.mean() for x in losses.values()]).sum().backward()

    run(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = {}
    for length in LENGTHS:
        run(length)
        grown[str(length)] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)
    return grown


def candidates(how: str) -> list[float]:
    """MiB by which this process' peak grows, and milliseconds of processor time, where STORM's Transformer steps 512
    candidates of one state three times: "shared" by a fork, or "copied"."""
    core = TransformerConfig().build(6, 1024).eval()
    state, action = core.initial(1), torch.zeros(512, 6)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with torch.no_grad():
        many = core.fork(state, 512) if how == "shared" else tree.map(lambda x: x.repeat_interleave(512, 0), state)
        for _ in range(3):
            many = core.step(many, action)
    took = 1000 * (time.process_time() - start)
    return [round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1), round(took)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--growth", metavar="CORE", help=argparse.SUPPRESS)
    parser.add_argument("--candidates", choices=["shared", "copied"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.candidates:
        args.out.write_text(json.dumps(candidates(args.candidates)))
        return
    if args.growth:
        args.out.write_text(json.dumps(growth(args.growth)))
        return
    memory: dict[str, dict[str, float]] = {}
    part = args.out.with_suffix(".part")
    planned: dict[str, dict[str, float]] = {}
    for how in ("shared", "copied"):
        subprocess.run([sys.executable, __file__, "--out", str(part), "--candidates", how], check=True)
        planned[how] = dict(zip(("peak_growth_MiB", "cpu_ms"), json.loads(part.read_text())))
    for name in ("rssm", *(name for name in cores() if name not in NANO_CORES)):
        subprocess.run([sys.executable, __file__, "--out", str(part), "--growth", name], check=True)
        memory[name] = json.loads(part.read_text())
    part.unlink()
    result = {
        "command": "python tools/bench_cores.py " + " ".join(sys.argv[1:]), **provenance(),
        "machine": f"{platform.processor() or platform.machine()}, shared with other work, 1 thread",
        "seed": 0, "update": updates(args.blocks, args.calls), "peak_growth_MiB": memory,
        "transformer_512_candidates_3_steps": planned,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
