"""Latency of acting: from observations on the host to actions on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from worldmodel.bench.peers import Peer, find_adapter
from worldmodel.bench.setup import Bench, build_agent, env_spec, parameter_count, precision, random_step
from worldmodel.bench.timing import Block, HostClock, alternate, ratios, subject, summary
from worldmodel.config import to_json
from worldmodel.protocols import Agent
from worldmodel.types import EnvSpec


def measure(bench: Bench) -> dict[str, Any]:
    """A row for each number of environments; against a peer the rows of both and their ratios.

    Raises: UserError where ``--against`` holds no peer, or one that cannot do the same.
    """
    adapter = find_adapter(bench.against, "act") if bench.against is not None else None
    spec, device = env_spec(bench.run), bench.device
    agent = build_agent(bench.run, spec, device)
    # actions on the host wait for the device themselves, so wall time is the latency
    subjects = {n: subject(_acting(agent, spec, n), HostClock()) for n in bench.batches}
    facts: dict[str, Any] = {"parameters": parameter_count(agent)}
    if adapter is None or bench.against is None:
        blocks = alternate({_name(n): call for n, call in subjects.items()}, bench.plan)
        return facts | {"rows": {_name(n): _row(row, n) for n, row in zip(bench.batches, blocks.values())}}
    rows: dict[str, Any] = {}
    with Peer(adapter, bench.against, bench.python) as peer:
        answer = peer.ask({
            "do": "setup", "run": to_json(bench.run), "spec": dataclasses.asdict(spec), "device": device.type,
            "threads": torch.get_num_threads(), "precision": precision(bench.run, device),
            "batches": list(bench.batches),
        })
        bench.say(f"{peer.name}: {answer.get('parameters', 0):,} parameters, {answer.get('settings', '')}")
        for n, call in subjects.items():
            blocks = alternate({"ours": call, peer.name: peer.subject(_name(n))}, bench.plan)
            rows |= {f"{_name(n)}, {who}": _row(row, n) for who, row in blocks.items()}
            rows[f"{_name(n)}, ours / {peer.name}"] = ratios(*blocks.values())
    return facts | {"peer": {"name": peer.name, **answer}, "rows": rows}


def _name(count: int) -> str:
    return f"{count} environments"


def _row(blocks: list[Block], count: int) -> dict[str, Any]:
    numbers = summary(blocks)
    return numbers | {"steps_per_second": round(1e3 * count / numbers["median_ms"], 1)}


def _acting(agent: Agent[Any], spec: EnvSpec, count: int) -> Callable[[], object]:
    step, carry = random_step(spec, count, 1), agent.initial(count)

    def act() -> None:
        nonlocal carry
        # exploring may be chance for as long as nothing was learned
        action, carry = agent.act(carry, step, explore=False)
        action.cpu()

    return act
