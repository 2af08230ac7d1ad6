"""Running means of metrics that stay on the device until a row is written, and wall time by part of the loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums of metrics; ``update/`` names are counters, of which the last value counts."""

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in scalars without waiting for the device."""
        for name, value in metrics.items():
            if name.startswith("update/") or name not in self._sum:
                self._sum[name], self._count[name] = value.detach().clone(), 1
            else:
                self._sum[name] = self._sum[name] + value.detach()
                self._count[name] += 1

    @property
    def is_waiting(self) -> bool:
        """Whether anything came in since the last row."""
        return bool(self._sum)

    def take(self) -> dict[str, float]:
        """Means since the last call; one transfer."""
        if not self._sum:
            return {}
        names = sorted(self._sum)
        # losses live on the learner's device, episode returns on the host
        device = next((x.device for x in self._sum.values() if x.device.type != "cpu"), torch.device("cpu"))
        values = torch.stack([(self._sum[n].float() / self._count[n]).to(device) for n in names]).tolist()
        self._sum, self._count = {}, {}
        return dict(zip(names, values))

    def state(self) -> dict[str, Any]:
        """As plain data, exact."""
        return {name: [float(x), self._count[name]] for name, x in self._sum.items()}

    def load(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self._sum = {name: torch.tensor(x, device=device) for name, (x, _) in state.items()}
        self._count = {name: int(n) for name, (_, n) in state.items()}


class Clock:
    """Wall time by part of the loop, for the display; never part of what a run computes."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._calls: dict[str, int] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] = self._spent.get(part, 0.0) + time.perf_counter() - start
            self._calls[part] = self._calls.get(part, 0) + 1

    def take(self) -> dict[str, float]:
        """Mean milliseconds of a call of each part since the last take."""
        out = {part: 1000 * spent / self._calls[part] for part, spent in self._spent.items()}
        self._spent, self._calls = {}, {}
        return out


class Episodes:
    """Returns and lengths of the episodes under way in N training environments."""

    def __init__(self, num_envs: int) -> None:
        self.returns, self.lengths = [0.0] * num_envs, [0] * num_envs

    def add(self, reward: Tensor, is_first: Tensor, is_last: Tensor) -> list[tuple[float, int]]:
        """Take in one step (N,); gives (return, length in decisions) of every episode that ended."""
        ended = []
        for i, (r, first, last) in enumerate(zip(reward.tolist(), is_first.tolist(), is_last.tolist())):
            if first:
                self.returns[i], self.lengths[i] = 0.0, 0
            else:
                self.lengths[i] += 1
            self.returns[i] += r
            if last:
                ended.append((self.returns[i], self.lengths[i]))
        return ended

    def state(self) -> dict[str, Any]:
        return {"returns": list(self.returns), "lengths": list(self.lengths)}

    def load(self, state: dict[str, Any]) -> None:
        self.returns, self.lengths = list(state["returns"]), list(state["lengths"])
