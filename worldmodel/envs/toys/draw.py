"""Shapes with smooth edges, cut out once and pasted into pictures with a handful of array operations.

Positions are in units of 1/32 of the picture's side, whatever its size, (x to the right, y down).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

UNITS = 32
"""The side of every picture, in units."""
PHASES = 4
"""Positions are rounded to this fraction of a pixel: what moves slowly is seen to move."""


class Sprite:
    """A disc or a box of one colour, drawn beforehand at every sub-pixel position."""

    def __init__(
        self, shape: Literal["disc", "box"], half: tuple[float, float], color: tuple[int, int, int], size: int
    ) -> None:
        """Args: half (width, height) in units, a disc's are its radius; size of the picture in pixels."""
        self._size, self._scale = size, size / UNITS
        half_x, half_y = half[0] * self._scale, half[1] * self._scale
        self._masks_x, self._masks_y = _axis(half_x), _axis(half_y)
        # A window holds the shape at any phase: (2P + 1 phases of y) x (2P + 1 of x) x window
        steps = (np.arange(2 * PHASES + 1) - PHASES) / PHASES
        alpha = np.stack([
            np.stack([_coverage(shape, (half_x, half_y), (self._masks_x + dx, self._masks_y + dy)) for dx in steps])
            for dy in steps
        ])
        alpha = np.rint(alpha * 256).astype(np.uint16)[..., None]
        # under * keep + paint needs no more than 255 * 256: it never leaves uint16
        self._keep = 256 - alpha
        self._paint = alpha * np.array(color, np.uint16)
        self._height, self._width = alpha.shape[2:4]

    def paste(self, images: np.ndarray, x: np.ndarray, y: np.ndarray, shown: np.ndarray | None = None) -> None:
        """Draw onto (N, size, size, 3) uint8 in place, centred at (N,) units; rows that are not ``shown`` stay."""
        left, phase_x = self._place(x, self._masks_x, self._width)
        top, phase_y = self._place(y, self._masks_y, self._height)
        height, width = self._height, self._width
        for n in range(len(images)) if shown is None else np.flatnonzero(shown).tolist():
            t, l, at = top[n], left[n], (phase_y[n], phase_x[n])
            window = images[n, t : t + height, l : l + width]
            window[...] = (window * self._keep[at] + self._paint[at]) >> 8

    def _place(self, at: np.ndarray, margin: int, width: int) -> tuple[list[int], list[int]]:
        """First pixel of the window and the index of the phase; a window never leaves the picture."""
        quarter = np.rint(at * (self._scale * PHASES)).astype(np.int64)
        first = np.minimum(np.maximum(quarter // PHASES - margin, 0), self._size - width)
        phase = quarter - (first + margin - 1) * PHASES
        return first.tolist(), np.minimum(np.maximum(phase, 0), 2 * PHASES).tolist()


def _axis(half: float) -> int:
    """Pixels between a window's first pixel and the shape's centre at phase 0."""
    return int(np.ceil(half))


def _coverage(shape: str, half: tuple[float, float], center: tuple[float, float]) -> np.ndarray:
    """The covered share of each pixel, by 8 x 8 samples: (h, w)."""
    cells = (2 * _axis(half[0]) + 1, 2 * _axis(half[1]) + 1)
    dx, dy = ((np.arange(8 * n) + 0.5) / 8 - c for n, c in zip(cells, center))
    if shape == "disc":
        inside = (dx[None, :] / half[0]) ** 2 + (dy[:, None] / half[1]) ** 2 <= 1.0
    else:
        inside = (np.abs(dx[None, :]) <= half[0]) & (np.abs(dy[:, None]) <= half[1])
    return inside.reshape(cells[1], 8, cells[0], 8).mean((1, 3))
