"""Textures of a MuJoCo model as the ray camera samples them: floors with a mean pyramid, and the skybox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_SKYBOX = 2
"""``mujoco.mjtTexture``."""


def texture(model: Any, index: int) -> np.ndarray:
    """Texture ``index`` of a model, uint8 (h, w, 3); shares the model's memory where that has three channels."""
    height, width = int(model.tex_height[index]), int(model.tex_width[index])
    channels, start = int(model.tex_nchannel[index]), int(model.tex_adr[index])
    raw = model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
    return raw[..., :3] if channels >= 3 else np.repeat(raw[..., :1], 3, axis=2)


def halve(picture: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    return picture[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).mean((1, 3), dtype=np.float32)


@dataclass(slots=True)
class Pyramid:
    """A flat texture and its successive halves, so that far floors show the mean of their squares."""

    data: np.ndarray
    """(3, texels of all levels) float32."""
    start: np.ndarray
    width: np.ndarray
    height: np.ndarray
    repeat: tuple[float, float]
    """Copies per unit of length along x and y, halved: MuJoCo's texture spans two units."""
    phase: tuple[float, float]
    """Texture coordinates of the plane's centre: a finite plane's picture starts in a corner."""

    @classmethod
    def of(cls, model: Any, geom: int, index: int) -> Pyramid:
        """For plane ``geom`` of the model, covered by texture ``index``."""
        levels = [texture(model, index).astype(np.float32) / 255.0]
        while min(levels[-1].shape[:2]) > 1:
            levels.append(halve(levels[-1]))
        counts = [level.shape[0] * level.shape[1] for level in levels]
        material = int(model.geom_matid[geom])
        repeat = [0.5 * float(value) for value in model.mat_texrepeat[material]]
        sizes = [float(value) for value in model.geom_size[geom, :2]]
        if not model.mat_texuniform[material]:
            repeat = [value / size if size > 0 else value for value, size in zip(repeat, sizes, strict=True)]
        shift = 0.0 if min(sizes) > 0 else -0.5
        phase = [value * max(size, 0.0) + shift for value, size in zip(repeat, sizes, strict=True)]
        return cls(
            data=np.ascontiguousarray(np.concatenate([level.reshape(-1, 3) for level in levels]).T),
            start=np.cumsum([0, *counts[:-1]]),
            width=np.array([level.shape[1] for level in levels]),
            height=np.array([level.shape[0] for level in levels]),
            repeat=(repeat[0], repeat[1]),
            phase=(phase[0], phase[1]),
        )

    def sample(self, x: np.ndarray, y: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colours (3, P) at plane coordinates (P,), averaged over about ``footprint`` units of length."""
        texels = footprint * max(self.repeat[0] * self.width[0], self.repeat[1] * self.height[0])
        level = np.log2(np.maximum(texels, 1.0)).round().astype(np.intp)
        np.minimum(level, len(self.start) - 1, out=level)
        u, v = self.repeat[0] * x + self.phase[0], self.phase[1] - self.repeat[1] * y
        width, height = self.width[level], self.height[level]
        column = ((u - np.floor(u)) * width).astype(np.intp)
        row = ((v - np.floor(v)) * height).astype(np.intp)
        np.minimum(column, width - 1, out=column)
        np.minimum(row, height - 1, out=row)
        return self.data[:, self.start[level] + row * width + column]


@dataclass(slots=True)
class Skybox:
    """The cube of pictures around the world; black where the model has none."""

    faces: np.ndarray | None
    """(6, w, w, 3) uint8, in the model's memory: right, left, up, down, front, back."""

    @classmethod
    def of(cls, model: Any) -> Skybox:
        """The skybox texture of a model."""
        for index in range(int(model.ntex)):
            if int(model.tex_type[index]) == _SKYBOX:
                picture = texture(model, index)
                width = picture.shape[1]
                faces = picture.reshape(-1, width, width, 3)
                return cls(faces if len(faces) == 6 else np.repeat(faces[:1], 6, axis=0))
        return cls(None)

    def sample(self, rays: np.ndarray, footprint: float) -> np.ndarray:
        """Colours (3, P) float32 seen along rays (P, 3), averaged over about ``footprint`` radians."""
        if self.faces is None:
            return np.zeros((3, len(rays)), np.float32)
        faces = self.faces
        while footprint * faces.shape[1] / (np.pi / 2) > 1.5 and faces.shape[1] % 2 == 0:
            faces = faces.reshape(6, faces.shape[1] // 2, 2, faces.shape[1] // 2, 2, 3).mean((2, 4), dtype=np.float32)
        x, y, z = rays.T
        axis = np.abs(rays).argmax(1)
        largest = np.abs(rays).max(1)
        # Right and left are +x and -x, up and down +z and -z, front and back -y and +y; measured on MuJoCo's renderer.
        face = np.select(
            [(axis == 0) & (x > 0), axis == 0, (axis == 2) & (z > 0), axis == 2, y < 0], [0, 1, 2, 3, 4], default=5
        )
        u = np.choose(face, [y, -y, x, x, x, -x]) / largest
        v = np.choose(face, [-z, -z, -y, y, -z, -z]) / largest
        width = faces.shape[1]
        column, row = (np.clip(((value + 1) / 2 * width).astype(np.intp), 0, width - 1) for value in (u, v))
        return np.ascontiguousarray(faces[face, row, column].T, dtype=np.float32) / np.float32(255)
