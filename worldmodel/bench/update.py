"""Milliseconds of an update: as a whole, by part, and beside a peer's."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.bench.parts import Watch
from worldmodel.bench.peers import Peer, find_adapter
from worldmodel.bench.setup import (
    EPISODE,
    Bench,
    build_agent,
    env_spec,
    filled_replay,
    networks,
    parameter_count,
    precision,
)
from worldmodel.bench.timing import Subject, alternate, ratios, subject, summary
from worldmodel.config import to_json
from worldmodel.protocols import Agent, Holds
from worldmodel.replay.ring import RingReplay
from worldmodel.types import Batch, EnvSpec

PEER_ROWS = ("learn", "update")
"""What is measured beside a peer: an update on one batch that both are given, and a whole one, each with its replay."""


def measure(bench: Bench) -> dict[str, Any]:
    """Rows "sample", "learn", "write_back" and "update" (all three), with "phases" and "inside" of learn, or, against a
    peer, the rows of both and their ratios.

    Raises: UserError where ``--against`` holds no peer, or one that cannot do the same.
    """
    adapter = find_adapter(bench.against, "update") if bench.against is not None else None
    spec, device = env_spec(bench.run), bench.device
    agent = build_agent(bench.run, spec, device)
    replay = filled_replay(
        bench.run.replay, spec, agent, bench.run.train.num_envs, bench.held, device=device, seed=bench.run.seed
    )
    _tell(agent, replay)
    batch = replay.sample()
    subjects = _subjects(bench, agent, replay, batch)
    facts: dict[str, Any] = {
        "batch": [bench.run.replay.batch_size, bench.run.replay.length],
        "obs": {key: list(array.shape) for key, array in spec.obs.items()},
        "steps_held": len(replay),
        "parameters": parameter_count(agent),
        "first_call_ms": round(subjects["learn"](1).wall_ms, 1),
    }
    if adapter is not None and bench.against is not None:
        with Peer(adapter, bench.against, bench.python) as peer:
            facts |= _beside(bench, peer, subjects, batch, spec)
    else:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        blocks = alternate(subjects, bench.plan)
        facts["rows"] = {name: summary(row) for name, row in blocks.items()}
        if device.type == "cuda":
            facts["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
            facts["kernels"] = kernels(agent, batch)
        # a captured graph shows no parts
        alone = build_agent(bench.run, spec, device, eager=True)
        _tell(alone, replay)
        facts |= inside(bench, alone, batch)
    return facts | _health(agent, batch)


def _tell(agent: Agent[Any], replay: RingReplay) -> None:
    """Who learns from what it holds itself gets all that there is."""
    if isinstance(agent, Holds):
        agent.hold(replay.read(replay.window.low, replay.window.total))


def _subjects(bench: Bench, agent: Agent[Any], replay: RingReplay, batch: Batch) -> dict[str, Subject]:
    update = agent.learn(batch)

    def whole() -> None:
        drawn = replay.sample()
        replay.write_back(drawn, agent.learn(drawn))

    calls = {
        "sample": replay.sample,
        "learn": lambda: agent.learn(batch),
        "write_back": lambda: replay.write_back(batch, update),
        "update": whole,
    }
    return {name: subject(call, bench.clock) for name, call in calls.items()}


def inside(bench: Bench, agent: Agent[Any], batch: Batch) -> dict[str, Any]:
    """Phases of ``learn``, and what each part of the networks takes of its forward pass, run eagerly and waiting for
    the device at each: medians over calls."""
    root = networks(agent)
    if root is None:
        return {}
    watch = Watch(root, bench.clock)
    phases: dict[str, list[float]] = {}
    with watch.open():
        agent.learn(batch)
        watch.parts.clear()
        watch.calls.clear()
        for _ in range(bench.plan.blocks):
            for name, ms in watch.phases(lambda: agent.learn(batch)).items():
                phases.setdefault(name, []).append(ms)
    times = bench.plan.blocks
    parts = sorted(((name, ms / times) for name, ms in watch.parts.items()), key=lambda part: -part[1])
    return {
        "phases": {name: round(float(np.median(ms)), 4) for name, ms in phases.items()},
        "inside": {
            name: {"ms": round(ms, 4), "calls": watch.calls[name] // times} for name, ms in parts if ms >= 0.001
        },
    }


def kernels(agent: Agent[Any], batch: Batch) -> dict[str, Any]:
    """Kernels that one ``learn`` starts on a GPU, those within graphs too, and the time they run."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        agent.learn(batch)
        torch.cuda.synchronize()
    events = profiler.events() or []
    found = [event.device_time for event in events if event.device_type.name == "CUDA"]
    return {"count": len(found), "ms": round(sum(found) / 1e3, 3)}


def _beside(
    bench: Bench, peer: Peer, subjects: dict[str, Subject], batch: Batch, spec: EnvSpec
) -> dict[str, Any]:
    """The peer set up alike, and blocks of both in turn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch.npz"
        flags = {name: getattr(batch, name) for name in ("prev_action", "reward", "is_first", "is_last", "is_terminal")}
        arrays = flags | {f"obs/{key}": x for key, x in batch.obs.items()}
        np.savez(path, **{name: x.cpu().numpy() for name, x in arrays.items()})  # type: ignore[arg-type]
        alike = bench.run if bench.peer_agent is None else dataclasses.replace(bench.run, agent=bench.peer_agent)
        answer = peer.ask({
            "do": "setup", "run": to_json(alike), "batch": str(path), "held": bench.held, "episode": EPISODE,
            "spec": dataclasses.asdict(spec), "device": bench.device.type, "threads": torch.get_num_threads(),
            "precision": precision(bench.run, bench.device),
        })
    bench.say(f"{peer.name}: {answer.get('parameters', 0):,} parameters, {answer.get('settings', '')}")
    rows: dict[str, Any] = {}
    for name in PEER_ROWS:
        blocks = alternate({"ours": subjects[name], peer.name: peer.subject(name)}, bench.plan)
        rows |= {f"{name}, {who}": summary(row) for who, row in blocks.items()}
        rows[f"{name}, ours / {peer.name}"] = ratios(*blocks.values())
    return {"peer": {"name": peer.name, **answer}, "rows": rows}


def _health(agent: Agent[Any], batch: Batch) -> dict[str, Any]:
    """Whether what was timed is an update at all: finite losses."""
    losses = {key: x for key, x in agent.learn(batch).metrics.items() if key.startswith("loss/")}
    return {"finite": all(bool(torch.isfinite(x).all()) for x in losses.values()), "losses": len(losses)}
