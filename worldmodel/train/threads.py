"""How many CPU threads an agent learns fastest with: small networks lose more by sharing work than they gain."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldmodel.protocols import Agent
from worldmodel.types import ArraySpec, Batch, EnvSpec

LARGE = 2.0
"""Seconds of an update from which on it is worth all cores."""
CALLS = 4
"""For each number of threads; the quickest counts, so the first, which warms up, does not."""


def tune_threads(
    agent: Agent[Any], spec: EnvSpec, *, batch_size: int, length: int, cores: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Time updates on an empty batch with all cores, half of them, a quarter, down to 1, for as long as fewer are
    quicker, and set torch's threads to the best. The agent is afterwards as it was."""
    batch = _empty_batch(spec, agent.memory_spec, (batch_size, length))
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    best, fastest, threads = cores, float("inf"), cores
    while threads:
        torch.set_num_threads(threads)
        spent = []
        for _ in range(CALLS):
            start = clock()
            agent.learn(batch)
            spent.append(clock() - start)
            if spent[-1] > LARGE:
                break
        if min(spent) >= fastest:
            break
        best, fastest = threads, min(spent)
        if fastest > LARGE:
            break
        threads //= 2
    torch.set_num_threads(best)
    agent.load_state_dict(before)
    return best


def _empty_batch(spec: EnvSpec, memory: dict[str, ArraySpec], lead: tuple[int, int]) -> Batch:
    """A batch (B, T, ...) of zeros in the middle of an episode."""

    def zeros(array: ArraySpec, *axes: int) -> Tensor:
        return torch.zeros(*axes, *array.shape, dtype=getattr(torch, array.dtype))

    action, no = torch.zeros(*lead, spec.action.size), torch.zeros(lead, dtype=torch.bool)
    return Batch(
        obs={key: zeros(array, *lead) for key, array in spec.obs.items()},
        action=action, prev_action=action, reward=torch.zeros(lead), is_first=no, is_last=no, is_terminal=no,
        context={name: zeros(array, lead[0]) for name, array in memory.items()},
        memory={name: zeros(array, *lead) for name, array in memory.items()},
    )
