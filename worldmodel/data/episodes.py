"""The one form of a dataset: episodes in the units of their source, streamed, and checked as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from worldmodel.errors import DataError
from worldmodel.specs import ArraySpec


@dataclass(kw_only=True)
class Episode:
    """T transitions from obs[0] to obs[T]. Nothing is normalised: numbers are those of the source."""

    obs: dict[str, np.ndarray]
    """(T + 1, ...); images uint8 (h, w, C)."""
    action: np.ndarray
    """(T, A) floats, or (T,) class indices from 0: action[t] was chosen after seeing obs[t]."""
    reward: np.ndarray
    """(T,) reward[t] was received on arriving at obs[t + 1]."""
    terminated: bool
    """The MDP ended on arriving at obs[T]."""
    truncated: bool
    """It was cut there, by a time limit or because the file knows no more. Both may hold, one always does."""
    source: str
    """Where it lies, for sentences: "hopper.hdf5, episode 3"."""
    invented: bool = False
    """The file lacks the last observation, and the one before stands in its place; only where ``terminated``."""

    def __len__(self) -> int:
        """Transitions."""
        return len(self.reward)


@dataclass(frozen=True, kw_only=True)
class Actions:
    """What the actions of a dataset are."""

    kind: Literal["continuous", "discrete"]
    size: int
    """Numbers of an action, or choices."""
    low: tuple[float, ...] | None = None
    """Bounds in the units of the source; None where the file does not tell: then -1 and 1."""
    high: tuple[float, ...] | None = None

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(A,) low and high; what has no finite bounds is left as it is, as by the environments' adapter."""
        low = np.full(self.size, -1.0) if self.low is None else np.array(self.low, np.float64)
        high = np.full(self.size, 1.0) if self.high is None else np.array(self.high, np.float64)
        finite = np.isfinite(low) & np.isfinite(high)
        return np.where(finite, low, -1.0), np.where(finite, high, 1.0)

    @property
    def is_unit(self) -> bool:
        """Whether the source's units are ours, so that nothing has to be converted."""
        low, high = self.bounds()
        return self.kind == "continuous" and bool((low == -1).all() and (high == 1).all())

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        """Actions of the source (T, A) as float32 in [-1, 1], or (T,) classes as one-hot (T, A)."""
        if self.kind == "discrete":
            return np.eye(self.size, dtype=np.float32)[action]
        if self.is_unit:
            return action.astype(np.float32)
        low, high = self.bounds()
        return ((action - low) / (high - low) * 2 - 1).astype(np.float32)

    def from_unit(self, action: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_unit`."""
        if self.kind == "discrete":
            return action.argmax(-1).astype(np.int64)
        if self.is_unit:
            return action.astype(np.float32)
        low, high = self.bounds()
        return np.clip(low + (action.astype(np.float64) + 1) / 2 * (high - low), low, high).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all episodes of a dataset have in common."""

    name: str
    obs: dict[str, ArraySpec]
    action: Actions
    env: str = ""
    """What the file says of the environment; "" where it says nothing."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a file may not tell, or not clearly."""

    max_steps: int = 0
    """Transitions after which the environment truncates, for files that do not mark this; 0: they do."""
    align: Literal["auto", "arrival", "departure"] = "auto"
    """Whether row t of a Dreamer file has the action that led to its observation (as in V-D4RL and dreamerv3-torch),
    or the one chosen there (as in dreamerv3's replay); "auto" sees from the zeros at the ends of episodes."""
    low: tuple[float, ...] = ()
    """Bounds of actions, where the file does not tell them and they are not -1 and 1; one number stands for all."""
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"--max-steps must not be negative, got {self.max_steps}")
        if bool(self.low) != bool(self.high) or any(a >= b for a, b in zip(self.low, self.high)):
            raise ValueError(f"--low and --high go together, low below high, got {self.low} and {self.high}")

    def bounded(self, size: int) -> Actions:
        """Continuous actions with the bounds that were given. Raises DataError for another number of them."""
        given = [bounds * size if len(bounds) == 1 else bounds for bounds in (self.low, self.high)]
        if self.low and any(len(bounds) != size for bounds in given):
            counts = f"{len(given[0])} and {len(given[1])}"
            raise DataError(f"actions are {size} numbers, but --low and --high give {counts}")
        return Actions(kind="continuous", size=size, low=given[0] or None, high=given[1] or None)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A header, and episodes that are read anew, one after another, every time they are asked for."""

    header: Header
    read: Callable[[], Iterator[Episode]] = field(repr=False)

    def __iter__(self) -> Iterator[Episode]:
        """Episodes, each checked. Raises DataError with file, key and episode where one is not as the header says."""
        for episode in self.read():
            yield check(episode, self.header)


def check(episode: Episode, header: Header) -> Episode:
    """The episode itself. Raises DataError for shapes, types or numbers that cannot be."""
    steps, where = len(episode.reward), episode.source
    if episode.reward.ndim != 1 or steps < 1:
        raise DataError(f"{where}: the rewards must be (T,) with at least one step, got {episode.reward.shape}")
    if not episode.terminated and not episode.truncated:
        raise DataError(f"{where}: it neither ends nor is cut; one of terminated and truncated must hold")
    if episode.obs.keys() != header.obs.keys():
        raise DataError(f"{where}: observations {sorted(episode.obs)}, but the dataset has {sorted(header.obs)}")
    wanted = () if header.action.kind == "discrete" else (header.action.size,)
    _check(where, "action", episode.action, (steps, *wanted))
    for key, array in header.obs.items():
        value = episode.obs[key]
        _check(where, f"observation {key!r}", value, (steps + 1, *array.shape))
        if array.is_image != (value.dtype == np.uint8 and value.ndim == 4):
            raise DataError(f"{where}: observation {key!r} is {value.dtype}, elsewhere in the dataset {array.dtype}")
    _check(where, "reward", episode.reward, (steps,))
    if header.action.kind == "discrete":
        action = episode.action
        if not np.issubdtype(action.dtype, np.integer) or action.min() < 0 or action.max() >= header.action.size:
            raise DataError(
                f"{where}: action must be classes below {header.action.size}, got {action.dtype} from {action.min()} "
                f"to {action.max()}"
            )
    return episode


def _check(where: str, what: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise DataError(f"{where}: {what} must have shape {shape}, got {value.shape}; the file is cut short or damaged")
    if not (np.issubdtype(value.dtype, np.number) or value.dtype == np.bool_):
        raise DataError(f"{where}: {what} must hold numbers, got {value.dtype}")
    if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
        step = int(np.argwhere(~np.isfinite(value))[0][0])
        raise DataError(f"{where}: {what} is not finite at step {step}; leave the episode out or mend the file")


def picture(value: np.ndarray) -> np.ndarray:
    """uint8 (..., C, h, w) with 1, 3 or 4 channels in front as (..., h, w, C); everything else as it is."""
    first, last = (value.shape[-3], value.shape[-1]) if value.ndim >= 3 else (0, 0)
    if value.dtype == np.uint8 and value.ndim == 4 and last > 4 and first <= min(value.shape[-2:]):
        return np.moveaxis(value, -3, -1)
    return value


def array_spec(value: np.ndarray) -> ArraySpec:
    """Of (T, ...) observations."""
    return ArraySpec(shape=value.shape[1:], dtype=str(value.dtype))


def obs_key(array: ArraySpec) -> str:
    """How an observation without a name is called, as by the environments' adapter."""
    return "image" if array.is_image else "vector"
