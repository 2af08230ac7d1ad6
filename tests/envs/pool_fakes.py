"""Environments that misbehave on order, for test_pool.py; imported by worker processes, so without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.errors import EnvError
from worldmodel.specs import ActionSpec, ArraySpec, BatchStep, EnvSpec, EnvStep

LENGTH = 5


@dataclass(frozen=True, kw_only=True)
class FakeConfig:
    """Counts to LENGTH. ``fault`` happens to environment ``row``, when ``at`` steps of its life are done."""

    fault: str = ""
    row: int = 1
    at: int = 2
    once: str = ""
    """A file that says the fault has happened; empty: it happens in every life."""
    step_seconds: float = 0.0
    name: str = "fake"

    def build(self, index: int = 0) -> Fake:
        return Cloneable(self, index) if self.fault != "unclonable" else Fake(self, index)


class Fake:
    def __init__(self, config: FakeConfig, index: int) -> None:
        self.config, self.index = config, index
        self.age, self.t = 0, 0
        self.rng = np.random.default_rng(0)
        if self._is_due("build user"):
            raise EnvError("no GL here: install libegl1")
        if self._is_due("build"):
            raise KeyError("whoops")
        if self._is_due("build exit"):
            os._exit(7)
        if config.fault == "child":
            child = subprocess.Popen(["sleep", "60"])
            Path(f"{config.once}.{index}").write_text(str(child.pid))
        size = 3 if self._is_due("spec") else 2
        self.spec = EnvSpec(
            name="fake",
            obs={
                "vector": ArraySpec(shape=(size,), dtype="float32"),
                "choice": ArraySpec(shape=(), dtype="int64", classes=LENGTH + 1),
                "image": ArraySpec(shape=(4, 4, 3), dtype="uint8"),
            },
            action=ActionSpec(kind="continuous", size=2),
        )

    def reset(self, seed: int | None = None) -> EnvStep:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        if self._is_due("reset"):
            raise RuntimeError("no new episode")
        if self._is_due("reset user"):
            raise EnvError("no display here: set MUJOCO_GL")
        self.t = 0
        return EnvStep(obs=self._obs(), is_first=True)

    def step(self, action: np.ndarray) -> EnvStep:
        if self.config.step_seconds:
            time.sleep(self.config.step_seconds)
        self.age += 1
        self.t += 1
        step = EnvStep(obs=self._obs(), reward=float(action[0]), is_last=self.t == LENGTH)
        step.is_terminal = step.is_last and self.index % 2 == 0
        action[:] = np.nan  # ours to change
        for fault, act in _FAULTS.items():
            if self._is_due(fault):
                act(step)
        return step

    def render(self) -> np.ndarray | None:
        if self._is_due("render"):
            raise RuntimeError("no paint")
        if self._is_due("render exit"):
            os._exit(3)
        return np.full((6, 8, 3), self.t, np.uint8)

    def close(self) -> None:
        if self.config.fault == "close":
            raise RuntimeError("stuck door")
        if self.config.fault == "close hang":
            time.sleep(60)

    def _obs(self) -> dict[str, np.ndarray]:
        return {
            "choice": np.array(self.t, np.int64),
            "image": np.full((4, 4, 3), "torch" in sys.modules, np.uint8),
            "vector": np.array([self.t, self.rng.random()], np.float32),
        }

    def _is_due(self, fault: str) -> bool:
        config = self.config
        if config.fault != fault or config.row != self.index or self.age < config.at:
            return False
        if config.once:
            if Path(config.once).exists():
                return False
            Path(config.once).touch()
        return True


class Cloneable(Fake):
    def get_state(self) -> dict[str, Any]:
        if self._is_due("get_state"):
            raise RuntimeError("no photo")
        if self._is_due("get_state exit"):
            os._exit(4)
        return {"age": self.age, "t": self.t, "rng": self.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        if self.config.fault == "set_state":
            raise EnvError("the state belongs to another world")
        self.age, self.t = state["age"], state["t"]
        self.rng.bit_generator.state = state["rng"]


def _raise(step: EnvStep) -> None:
    raise ValueError("boom")


def _sleep(step: EnvStep) -> None:
    time.sleep(60)


def _poison(step: EnvStep) -> None:
    step.obs["vector"][1] = np.nan


def _widen(step: EnvStep) -> None:
    step.obs["vector"] = np.zeros(3, np.float32)


def _retype(step: EnvStep) -> None:
    step.obs["vector"] = step.obs["vector"].astype(np.float64)


def _overflow(step: EnvStep) -> None:
    step.obs["choice"] = np.array(LENGTH + 1, np.int64)


def _forget(step: EnvStep) -> None:
    del step.obs["image"]


def _enrich(step: EnvStep) -> None:
    step.reward = float("inf")


def _begin(step: EnvStep) -> None:
    step.is_first = True


_FAULTS = {
    "raise": _raise,
    "nan": _poison,
    "shape": _widen,
    "dtype": _retype,
    "class": _overflow,
    "key": _forget,
    "reward": _enrich,
    "first": _begin,
    "hang": _sleep,
    "sys.exit": lambda step: sys.exit("enough"),
    "exit": lambda step: os._exit(9),
    "kill": lambda step: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda step: os.kill(os.getpid(), signal.SIGSTOP),
}


@dataclass(frozen=True, kw_only=True)
class FakeBatchConfig:
    """N counters in one object."""

    fault: str = ""
    name: str = "fakes"

    def build(self, index: int = 0) -> Any:
        raise AssertionError("the batch is built instead")

    def build_batch(self, num_envs: int) -> FakeBatch:
        if self.fault == "build":
            raise EnvError("no batch today")
        return FakeBatch(self, num_envs)


class FakeBatch:
    def __init__(self, config: FakeBatchConfig, num_envs: int) -> None:
        self.fault, self.num_envs, self.closed = config.fault, num_envs, 0
        self.t = np.zeros(num_envs, np.int64)
        array = ArraySpec(shape=(1,), dtype="float32")
        self.spec = EnvSpec(name="fakes", obs={"x": array}, action=ActionSpec(kind="discrete", size=2))

    def reset(self, seed: int) -> BatchStep:
        self.t[:] = -1
        return self._say()

    def step(self, action: np.ndarray) -> BatchStep:
        if self.fault == "raise":
            raise ValueError("boom")
        return self._say()

    def _say(self) -> BatchStep:
        self.t = np.where(self.t == LENGTH, 0, self.t + 1)
        x = self.t.astype(np.float32)[:, None]
        if self.fault == "shape":
            x = x[:, 0]
        if self.fault == "nan" and self.t[0] == 2:
            x = x * np.nan
        no = np.zeros(self.num_envs, bool)
        first, last = self.t == 0, self.t == LENGTH
        return BatchStep(
            obs={"x": x}, reward=self.t.astype(np.float64), is_first=first, is_last=last, is_terminal=no
        )

    def render(self, index: int = 0) -> np.ndarray | None:
        return None

    def get_state(self) -> list[dict[str, Any]]:
        return [{"t": int(t)} for t in self.t]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        self.t = np.array([row["t"] for row in state])

    def close(self) -> None:
        self.closed += 1
