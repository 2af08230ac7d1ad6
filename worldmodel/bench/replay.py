"""Milliseconds of drawing from a replay and adding to it, alone or beside a peer's."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from worldmodel.bench.peers import Peer, find_adapter
from worldmodel.bench.setup import EPISODE, Bench, build_agent, env_spec, filled_replay, random_action, random_step
from worldmodel.bench.timing import Subject, alternate, ratios, subject, summary
from worldmodel.replay.ring import RingReplay
from worldmodel.types import ArraySpec, EnvSpec, Update

PEER_ROWS = ("sample", "add_and_sample")


def measure(bench: Bench) -> dict[str, Any]:
    """Rows "sample", "sample_prioritized", "add_1", "add_N" for the run's N environments, "add_and_sample" (one step of
    one environment, one batch) and "write_back"; against a peer also its rows and the ratios.

    Raises: UserError where ``--against`` holds no peer.
    """
    adapter = find_adapter(bench.against, "replay") if bench.against is not None else None
    spec, device, count = env_spec(bench.run), bench.device, bench.run.train.num_envs
    agent = build_agent(bench.run, spec, device)
    memory_spec = agent.memory_spec
    config = dataclasses.replace(bench.run.replay, sampler="uniform")

    def filled(num_envs: int, sampler: Any = "uniform") -> RingReplay:
        chosen = dataclasses.replace(config, sampler=sampler)
        return filled_replay(chosen, spec, agent, num_envs, bench.held, device=device, seed=bench.run.seed)

    one = filled(1)
    facts: dict[str, Any] = {
        "batch": [config.batch_size, config.length], "steps_held": len(one),
        "memory": {key: list(array.shape) for key, array in memory_spec.items()},
    }
    subjects = {"sample": one.sample, "add_and_sample": lambda: (add_one(), one.sample())}
    add_one = _adding(one, spec, memory_spec, 1)
    ours = {name: subject(call, bench.clock) for name, call in subjects.items()}
    rows: dict[str, Any] = {}
    if adapter is not None and bench.against is not None:
        with Peer(adapter, bench.against, bench.python) as peer:
            facts["peer"] = {"name": peer.name, **_set_up(bench, peer, spec, memory_spec)}
            for name, mine in ours.items():
                blocks = alternate({"ours": mine, peer.name: peer.subject(name)}, bench.plan)
                rows |= {f"{name}, {who}": summary(row) for who, row in blocks.items()}
                rows[f"{name}, ours / {peer.name}"] = ratios(*blocks.values())
    else:
        rows |= {name: summary(row) for name, row in alternate(ours, bench.plan).items()}
    rows |= _alone(bench, one, spec, memory_spec)
    for num_envs in sorted({1, count}):
        add = subject(_adding(filled(num_envs), spec, memory_spec, num_envs), bench.clock)
        numbers = summary(alternate({"add": add}, bench.plan)["add"])
        rows[f"add_{num_envs}"] = numbers | {"steps_per_second": round(1e3 * num_envs / numbers["median_ms"])}
    prioritized = subject(filled(1, "prioritized").sample, bench.clock)
    rows["sample_prioritized"] = summary(alternate({"sample": prioritized}, bench.plan)["sample"])
    return facts | {"rows": rows}


def _adding(replay: RingReplay, spec: EnvSpec, memory_spec: dict[str, ArraySpec], count: int) -> Any:
    step, action = random_step(spec, count, 7), random_action(spec, count, 7)
    memory = {key: torch.zeros((count, *a.shape), dtype=getattr(torch, a.dtype)) for key, a in memory_spec.items()}
    return lambda: replay.add(step, action, memory)


def _alone(
    bench: Bench, replay: RingReplay, spec: EnvSpec, memory_spec: dict[str, ArraySpec]
) -> dict[str, Any]:
    """Writing latents back, where the agent keeps any."""
    if not memory_spec:
        return {}
    lead = (bench.run.replay.batch_size, bench.run.replay.length)
    batch = replay.sample()
    memory = {
        key: torch.zeros((*lead, *a.shape), dtype=getattr(torch, a.dtype), device=bench.device)
        for key, a in memory_spec.items()
    }
    update = Update(metrics={}, memory=memory)
    back: Subject = subject(lambda: replay.write_back(batch, update), bench.clock)
    return {"write_back": summary(alternate({"write_back": back}, bench.plan)["write_back"])}


def _set_up(bench: Bench, peer: Peer, spec: EnvSpec, memory_spec: dict[str, ArraySpec]) -> dict[str, Any]:
    answer = peer.ask({
        "do": "setup", "batch": bench.run.replay.batch_size, "length": bench.run.replay.length + 1,
        "held": bench.held, "episode": EPISODE, "spec": dataclasses.asdict(spec),
        "memory": {key: dataclasses.asdict(array) for key, array in memory_spec.items()},
        "device": bench.device.type, "threads": torch.get_num_threads(), "seed": bench.run.seed,
    })
    bench.say(f"{peer.name}: {answer.get('settings', '')}")
    return answer
