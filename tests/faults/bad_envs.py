"""Environments that misbehave on order; imported by worker processes, so without torch."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec, EnvStep

MIB = 1 << 20
RELEASE = threading.Event()
"""What a hanging environment waits for."""


@dataclass(frozen=True, kw_only=True)
class BadConfig:
    """"leaks": keeps 16 MiB more with each step, of 128 MiB that its process may have. "hangs": step 3 waits."""

    fault: str
    name: str = "bad"

    def build(self, index: int = 0) -> Bad:
        return Bad(self, index)


class Bad:
    def __init__(self, config: BadConfig, index: int) -> None:
        self.fault, self.index, self.t = config.fault, index, 0
        self.kept: list[bytearray] = []
        self.spec = EnvSpec(
            name="bad", obs={"t": ArraySpec(shape=(1,), dtype="float32")}, action=ActionSpec(kind="discrete", size=2)
        )
        if self.fault == "leaks" and index == 1:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + 128 * MIB, used + 128 * MIB))

    def reset(self, seed: int | None = None) -> EnvStep:
        return EnvStep(obs=self._obs(), is_first=True)

    def step(self, action: np.ndarray) -> EnvStep:
        self.t += 1
        if self.fault == "leaks" and self.index == 1:
            self.kept.append(bytearray(16 * MIB))
        if self.fault == "hangs" and self.t == 3:
            RELEASE.wait(60)
        return EnvStep(obs=self._obs())

    def _obs(self) -> dict[str, np.ndarray]:
        return {"t": np.array([self.t], np.float32)}

    def render(self) -> None:
        return None

    def close(self) -> None:
        return None
