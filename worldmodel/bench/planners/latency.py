"""Layer D: how long a decision takes, from observations on the host to actions on the host, filtering included."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from worldmodel import presets
from worldmodel.bench.planners.contest import Contest, Row, attempt, contestant
from worldmodel.bench.setup import env_spec, parameter_count, random_step
from worldmodel.bench.timing import HostClock, Plan, alternate, subject, summary
from worldmodel.runs import pick_device
from worldmodel.train.compile import Mode, accelerate
from worldmodel.types import EnvSpec


def measure(
    contest: Contest, chosen: Sequence[str], plan: Plan, *, batches: Sequence[int] = (1, 8, 64), device: str = "auto"
) -> list[Row]:
    """A row for each preset ("quickstart --task glide"), planner, budget, way to run it, and number of environments.

    Agents are untrained: time does not depend on the weights.
    """
    where, rows = pick_device(device), []
    for words in chosen:
        name, *rest = words.split()
        run = presets.parse(presets.find_preset(name), rest, _Nothing(), prog=f"worldmodel bench planners {words}")[0]
        spec = env_spec(run)
        for planner in ("policy", *contest.names(spec.action.kind, policy=True, value=True)):
            for budget in contest.budgets if planner != "policy" else (0,):
                given = None if planner == "policy" else contestant(planner, budget, None)
                config = presets.planned(run, given).agent if given is not None else run.agent
                for mode in modes(where):
                    contest.say(f"{words}: {planner} {budget}, {mode}")
                    row = {"layer": "latency", "problem": words, "planner": planner, "budget": budget, "mode": mode}
                    rows.append(attempt(row, functools.partial(_timed, config, spec, mode, plan, batches, where)))
    return rows


def _timed(config: Any, spec: EnvSpec, mode: Mode, plan: Plan, batches: Sequence[int], device: torch.device) -> Row:
    agent = config.build(spec, device=device, seed=0)
    accelerate(agent, mode, device)
    calls = {str(n): subject(_acting(agent, spec, n), HostClock()) for n in batches}
    timed = {n: summary(found) for n, found in alternate(calls, plan).items()}
    for n, numbers in timed.items():
        numbers["per_second"] = round(1e3 * int(n) / numbers["median_ms"], 1)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {"batches": timed, "parameters": parameter_count(agent), "peak_gib": round(peak, 3)}


def modes(device: torch.device) -> tuple[Mode, ...]:
    """Ways to run a decision: on a GPU all of them, on a CPU as it comes."""
    return ("eager", "compile", "cudagraph", "compile+cudagraph") if device.type == "cuda" else ("eager",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Nothing:
    """No options beside the run's."""


def _acting(agent: Any, spec: EnvSpec, count: int) -> Callable[[], object]:
    step, carry = random_step(spec, count, 1), agent.initial(count)

    def act() -> None:
        nonlocal carry
        action, carry = agent.act(carry, step, explore=False)
        action.cpu()

    return act
