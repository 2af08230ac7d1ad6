"""Environment pools for the training loop: which kind suits an environment, and the step from numpy to torch."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from worldmodel.envs.batched import BatchedRows
from worldmodel.envs.host import Failure, Host
from worldmodel.envs.processes import ProcessRows
from worldmodel.envs.rows import SerialRows, explain_build
from worldmodel.envs.watchdog import Watchdog
from worldmodel.errors import DivergenceError, EnvError
from worldmodel.specs import ActionSpec, BatchStep, BuildsBatch, EnvConfig, EnvSpec
from worldmodel.types import Step

Kind = Literal["auto", "serial", "process", "batched"]

QUICK_STEP = 0.3e-3
"""Seconds: a step that is quicker than this is not worth sending to another process."""
_PROBE_STEPS, _PROBE_SECONDS = 20, 2.0


class Engine(Protocol):
    """What a pool wraps: N environments in numpy, with the reset rule of ``protocols.EnvPool``."""

    @property
    def spec(self) -> EnvSpec: ...
    @property
    def num_envs(self) -> int: ...
    def reset(self, seed: int) -> BatchStep: ...
    def send(self, action: np.ndarray) -> None: ...
    def receive(self) -> BatchStep: ...
    def render(self, index: int = 0) -> np.ndarray | None: ...
    def get_state(self) -> list[dict[str, Any]] | None: ...
    def set_state(self, state: list[dict[str, Any]]) -> None: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> None: ...


class Pool:
    """``protocols.EnvPool`` over any engine. Made by :func:`make_pool`."""

    def __init__(
        self, engine: Engine, *, kind: Literal["serial", "process", "batched"], choice: str,
        watch: Watchdog | None = None,
    ) -> None:
        """Args: watch: open while environments are stepped or reset."""
        self._engine = engine
        self._watch: Watchdog | nullcontext[None] = watch if watch is not None else nullcontext()
        self._is_stepping = False
        self.kind: Literal["serial", "process", "batched"] = kind
        self.choice: str = choice
        """Why it is this kind, in a sentence, with the measured step time."""

    @property
    def spec(self) -> EnvSpec:
        return self._engine.spec

    @property
    def num_envs(self) -> int:
        return self._engine.num_envs

    def reset(self, seed: int) -> Step:
        """Start all episodes. Environment i gets the same seed in a pool of any size and kind.

        Raises:
            EnvError: an environment fails in its very first reset, or too often.
        """
        self._is_stepping = False
        with self._watch:
            return to_step(self._engine.reset(int(seed)))

    def step(self, action: Tensor) -> Step:
        """(N, A) float32 on any device; rows whose last step was ``is_last`` are reset instead. The same as
        :meth:`send` and :meth:`receive`, and raises what they raise."""
        self.send(action)
        return self.receive()

    def send(self, action: Tensor) -> None:
        """Begin a step: processes step from now on, environments in this process step in :meth:`receive`. The numbers
        are the same, whatever happens in between; between the two nothing else may be asked but ``reset`` and
        ``close``.

        Raises:
            EnvError: the pool was not reset, is closed, or is in the middle of a step.
            ValueError: the action has another shape.
            DivergenceError: an action is not finite.
        """
        self._check_idle()
        shape = (self._engine.num_envs, self._engine.spec.action.size)
        if tuple(action.shape) != shape:
            raise ValueError(f"actions must be (N, A) = {shape}, got {tuple(action.shape)}; one row per environment")
        # A copy: environments may keep or change what they are given.
        array = action.detach().to("cpu", torch.float32, copy=True).numpy()
        if not np.isfinite(array).all():
            rows = np.flatnonzero(~np.isfinite(array).all(-1)).tolist()
            raise DivergenceError(
                f"the agent chose actions that are not finite for environments {rows} of {self.spec.name}: "
                f"{array[rows[0]].tolist()}; lower the learning rate and resume from the last checkpoint"
            )
        self._engine.send(array)
        self._is_stepping = True

    def receive(self) -> Step:
        """What came of the actions sent.

        Raises:
            EnvError: an environment failed too often, or nothing was sent.
        """
        if not self._is_stepping:
            raise EnvError(f"no step of {self.spec.name} is under way; call send(action) first")
        self._is_stepping = False
        with self._watch:
            return to_step(self._engine.receive())

    def _check_idle(self) -> None:
        if self._is_stepping:
            raise EnvError(f"{self.spec.name} is in the middle of a step; call receive() first")

    def render(self, index: int = 0) -> np.ndarray | None:
        """uint8 (h, w, 3) of environment ``index``, or None where it has no picture."""
        self._check_idle()
        return self._engine.render(index)

    def get_state(self) -> list[dict[str, Any]] | None:
        """One state per environment, so that after :meth:`set_state` the next step returns exactly what it would have;
        None where they cannot be cloned. Serial and process pools understand each other's."""
        self._check_idle()
        return self._engine.get_state()

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Go on where :meth:`get_state` was called. Raises EnvError for states that do not fit."""
        self._check_idle()
        self._engine.set_state(state)

    def stats(self) -> dict[str, float]:
        """ "restarts" and "truncated_by_fault", since the pool was made."""
        return self._engine.stats()

    def close(self) -> None:
        """End all environments; more than once does nothing. With processes always within 5 seconds."""
        if isinstance(self._watch, Watchdog):
            self._watch.close()
        self._engine.close()


def make_pool(
    config: EnvConfig, num_envs: int, *, kind: Kind = "auto", timeout: float = 60.0, max_restarts: int = 3,
    on_event: Callable[[str], None] | None = None,
) -> Pool:
    """Build ``num_envs`` environments that step together.

    Args:
        kind: "serial": one after the other in this process. "process": each in a process of its own. "batched": one
            vectorised object, where the environment offers it (``specs.BuildsBatch``). "auto": batched where offered,
            else by the measured time of a step.
        timeout: seconds after which a worker that does not answer counts as hung and is replaced ("process"); an
            environment in this process can only be told of ("serial" and "batched").
        max_restarts: faults that each environment is forgiven within 300 s, see ``worldmodel.envs.rows``.
        on_event: is told, in a sentence each, of the choice of kind, restarts and fallbacks.

    Raises:
        EnvError: an environment cannot be built, with its own sentence where it has one.
        ValueError: an argument is out of range.

    >>> from worldmodel.envs.gym import GymConfig
    >>> pool = make_pool(GymConfig(id="CartPole-v1"), 2, kind="serial")
    >>> pool.reset(seed=0).obs["vector"].shape
    torch.Size([2, 4])
    >>> pool.close()
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if timeout <= 0 or max_restarts < 0:
        raise ValueError(f"timeout must be positive and max_restarts not negative, got {timeout} and {max_restarts}")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {list(get_args(Kind))}, got {kind!r}")
    say = on_event if on_event is not None else _say_nothing
    chosen, choice = _choose(config, num_envs) if kind == "auto" else (kind, f"{kind} pool: asked for")
    engine: Engine
    if chosen == "batched":
        if not isinstance(config, BuildsBatch):
            raise EnvError(f"{config.name} offers no batched environments (no build_batch); use the pool kind auto")
        engine = BatchedRows(config, num_envs)
    elif chosen == "process":
        engine = ProcessRows(config, num_envs, timeout=timeout, max_restarts=max_restarts, say=say)
    else:
        engine = SerialRows(config, num_envs, max_restarts=max_restarts, say=say)
    if kind == "auto":
        say(choice)
    watch = None if chosen == "process" else Watchdog(timeout, say, _hung(config, timeout))
    return Pool(engine, kind=chosen, choice=choice, watch=watch)


def _hung(config: EnvConfig, timeout: float) -> str:
    return (
        f"{config.name} has not answered for {timeout:g} s; it runs in this process, which can only wait: two Ctrl-C "
        f"end the run, and --train.pool process replaces an environment that hangs"
    )


def _choose(config: EnvConfig, num_envs: int) -> tuple[Literal["serial", "process", "batched"], str]:
    if isinstance(config, BuildsBatch):
        return "batched", f"batched pool: {config.name} steps all environments in one call"
    if num_envs == 1:
        return "serial", f"serial pool: there is one environment ({config.name})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds = time_step(config)
    measured = f"a step of {config.name} takes {1e3 * seconds:.3g} ms"
    if cores == 1:
        return "serial", f"serial pool: {measured}, but there is one core"
    if seconds < QUICK_STEP:
        return "serial", f"serial pool: {measured}, less than the way to another process is worth"
    return "process", f"process pool: {measured}, worth {num_envs} processes on {cores} cores"


def time_step(config: EnvConfig) -> float:
    """Median seconds of a step under random actions, from about 20 steps of an environment built for it.

    Raises:
        EnvError: it cannot be built, or fails at once.
    """
    try:
        host = Host(config, 0)
    except Exception as error:  # whatever it is belongs to the environment
        raise EnvError(explain_build(config, 0, Failure.of(error))) from error
    try:
        rng = np.random.default_rng(0)
        start, times, is_last = time.perf_counter(), [], True
        while len(times) < _PROBE_STEPS and (len(times) < 2 or time.perf_counter() - start < _PROBE_SECONDS):
            if is_last:
                host.do("reset", 0 if not times else None)
            action = _random_action(host.ready.spec.action, rng)
            before = time.perf_counter()
            is_last = host.do("step", action).is_last
            times.append(time.perf_counter() - before)
        return statistics.median(times)
    except Exception as error:
        failure = Failure.of(error)
        sentence = failure.sentence if failure.is_user else f"{config.name} fails at once: {failure.sentence}"
        raise EnvError(sentence) from error
    finally:
        host.close()


def _random_action(spec: ActionSpec, rng: np.random.Generator) -> np.ndarray:
    if spec.kind == "discrete":
        return np.eye(spec.size, dtype=np.float32)[rng.integers(spec.size)]
    return rng.uniform(-1.0, 1.0, spec.size).astype(np.float32)


def to_step(step: BatchStep) -> Step:
    """Arrays to tensors on the same memory."""
    return Step(
        obs={key: torch.from_numpy(x) for key, x in step.obs.items()},
        reward=torch.from_numpy(step.reward),
        is_first=torch.from_numpy(step.is_first),
        is_last=torch.from_numpy(step.is_last),
        is_terminal=torch.from_numpy(step.is_terminal),
    )


def _say_nothing(text: str) -> None:
    pass
