"""Gymnasium's spaces as specs, and the values that live in them, both ways: the one place that knows them.

What each space becomes:

=============================  =======================================================================================
Box, uint8, 2 or 3 axes        image (height, width, channels), see below
Box, anything else             float32 vector, flattened
Discrete                       class index, () int64, counted from 0
MultiDiscrete                  class indices, int64; ``classes`` is the largest of them
MultiBinary                    float32 vector of 0 and 1, flattened
Dict                           its entries, keys joined with "/" and sorted; a space of its own is "image" or "vector"
Tuple, Text, Graph, ...        refused with a sentence
action Box                     continuous, [-1, 1] stretched to the bounds where they are finite, else left alone
action Discrete                one-hot; other actions are refused
=============================  =======================================================================================

Which axis of an image holds the channels: the last, unless it is longer than 4 and the first axis is the shortest of
the three; then the first, as in a stack (4, 84, 84), and it is moved to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.errors import EnvError
from worldmodel.specs import ActionSpec, ArraySpec


class Translator:
    """Between a Gymnasium environment's observations and actions and ours."""

    def __init__(self, name: str, observation_space: Any, action_space: Any, *, size: int) -> None:
        """Args: name, for sentences; larger images become (size, size), 0 keeps them.

        Raises: EnvError for a space we cannot offer.
        """
        self._leaves = _leaves(name, observation_space, size)
        self.obs: dict[str, ArraySpec] = {leaf.key: leaf.spec for leaf in self._leaves}
        """By key, sorted."""
        self.action, self._to_action = _action(name, action_space)

    def observe(self, raw: Any) -> dict[str, np.ndarray]:
        """What the environment returned, as fresh arrays of the specs in ``obs``."""
        return {leaf.key: leaf.read(leaf.pick(raw)) for leaf in self._leaves}

    def act(self, action: np.ndarray) -> Any:
        """Our action vector (A,) as what the environment's ``step`` expects."""
        return self._to_action(action)


@dataclass(frozen=True)
class _Leaf:
    """One entry of the observation: where it is in what the environment returns, and how to read it."""

    key: str
    path: tuple[str, ...]
    spec: ArraySpec
    read: Callable[[Any], np.ndarray]

    def pick(self, raw: Any) -> Any:
        for part in self.path:
            raw = raw[part]
        return raw


def _leaves(name: str, space: Any, size: int, path: tuple[str, ...] = ()) -> list[_Leaf]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        found = [leaf for key in space.spaces for leaf in _leaves(name, space[key], size, (*path, str(key)))]
        keys = [leaf.key for leaf in found]
        if len(set(keys)) < len(keys):
            raise EnvError(f"{name}: two observations would both be called {max(keys, key=keys.count)!r}; rename one")
        return sorted(found, key=lambda leaf: leaf.key)
    spec, read = _reader(name, space, size, path)
    return [_Leaf("/".join(path) or ("image" if spec.is_image else "vector"), path, spec, read)]


def _reader(name: str, space: Any, size: int, path: tuple[str, ...]) -> tuple[ArraySpec, Callable[[Any], np.ndarray]]:
    """The spec of one leaf space and the function that turns its samples into fresh arrays."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ArraySpec(shape=(), dtype="int64", classes=int(space.n)), lambda raw: np.array(raw - start, np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        spec = ArraySpec(shape=space.shape, dtype="int64", classes=int(space.nvec.max()))
        return spec, lambda raw: np.array(raw - space.start, np.int64)
    where = f"{name}: observation {'/'.join(path)!r}" if path else f"{name}: the observation"
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        if len(space.shape) in (2, 3):
            return _image(space.shape, size)
        if len(space.shape) > 3:
            raise EnvError(
                f"{where} is uint8 with {len(space.shape)} axes, {space.shape}, expected an image of at most 3; "
                f"stack frames along the channels or not at all (the model remembers)"
            )
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        spec = ArraySpec(shape=(int(np.prod(space.shape)),), dtype="float32")
        return spec, lambda raw: np.array(raw, np.float32).reshape(-1)
    raise EnvError(
        f"{where} is a {type(space).__name__} space, expected Box, Discrete, MultiDiscrete, MultiBinary or a Dict of "
        f"them; wrap the environment with an ObservationWrapper that returns one of these"
    )


def _image(shape: tuple[int, ...], size: int) -> tuple[ArraySpec, Callable[[Any], np.ndarray]]:
    """(h, w), (h, w, C) or (C, h, w) to (h, w, C), resized where it is larger than ``size``."""
    is_first = len(shape) == 3 and shape[2] > 4 and shape[0] < min(shape[1:])
    height, width, channels = (*shape, 1) if len(shape) == 2 else (*shape[1:], shape[0]) if is_first else shape
    is_large = 0 < size < max(height, width)

    def read(raw: Any) -> np.ndarray:
        image = np.asarray(raw, np.uint8)
        image = np.moveaxis(image, 0, 2) if is_first else image.reshape(height, width, channels)
        return _resize(image, size) if is_large else np.array(image, order="C")

    spec = ArraySpec(shape=(size, size, channels) if is_large else (height, width, channels), dtype="uint8")
    return spec, read


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """(h, w, C) to (size, size, C). Anything but RGB goes channel by channel: Pillow would take four for alpha."""
    from PIL import Image

    def one(pixels: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.array(picture.resize((size, size), Image.Resampling.BILINEAR))

    if image.shape[2] == 3:
        return one(image)
    return np.stack([one(image[..., channel]) for channel in range(image.shape[2])], axis=-1)


def _action(name: str, space: Any) -> tuple[ActionSpec, Callable[[np.ndarray], Any]]:
    """The spec of an action space and the function from our action vector to what the environment expects."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ActionSpec(kind="discrete", size=int(space.n)), lambda action: int(np.argmax(action)) + start
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        kind = f"{type(space).__name__} of {space.dtype}" if isinstance(space, spaces.Box) else type(space).__name__
        raise EnvError(
            f"{name}: the action is a {kind} space, expected Discrete or a Box of floats; wrap the environment with an "
            f"ActionWrapper, for instance one that lists every combination as one Discrete"
        )
    is_bounded = space.bounded_below & space.bounded_above
    low = np.where(is_bounded, space.low, -1.0)
    high = np.where(is_bounded, space.high, 1.0)

    def stretch(action: np.ndarray) -> np.ndarray:
        given = np.asarray(action, np.float64).reshape(space.shape)
        inside = low + (np.clip(given, -1.0, 1.0) + 1.0) / 2.0 * (high - low)
        # The second clip is against rounding, which may step over a bound by one bit.
        return np.clip(np.where(is_bounded, inside, given), space.low, space.high).astype(space.dtype)

    size, is_finite = int(np.prod(space.shape)), bool(np.all(is_bounded))
    return ActionSpec(kind="continuous", size=size, is_bounded=is_finite), stretch
