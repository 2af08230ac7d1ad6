"""Latency of acting: from observations on the host to actions on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worldmodel.bench.setup import Bench, build_agent, env_spec, parameter_count, random_step
from worldmodel.bench.timing import HostClock, alternate, subject, summary
from worldmodel.protocols import Agent
from worldmodel.types import EnvSpec


def measure(bench: Bench) -> dict[str, Any]:
    """A row for each number of environments."""
    spec, device = env_spec(bench.run), bench.device
    agent = build_agent(bench.run, spec, device)
    # actions on the host wait for the device themselves, so wall time is the latency
    subjects = {f"{n} environments": subject(_acting(agent, spec, n), HostClock()) for n in bench.batches}
    blocks = alternate(subjects, bench.plan)
    rows = {}
    for n, (name, row) in zip(bench.batches, blocks.items()):
        numbers = summary(row)
        rows[name] = numbers | {"steps_per_second": round(1e3 * n / numbers["median_ms"], 1)}
    return {"parameters": parameter_count(agent), "rows": rows}


def _acting(agent: Agent[Any], spec: EnvSpec, count: int) -> Callable[[], object]:
    step, carry = random_step(spec, count, 1), agent.initial(count)

    def act() -> None:
        nonlocal carry
        action, carry = agent.act(carry, step, explore=True)
        action.cpu()

    return act
