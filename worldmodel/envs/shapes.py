"""Rays against simple solids, in numpy: the sites and tendons that MuJoCo's own ray caster leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Hit = tuple[np.ndarray, np.ndarray]
"""(K,) distance along the ray, infinite where it misses, and (K, 3) outward unit normal, undefined there."""


@dataclass(slots=True)
class Solid:
    """One simple solid in the world. Raises nothing; kinds other than those of ``SOLIDS`` are not to be made."""

    kind: int
    """``mujoco.mjtGeom``: 2 sphere, 3 capsule, 4 ellipsoid, 5 cylinder, 6 box."""
    pos: np.ndarray
    """(3,)."""
    mat: np.ndarray
    """(3, 3), columns are the solid's axes."""
    size: np.ndarray
    """(3,) half extents along the solid's axes; a capsule's third one without its caps."""
    rgba: np.ndarray
    finish: np.ndarray
    """(3,) emission, specular, shininess exponent."""

    @property
    def radius(self) -> float:
        """Of a sphere around it."""
        x, y, z = (float(value) for value in self.size)
        if self.kind == 2:
            return x
        if self.kind == 3:
            return x + z
        return float(np.sqrt(x * x + y * y + z * z))

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> Hit:
        """First contact from outside of rays (K, 3), unit vectors, that start at ``origin`` (3,)."""
        distance, normal = SOLIDS[self.kind]((origin - self.pos) @ self.mat, rays @ self.mat, self.size)
        return distance, normal @ self.mat.T


def _nearest_root(a: np.ndarray, b: np.ndarray, c: np.ndarray | float) -> np.ndarray:
    """The smaller root of a t^2 + 2 b t + c = 0 where it is real and positive, else infinity."""
    discriminant = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        root = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.where((discriminant > 0) & (root > 0) & (a > 1e-12), root, np.inf)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _points(origin: np.ndarray, rays: np.ndarray, distance: np.ndarray) -> np.ndarray:
    return origin + rays * np.where(np.isfinite(distance), distance, 0.0)[:, None]


def ellipsoid(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hit:
    """Also spheres: the unit sphere after division by the half extents."""
    o, d = origin / size, rays / size
    distance = _nearest_root((d * d).sum(1), d @ o, float(o @ o) - 1.0)
    return distance, _unit(_points(origin, rays, distance) / (size * size))


def sphere(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hit:
    """A MuJoCo sphere states its radius in the first extent only."""
    return ellipsoid(origin, rays, np.full(3, size[0]))


def _barrel(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hit:
    """The side of a cylinder around z, without its ends."""
    o, d = origin[:2], rays[:, :2]
    distance = _nearest_root((d * d).sum(1), d @ o, float(o @ o) - float(size[0]) ** 2)
    points = _points(origin, rays, distance)
    distance = np.where(np.abs(points[:, 2]) <= size[2], distance, np.inf)
    return distance, _unit(points * (1.0, 1.0, 0.0))


def _nearer(first: Hit, second: Hit) -> Hit:
    take = second[0] < first[0]
    return np.where(take, second[0], first[0]), np.where(take[:, None], second[1], first[1])


def capsule(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hit:
    """A barrel between two spheres."""
    found = _barrel(origin, rays, size)
    for end in (-size[2], size[2]):
        found = _nearer(found, sphere(origin - (0.0, 0.0, end), rays, size))
    return found


def cylinder(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hit:
    """A barrel between two discs."""
    found = _barrel(origin, rays, size)
    for side in (-1.0, 1.0):
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (side * size[2] - origin[2]) / rays[:, 2]
        points = _points(origin, rays, distance)
        inside = (points[:, :2] ** 2).sum(1) <= size[0] ** 2
        distance = np.where(inside & (distance > 0) & np.isfinite(distance), distance, np.inf)
        found = _nearer(found, (distance, np.broadcast_to((0.0, 0.0, side), rays.shape)))
    return found


def box(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hit:
    """Slabs: the last plane entered before the first one left."""
    safe = np.where(np.abs(rays) < 1e-12, 1e-12, rays)
    near = (-np.sign(safe) * size - origin) / safe
    far = (np.sign(safe) * size - origin) / safe
    axis = near.argmax(1)
    rows = np.arange(len(rays))
    enter = near[rows, axis]
    distance = np.where((enter <= far.min(1)) & (enter > 0), enter, np.inf)
    normal = np.zeros_like(rays)
    normal[rows, axis] = -np.sign(safe[rows, axis])
    return distance, normal


SOLIDS: dict[int, Callable[[np.ndarray, np.ndarray, np.ndarray], Hit]] = {
    2: sphere,
    3: capsule,
    4: ellipsoid,
    5: cylinder,
    6: box,
}
