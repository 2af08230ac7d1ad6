"""What runs beside an environment, in the pool's own process or in a worker: the checks of its contract, and the
worker's loop. Never imports torch."""

from __future__ import annotations

import pickle
import socket
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs.channel import Channel, SharedMemory
from worldmodel.errors import EnvError, UserError
from worldmodel.specs import ArraySpec, Clones, Env, EnvConfig, EnvSpec, EnvStep

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_ALIGN = 64


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An environment that did not answer properly; crosses processes."""

    sentence: str
    trace: str = ""
    """The original traceback, where there is one."""
    is_user: bool = False
    """Whether the sentence tells a user what to do and is to be shown as it is."""
    is_dead: bool = False
    """Whether its worker is gone."""

    @classmethod
    def of(cls, error: Exception | SystemExit) -> Failure:
        """What an environment raised."""
        if isinstance(error, UserError):
            return cls(sentence=str(error), is_user=True)  # it says it all: where it was raised helps nobody
        trace = "".join(traceback.format_exception(error))
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
        return cls(sentence=f"{type(error).__name__}: {error}{where}", trace=trace)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a worker says once its environment is built."""

    spec: EnvSpec
    can_clone: bool


class Contract:
    """What every step of an environment must look like, made cheap to check.

    >>> contract = Contract(EnvSpec(name="toy", obs={"x": ArraySpec(shape=(2,), dtype="float32")}, action=...))
    >>> contract.check(EnvStep(obs={"x": np.zeros(2, np.float32)}, is_first=True), is_reset=True)
    """

    def __init__(self, spec: EnvSpec) -> None:
        """Raises EnvError for an observation type that numpy does not know."""
        self._name, self._keys = spec.name, spec.obs.keys()
        self._arrays = [(key, array.shape, _dtype(spec, key), array.classes) for key, array in spec.obs.items()]

    def check(self, step: EnvStep, *, is_reset: bool) -> None:
        """Raises EnvError with what is wrong about the first thing that is."""
        obs = step.obs
        if obs.keys() != self._keys:
            raise EnvError(f"{self._name}: observations must be {sorted(self._keys)}, got {sorted(obs)}; see spec.obs")
        for key, shape, dtype, classes in self._arrays:
            value = obs[key]
            if not isinstance(value, (np.ndarray, np.generic)) or value.dtype != dtype or value.shape != shape:
                raise EnvError(f"{self._name}: obs[{key!r}] must be {dtype} {shape}, got {_describe(value)}")
            check_values(self._name, key, value, classes)
        if not -_FLOAT32_MAX <= step.reward <= _FLOAT32_MAX:
            raise EnvError(f"{self._name}: the reward is {step.reward}, expected a finite number")
        if is_reset and (not step.is_first or step.is_last or step.is_terminal or step.reward != 0.0):
            raise EnvError(f"{self._name}: reset must return is_first, no end and reward 0, got {_flags(step)}")
        if not is_reset and (step.is_first or (step.is_terminal and not step.is_last)):
            raise EnvError(f"{self._name}: a step is never first, and is_terminal needs is_last, got {_flags(step)}")


def check_values(name: str, key: str, value: Any, classes: int | None) -> None:
    """Raises EnvError where floats are not finite or class indices out of range; any shape."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise EnvError(f"{name}: obs[{key!r}] is not finite: {int((~np.isfinite(value)).sum())} of {value.size} values")
    if classes is not None and value.size and not (value.min() >= 0 and value.max() < classes):
        raise EnvError(
            f"{name}: obs[{key!r}] holds class indices from {value.min()} to {value.max()}, expected 0 to {classes - 1}"
        )


class Host:
    """One environment and the checks of what it says."""

    def __init__(self, config: EnvConfig, index: int) -> None:
        """Build it; whatever that raises is passed on."""
        self._env: Env = config.build(index)
        self._contract = Contract(self._env.spec)

    @property
    def ready(self) -> Ready:
        """What it is."""
        return Ready(spec=self._env.spec, can_clone=isinstance(self._env, Clones))

    def do(self, verb: str, given: Any) -> Any:
        """ "reset" (seed or None) and "step" (action) -> a checked EnvStep; "render"; "get_state"; "set_state" (state).
        Raises what the environment raises, and EnvError where it breaks its contract."""
        if verb == "step":
            step = self._env.step(given)
            self._contract.check(step, is_reset=False)
            return step
        if verb == "reset":
            step = self._env.reset(given)
            self._contract.check(step, is_reset=True)
            return step
        if verb == "render":
            return self._env.render()
        if not isinstance(self._env, Clones):
            raise EnvError(f"{self._env.spec.name} cannot be cloned")
        return self._env.get_state() if verb == "get_state" else self._env.set_state(given)

    def close(self) -> None:
        self._env.close()


def obs_arrays(spec: EnvSpec, num_envs: int, memory: Any = None) -> dict[str, np.ndarray]:
    """By key, (N, ...) zeros, or views of ``memory`` (any buffer of :func:`obs_bytes` bytes)."""
    if memory is None:
        return {key: np.zeros((num_envs, *a.shape), _dtype(spec, key)) for key, a in spec.obs.items()}
    views, at = {}, 0
    for key, array in spec.obs.items():
        shape, dtype = (num_envs, *array.shape), _dtype(spec, key)
        views[key] = np.frombuffer(memory, dtype, int(np.prod(shape)), at).reshape(shape)
        at += _padded(views[key].nbytes)
    return views


def obs_bytes(spec: EnvSpec, num_envs: int) -> int:
    """Bytes of the observations of N environments, each key aligned."""
    return max(1, sum(_padded(_size(a, spec, key) * num_envs) for key, a in spec.obs.items()))


def work(connection: socket.socket, payload: dict[str, Any]) -> bool:
    """The life of a worker process: build, then answer until told to close (True) or until the pool is gone (False).

    Args: payload holds "config" (pickled EnvConfig), "index" and "delay" (seconds to wait before building).

    Answers are (number of the request, EnvStep | picture | state | Failure). Once observations go through shared
    memory, steps are answered without them.
    """
    channel = Channel(connection)
    time.sleep(payload["delay"])
    try:
        host = Host(pickle.loads(payload["config"]), payload["index"])
    except (Exception, SystemExit) as error:  # the environment's, to be told in the other process
        channel.send((0, Failure.of(error)))
        return True
    channel.send((0, host.ready))
    try:
        _serve(channel, host, payload["index"])
    except (EOFError, OSError):
        return False
    host.close()
    return True


def _serve(channel: Channel, host: Host, index: int) -> None:
    rows: dict[str, np.ndarray] | None = None
    while True:
        number, verb, given = channel.receive()
        if verb == "close":
            return
        try:
            if verb == "attach":
                channel.send((number, None))
                memory = SharedMemory(channel.receive_file(), obs_bytes(host.ready.spec, given))
                memory.close_descriptor()
                rows = {key: x[index, ...] for key, x in obs_arrays(host.ready.spec, given, memory.bytes).items()}
                continue
            answer = host.do(verb, given)
            if rows is not None and isinstance(answer, EnvStep):
                for key, row in rows.items():
                    row[...] = answer.obs[key]
                answer.obs = {}
        except (Exception, SystemExit) as error:  # the environment's, to be told in the other process
            answer = Failure.of(error)
        channel.send((number, answer))


def _dtype(spec: EnvSpec, key: str) -> np.dtype[Any]:
    try:
        return np.dtype(spec.obs[key].dtype)
    except TypeError as error:
        raise EnvError(
            f"{spec.name}: obs[{key!r}] has dtype {spec.obs[key].dtype!r}, unknown to numpy; use float32 or uint8"
        ) from error


def _size(array: ArraySpec, spec: EnvSpec, key: str) -> int:
    return int(np.prod(array.shape)) * _dtype(spec, key).itemsize


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        return f"{value.dtype} {value.shape}"
    return f"a {type(value).__name__}"


def _flags(step: EnvStep) -> str:
    return (
        f"is_first={step.is_first}, is_last={step.is_last}, is_terminal={step.is_terminal}, reward={step.reward}"
    )
