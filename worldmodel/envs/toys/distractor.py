"""A moving background that says nothing about the task: two layers of soft coloured blobs drift across each other."""

from __future__ import annotations

import functools

import numpy as np

from worldmodel.envs.toys.draw import UNITS

TEXTURES = 8
WAVES = 6
"""Waves that make one channel of a texture."""
SLOWEST, FASTEST = 1.0, 2.0
"""Drift of a layer along each axis, units per step: every picture differs from the one before."""
BRIGHTEST = 96
"""Of one layer: what is drawn in front is brighter than the sum of both."""
DRAWS = 10


class Distractor:
    """N moving backgrounds, with state and random numbers of their own: the task is the same with and without."""

    def __init__(self, num_envs: int, size: int) -> None:
        # Per layer: which texture, where the window's corner is, how it drifts, in pixels
        self.state = {
            "texture": np.zeros((num_envs, 2), np.int64),
            "corner": np.zeros((num_envs, 2, 2)),
            "drift": np.zeros((num_envs, 2, 2)),
        }
        self._size = size
        self._textures = textures(size)

    def begin(self, rows: np.ndarray, uniform: np.ndarray) -> None:
        """Draw new layers for some rows: (R, DRAWS) uniforms."""
        size = self._size
        self.state["texture"][rows] = (uniform[:, :2] * TEXTURES).astype(np.int64)
        self.state["corner"][rows] = uniform[:, 2:6].reshape(-1, 2, 2) * size
        way = 2 * uniform[:, 6:].reshape(-1, 2, 2) - 1
        speed = SLOWEST + (FASTEST - SLOWEST) * np.abs(way)
        self.state["drift"][rows] = np.where(way < 0, -speed, speed) * (size / UNITS)

    def advance(self) -> None:
        """Drift by one step."""
        self.state["corner"] += self.state["drift"]
        self.state["corner"] %= self._size

    def draw(self, images: np.ndarray) -> None:
        """Fill (N, size, size, 3) uint8."""
        size, bank = self._size, self._textures
        # A float just below 0 may round to `size` in the remainder
        corners = self.state["corner"].astype(np.int64) % size
        for image, (a, b), ((ay, ax), (by, bx)) in zip(images, self.state["texture"].tolist(), corners.tolist()):
            np.add(bank[a, ay : ay + size, ax : ax + size], bank[b, by : by + size, bx : bx + size], out=image)


@functools.cache
def textures(size: int) -> np.ndarray:
    """(TEXTURES, 2 size, 2 size, 3) uint8 up to BRIGHTEST; each is periodic with ``size``, so that any window of that
    size is a copy of memory. The same on every machine and in every run."""
    rng = np.random.default_rng(0)
    # The same picture at every size: waves first, then pixels
    waves = rng.integers(-3, 4, (TEXTURES, 3, WAVES, 2))
    waves[..., 0] += waves.any(-1) == 0
    phase = rng.random((TEXTURES, 3, WAVES, 1, 1))
    y, x = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    angle = waves[..., 0, None, None] * y + waves[..., 1, None, None] * x + phase
    height = np.sin(2 * np.pi * angle).sum(2)
    low, high = height.min((-2, -1), keepdims=True), height.max((-2, -1), keepdims=True)
    # (TEXTURES, 3, size, size) -> (TEXTURES, 2 size, 2 size, 3)
    tile = np.rint((height - low) / (high - low) * BRIGHTEST).astype(np.uint8).transpose(0, 2, 3, 1)
    bank = np.tile(tile, (1, 2, 2, 1))
    bank.flags.writeable = False
    return bank
