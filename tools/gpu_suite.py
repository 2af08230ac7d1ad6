"""What only a GPU can show, in bounded pieces: tests, milliseconds per update, latency of acting, learning.

    python tools/gpu_suite.py all --minutes 9
    python tools/gpu_suite.py update --minutes 5
    python tools/gpu_suite.py learn --run-dir runs/stand --preset dmc.vision --task walker_stand -- --env.render ray
    python tools/gpu_suite.py update --device cpu --smoke

Every command keeps to --minutes, writes one small JSON to --out and skips rows it already holds for this commit, so a
call that ran out of time is simply repeated; --fresh measures again. `learn` starts the run folder or goes on from its
newest checkpoint, stops in time by the same request that Ctrl-C makes, and compares with the published curve.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from worldmodel import runs
from worldmodel.agents.dreamer.agent import Dreamer
from worldmodel.configs.sizes import dreamer
from worldmodel.presets import find_preset, parse
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay, make_replay
from worldmodel.train.manifest import provenance
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec, Step

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "results" / "published_dmc_vision_early.json"
PROPRIO = {
    "orientations": ArraySpec(shape=(14,), dtype="float32"),
    "height": ArraySpec(shape=(1,), dtype="float32"),
    "velocity": ArraySpec(shape=(9,), dtype="float32"),
}
"""DMC walker from state."""
PIXELS = {"image": ArraySpec(shape=(64, 64, 3), dtype="uint8")}
MODELS: dict[str, tuple[Any, dict[str, ArraySpec]]] = {
    "1m-proprio": ("1m", PROPRIO), "12m-pixels": ("12m", PIXELS), "50m-pixels": ("50m", PIXELS),
}
PRECISIONS: tuple[Any, ...] = ("float32", "bfloat16")
ENVS = 16


class Record:
    """One JSON file of rows; a row is measured once per commit."""

    def __init__(self, args: argparse.Namespace, what: str) -> None:
        self.path = args.out / f"gpu_{args.command}{'_smoke' if args.smoke else ''}.json"
        self.document: dict[str, Any] = {
            "what": what,
            "command": "python tools/gpu_suite.py " + " ".join(sys.argv[1:]),
            "device": device_name(args.device),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
            "provenance": provenance(),
            "rows": {},
        }
        if self.path.is_file() and not args.fresh:
            old = json.loads(self.path.read_text())
            if self._measured(old) == self._measured(self.document):
                self.document["rows"] = old["rows"]

    @staticmethod
    def _measured(document: dict[str, Any]) -> tuple[Any, ...]:
        """What a row is true of."""
        return document["device"], document["provenance"]["commit"], document["provenance"]["versions"]

    def measure(self, name: str, call: Callable[[], dict[str, Any]], deadline: float) -> None:
        """Add a row unless it is there already or no time is left, and write the file."""
        if name in self.document["rows"]:
            print(f"{name}: measured before")
        elif time.monotonic() >= deadline:
            print(f"{name}: no time left, repeat the command")
        else:
            self.document["rows"][name] = row = call()
            print(f"{name}: {json.dumps(row)}", flush=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.document, indent=1) + "\n")


def device_name(device: str) -> str:
    """The accelerator as its driver names it, or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def synchronize(device: str) -> None:
    """Wait until the device has done all it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], device: str, *, warmup: int, count: int) -> dict[str, Any]:
    """Milliseconds per call: median, quartiles and extremes over ``count`` calls, by CUDA events (wall clock on a CPU);
    and over all calls in one go, without waiting in between."""
    for _ in range(warmup):
        call()
    synchronize(device)
    start = time.perf_counter()
    spent: list[float] = []
    if device == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        synchronize(device)
        spent = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    else:
        for _ in range(count):
            before = time.perf_counter()
            call()
            spent.append(1e3 * (time.perf_counter() - before))
    whole = 1e3 * (time.perf_counter() - start) / count
    low, median, high = statistics.quantiles(spent, n=4)
    numbers = {"median_ms": median, "q1_ms": low, "q3_ms": high, "min_ms": min(spent), "max_ms": max(spent)}
    numbers["wall_ms"] = whole
    return {name: round(x, 4) for name, x in numbers.items()} | {"calls": count, "warmup": warmup}


def launches(call: Callable[[], object], device: str) -> dict[str, Any]:
    """Kernels started by one call and the time they ran; {} on a CPU."""
    if device != "cuda":
        return {}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        synchronize(device)
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {"launches": len(kernels), "kernel_ms": round(sum(e.device_time for e in kernels) / 1e3, 3)}


# What is measured


def build(model: str, precision: Any, args: argparse.Namespace) -> Dreamer:
    """The agent of a row; with --smoke a small one of the same kind."""
    size, obs = MODELS[model]
    spec = EnvSpec(name=model, obs=obs, action=ActionSpec(kind="continuous", size=6))
    config = dreamer(size, precision=precision)
    if args.smoke:
        config = dataclasses.replace(dreamer("nano", precision=precision), imagination=3)
    return config.build(spec, device=args.device)


def random_step(spec: EnvSpec, count: int, seed: int) -> Step:
    """One step of ``count`` environments, on the host as environments give it."""
    g = torch.Generator().manual_seed(seed)
    obs = {
        key: torch.randint(0, 256, (count, *s.shape), dtype=torch.uint8, generator=g) if s.is_image
        else torch.randn(count, *s.shape, generator=g)
        for key, s in spec.obs.items()
    }
    flags = {name: torch.zeros(count, dtype=torch.bool) for name in ("is_first", "is_last", "is_terminal")}
    return Step(obs=obs, reward=torch.rand(count, generator=g), **flags)


def filled(agent: Dreamer, args: argparse.Namespace) -> RingReplay:
    """A replay on the learner's device with random steps."""
    batch, length = (2, 4) if args.smoke else (16, 64)
    config = ReplayConfig(capacity=batch * (length + 1) * 8, batch_size=batch, length=length)
    envs = 2 if args.smoke else ENVS
    replay = make_replay(config, agent.spec, agent.memory_spec, envs, device=torch.device(args.device), seed=0)
    carry = agent.initial(envs)
    for t in range(2 * length + 2):
        step = random_step(agent.spec, envs, t)
        action, carry = agent.act(carry, step, explore=True)
        replay.add(step, action, agent.memory(carry))
    return replay


def update(args: argparse.Namespace, deadline: float) -> int:
    """Milliseconds of Dreamer.learn alone, and of a whole update with drawing and writing back."""
    record = Record(args, "one update of Dreamer, B16 T64 H15, eager; whole_update: draw, learn and write latents back")
    warmup, count = (1, 3) if args.smoke else (10, 50)

    def row(model: str, precision: str) -> dict[str, Any]:
        agent = build(model, precision, args)
        replay = filled(agent, args)
        batch = replay.sample()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = {"parameters": sum(p.numel() for p in agent.optimizer.parameters)}
        result["learn"] = timed(lambda: agent.learn(batch), args.device, warmup=warmup, count=count)

        def whole() -> None:
            drawn = replay.sample()
            replay.write_back(drawn, agent.learn(drawn))

        result["whole_update"] = timed(whole, args.device, warmup=warmup, count=count)
        if args.device == "cuda":
            result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        metrics = agent.learn(batch).metrics
        result["finite"] = bool(torch.isfinite(metrics["loss/total"]))
        result["skipped_updates"] = int(metrics["update/skipped"])
        return result | launches(lambda: agent.learn(batch), args.device)

    for model in MODELS:
        for precision in PRECISIONS:
            record.measure(f"{model}, {precision}", lambda m=model, p=precision: row(m, p), deadline)
    return 0


def act(args: argparse.Namespace, deadline: float) -> int:
    """Latency of Dreamer.act: from observations on the host to actions on the host."""
    record = Record(args, "Dreamer.act, observations on the host in, actions on the host out: latency of a call")
    warmup, count = (1, 3) if args.smoke else (20, 200)

    def row(model: str, precision: str, envs: int) -> dict[str, Any]:
        agent = build(model, precision, args)
        step, carry = random_step(agent.spec, envs, 0), agent.initial(envs)
        for _ in range(warmup):
            agent.act(carry, step, explore=True)[0].cpu()
        spent = []
        for _ in range(count):
            start = time.perf_counter()
            action, carry = agent.act(carry, step, explore=True)
            action.cpu()
            spent.append(1e3 * (time.perf_counter() - start))
        cuts = statistics.quantiles(spent, n=20)
        return {"median_ms": round(statistics.median(spent), 4), "p95_ms": round(cuts[-1], 4), "calls": count}

    for model in MODELS:
        for precision in PRECISIONS:
            for envs in (1, 8, 64):
                name = f"{model}, {precision}, {envs} environments"
                record.measure(name, lambda m=model, p=precision, n=envs: row(m, p, n), deadline)
    return 0


def tests(args: argparse.Namespace, deadline: float) -> int:
    """The tests that are marked gpu."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfE", *(["tests/gpu"] if args.smoke else ["tests"])]
    status = 1
    record = Record(args, "pytest -m gpu")
    record.document["rows"] = {}  # cheap, and a failed run must be repeated

    def row() -> dict[str, Any]:
        nonlocal status
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, deadline - time.monotonic())
            )
        except subprocess.TimeoutExpired as late:
            return {"passed": False, "last_lines": [f"stopped after {late.timeout:.0f} s"]}
        status = done.returncode
        return {"passed": status == 0, "last_lines": done.stdout.splitlines()[-40:]}

    record.measure("pytest", row, deadline)
    return status


# Learning


def learn(args: argparse.Namespace, deadline: float) -> int:
    """Start a run or go on with it until the time is nearly over, then compare its curve."""
    folder = args.run_dir or (Path(tempfile.mkdtemp()) / "run" if args.smoke else ROOT / "runs" / f"gpu-{args.task}")
    reserve = 0.0 if args.smoke else 45.0  # a checkpoint of the replay takes its time
    timer = threading.Timer(max(5.0, deadline - time.monotonic() - reserve), os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        if (folder / "config.json").is_file():
            summary = runs.resume(folder, live=False)
        else:
            words = [*(["--task", args.task] if args.task else []), "--device", args.device, *args.overrides]
            run, arguments, _ = parse(find_preset(args.preset), words, Nothing(), prog="gpu_suite learn")
            summary = runs.start(run, folder, preset=args.preset, preset_args=arguments, live=False)
    finally:
        timer.cancel()
    points = curve(folder)
    rows = against_published(points, args.task)
    for row in rows:
        print("{frames:>8} frames: {ours:8.1f}   published {mean:4d} [{low}-{high}]".format(**row))
    record = Record(args, "a learning run beside the published one: training episodes in the window before each mark")
    record.path = record.path.with_name(f"gpu_learn_{args.task or args.preset}{'_smoke' if args.smoke else ''}.json")
    record.document["rows"] = {
        "run": {
            "preset": args.preset, "overrides": args.overrides, "reason": summary.reason, "updates": summary.updates,
            "env_steps": summary.env_steps, "seconds_of_this_call": round(summary.seconds, 1),
        },
        "against_published": rows,
        "curve": points,
    }
    record.path.parent.mkdir(parents=True, exist_ok=True)
    record.path.write_text(json.dumps(record.document, indent=1) + "\n")
    print(f"{folder}: {summary.env_steps} decisions, {summary.updates} updates, ended by {summary.reason}")
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing:
    """No options beside the run's own."""


def curve(folder: Path) -> dict[str, list[list[float]]]:
    """[frames, return] of training episodes and evaluations."""
    path = folder / "scores.jsonl"
    found: dict[str, list[list[float]]] = {}
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        found.setdefault(line["kind"], []).append([line["frames"], round(line["return"], 3)])
    return found


def against_published(points: dict[str, list[list[float]]], task: str) -> list[dict[str, Any]]:
    """Ours beside mean, lowest and highest published seed at every mark that the run has reached."""
    table = json.loads(PUBLISHED.read_text())
    episodes = points.get("train", [])
    rows = []
    for mark, (mean, low, high) in zip(table["frames"], table["tasks"].get(task, [])):
        window = [r for frames, r in episodes if mark - table["window_frames"] < frames <= mark]
        if window and episodes[-1][0] >= mark:
            ours = round(statistics.mean(window), 1)
            rows.append({"frames": mark, "ours": ours, "episodes": len(window), "mean": mean, "low": low, "high": high})
    return rows


COMMANDS: dict[str, Callable[[argparse.Namespace, float], int]] = {
    "tests": tests, "update": update, "act": act, "learn": learn,
}


def everything(args: argparse.Namespace, deadline: float) -> int:
    """All commands in order; learning gets the time that is left."""
    status = 0
    for name, command in COMMANDS.items():
        args.command = name
        status = max(status, command(args, deadline))
    return status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*COMMANDS, "all"])
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock of this call")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to test the tool itself")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file already holds")
    parser.add_argument("--preset", default="dmc.vision", help="learn: preset to run")
    parser.add_argument("--task", default="walker_stand", help="learn: its task; empty for a preset without one")
    parser.add_argument("--run-dir", type=Path, default=None, help="learn: run folder to start or to go on with")
    parser.epilog = "learn: what follows -- are options of the run"
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.overrides = words[cut + 1 :]
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_suite: torch sees no CUDA device here; run it on one, or test the tool with --device cpu --smoke")
        return 2
    deadline = time.monotonic() + 60 * args.minutes
    return everything(args, deadline) if args.command == "all" else COMMANDS[args.command](args, deadline)


if __name__ == "__main__":
    sys.exit(main())
