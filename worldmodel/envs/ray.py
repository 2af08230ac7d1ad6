"""A camera for MuJoCo that needs no OpenGL: rays are cast by the physics engine and shaded in numpy.

It draws what MuJoCo's own renderer draws by default (geoms of groups 0 to 2, visible sites, tendons, checkered planes,
the skybox) under the same light model (Phong with headlight, spots and directional lights, hard shadows, mirror images
in reflective planes), one ray per pixel.

What it does not draw: skins (the dog of the Control Suite shows only what lies under its fur), textures on anything
but planes (their mean colour stands in), flexes, haze, fog, smooth edges (there is no multisampling), shadows and
mirror images of sites, tendons and transparent geoms, orthographic cameras and lens offsets. Pictures are close to
OpenGL's but not equal (floors are lit pixel by pixel, which OpenGL does at the corners of a coarse grid), so results
carry the renderer in the environment's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.envs.gl import load_mujoco
from worldmodel.envs.shapes import SOLIDS, Solid
from worldmodel.envs.textures import Pyramid, Skybox, texture

_PLANE = 0
_SHADOW_SLACK = 2e-3
"""Part of the way to a light within which a surface does not shadow itself."""
_HIDDEN_GROUP = 5
_DEFAULT_RGBA = np.array([0.5, 0.5, 0.5, 1.0], np.float32)


@dataclass(slots=True)
class _View:
    """Rays of one picture size, kept as long as the camera does not turn."""

    turn: bytes
    rays: np.ndarray
    """(P, 3) float64 unit vectors in the world, row by row from the upper left."""
    toward: np.ndarray
    """(3, P) float32: the same, from the picture to the eye."""
    background: np.ndarray
    """(3, P) float32: what rays that hit nothing see."""
    focal: float
    """Pixels."""


@dataclass(slots=True)
class _Surface:
    """P points to be lit: (3, P) float32 each."""

    point: np.ndarray
    normal: np.ndarray
    toward: np.ndarray
    """Unit vectors to the eye."""
    color: np.ndarray
    finish: np.ndarray
    """Emission, specular, shininess exponent."""


class RayCamera:
    """Draws one camera of a MuJoCo model without OpenGL.

    Args:
        model: ``mujoco.MjModel``.
        data: ``mujoco.MjData`` to look at; its positions must be up to date, as after ``mj_step1`` or ``mj_forward``.
        camera: index of a camera of the model.
        shadows: cast a second ray to every light that casts shadows.
        reflections: draw mirror images in planes whose material reflects.
    """

    def __init__(self, model: Any, data: Any, *, camera: int, shadows: bool = True, reflections: bool = True) -> None:
        mujoco = load_mujoco()
        self._mujoco, self._model, self._data, self._index = mujoco, model, data, camera
        self._shadows, self._reflections = shadows, reflections
        self._option = mujoco.MjvOption()
        self._groups = np.array(self._option.geomgroup, np.uint8)
        self._option.geomgroup[:] = 0  # the scene is asked for lights, sites and tendons; rays find the geoms
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._scene = mujoco.MjvScene(model, 2000)
        self._far = float(model.vis.map.zfar * model.stat.extent)
        self._skybox = Skybox.of(model)
        self._views: dict[int, _View] = {}
        self._means = _mean_colors(model)
        self._floors = {
            geom: Pyramid.of(model, geom, index) for geom, index in _textures(model).items() if _is_plane(model, geom)
        }
        self.refresh()

    def refresh(self) -> None:
        """Read colours and materials anew; call it after the model's were changed, as tasks do between episodes."""
        model = self._model
        self._boxes = _culling_boxes(model, self._data)
        rgba = np.array(model.geom_rgba, np.float32)
        finish = np.tile(np.array([[0.0, 0.5, 64.0]], np.float32), (len(rgba), 1))
        material = np.asarray(model.geom_matid)
        has = material >= 0
        # A geom that keeps the default colour takes its material's (mjv_updateScene).
        plain = has & (rgba == _DEFAULT_RGBA).all(1)
        rgba[plain] = model.mat_rgba[material[plain]]
        used = material[has]
        finish[has] = np.stack(
            [model.mat_emission[used], model.mat_specular[used], 128.0 * model.mat_shininess[used]], axis=1
        )
        self._rgba, self._finish = rgba, np.ascontiguousarray(finish.T)
        self._color = np.ascontiguousarray((rgba[:, :3] * self._means).T)
        shown = self._groups[np.clip(model.geom_group, 0, 5)] > 0
        glassy = shown & (rgba[:, 3] > 0) & (rgba[:, 3] < 1) & np.isin(model.geom_type, list(SOLIDS))
        self._glassy = np.flatnonzero(glassy)
        mirrors = np.zeros(len(rgba), np.float32)
        mirrors[has] = model.mat_reflectance[used]
        planes = np.flatnonzero((mirrors > 0) & (np.asarray(model.geom_type) == _PLANE))
        self._mirrors = {int(geom): float(mirrors[geom]) for geom in planes}

    def close(self) -> None:
        """There is nothing to free; the other camera has something."""

    def draw(self, size: int) -> np.ndarray:
        """The picture of now, uint8 (size, size, 3)."""
        mujoco = self._mujoco
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        view = self._view(size)
        eye = np.array(self._data.cam_xpos[self._index])
        geom, distance, normal = self._cast(eye, view.rays)
        geom[distance > self._far] = -1
        seen = np.flatnonzero(geom >= 0)
        color = view.background.copy()
        if seen.size:
            surface = self._surface(eye, geom[seen], distance[seen], normal[seen], view.rays[seen])
            lit = self._light(surface, self._shadows)
            lit = self._paint_floors(lit, geom[seen], surface.point, distance[seen] / view.focal)
            if self._reflections:
                self._reflect(lit, geom[seen], surface, distance[seen], eye)
            color[:, seen] = np.minimum(lit, 1.0)
        depth = np.where(geom >= 0, distance, np.inf)
        self._draw_solids(color, depth, view, eye, size)
        return (color * 255.0 + 0.5).astype(np.uint8).T.reshape(size, size, 3)

    def _view(self, size: int) -> _View:
        """Pinhole rays through pixel centres, turned into the world."""
        turn = np.array(self._data.cam_xmat[self._index])
        key = turn.tobytes()
        view = self._views.get(size)
        if view is not None and view.turn == key:
            return view
        focal = 0.5 * size / float(np.tan(np.radians(self._model.cam_fovy[self._index]) / 2))
        across = (np.arange(size) + 0.5 - size / 2) / focal
        x, y = np.meshgrid(across, -across)
        local = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3)
        local /= np.linalg.norm(local, axis=1, keepdims=True)
        rays = local @ turn.reshape(3, 3).T
        self._views[size] = _View(
            turn=key,
            rays=rays,
            toward=np.ascontiguousarray(-rays.T, dtype=np.float32),
            background=self._skybox.sample(rays, 1.0 / focal),
            focal=focal,
        )
        return self._views[size]

    @contextmanager
    def _castable(self) -> Iterator[None]:
        """Lend the model what rays need, and take it back: transparent geoms step aside, and culling boxes hold every
        geom of a body. MuJoCo's own boxes hold only those that collide, and rays would miss the others."""
        model, (rows, boxes) = self._model, self._boxes
        groups, before = model.geom_group[self._glassy].copy(), model.bvh_aabb[rows].copy()
        model.geom_group[self._glassy] = _HIDDEN_GROUP
        model.bvh_aabb[rows] = boxes
        try:
            yield
        finally:
            model.geom_group[self._glassy] = groups
            model.bvh_aabb[rows] = before

    def _cast(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First opaque geom (-1 for none), distance in lengths of the ray, and normal, for rays (P, 3) from a point."""
        count = len(rays)
        geom, distance, normal = np.empty(count, np.int32), np.empty(count), np.empty((count, 3))
        with self._castable():
            self._mujoco.mj_multiRay(
                self._model, self._data, origin, np.ascontiguousarray(rays).reshape(-1), self._groups, 1, -1, geom,
                distance, normal.reshape(-1), count, self._mujoco.mjMAXVAL,
            )  # fmt: skip
        return geom, distance, normal

    def _surface(
        self, eye: np.ndarray, geom: np.ndarray, distance: np.ndarray, normal: np.ndarray, rays: np.ndarray
    ) -> _Surface:
        return _Surface(
            point=(eye + rays * distance[:, None]).T.astype(np.float32, order="C"),
            normal=normal.T.astype(np.float32, order="C"),
            toward=(-rays.T).astype(np.float32, order="C"),
            color=self._color[:, geom],
            finish=self._finish[:, geom],
        )

    def _light(self, surface: _Surface, shadows: bool) -> np.ndarray:
        """OpenGL's fixed pipeline with a local viewer: (3, P), not yet multiplied by textures. As in MuJoCo, lights
        with shadows come on top of the others' sum, which is cut off at 1 by itself."""
        color, finish = surface.color, surface.finish
        plain = finish[0] * color
        on_top = []
        for light in self._scene.lights[: self._scene.nlight]:
            toward, power = _falloff(light, surface.point)
            facing = (surface.normal * toward).sum(0)
            np.maximum(facing, 0.0, out=facing)
            half = toward + surface.toward
            half /= np.sqrt((half * half).sum(0)) + 1e-9
            gloss = (surface.normal * half).sum(0)
            np.maximum(gloss, 1e-6, out=gloss)
            np.power(gloss, finish[2], out=gloss)
            gloss *= finish[1] * (facing > 0)
            ambient, diffuse, specular = (value[:, None] for value in (light.ambient, light.diffuse, light.specular))
            plain += (ambient * power) * color
            if shadows and light.castshadow:
                power = power * self._reached(light, surface.point, (facing > 0) & (power > 0))
                on_top.append(np.minimum((diffuse * (facing * power)) * color + specular * (gloss * power), 1.0))
            else:
                plain += (diffuse * (facing * power)) * color + specular * (gloss * power)
        np.minimum(plain, 1.0, out=plain)
        for extra in on_top:
            plain += extra
        return plain

    def _reached(self, light: Any, point: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """(P,) 1 where a light sees the point, 0 in its shadow; only ``asked`` points are looked at."""
        reached = np.ones(point.shape[1], np.float32)
        rows = np.flatnonzero(asked)
        if rows.size:
            origin = np.array(light.pos, np.float64)
            if light.type == self._mujoco.mjtLightType.mjLIGHT_DIRECTIONAL:
                # One origin serves all rays: far enough away, they are parallel.
                middle = point[:, rows].mean(1)
                origin = middle - np.asarray(light.dir, np.float64) * 100.0 * float(self._model.stat.extent)
            _, distance, _ = self._cast(origin, point.T[rows] - origin)
            reached[rows] = (distance < 0) | (distance > 1.0 - _SHADOW_SLACK)
        return reached

    def _paint_floors(self, lit: np.ndarray, geom: np.ndarray, point: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Multiply textured planes by their texture, averaged over a pixel's ``footprint`` on the plane."""
        for floor, pyramid in self._floors.items():
            rows = np.flatnonzero(geom == floor)
            if rows.size:
                place = np.array(self._data.geom_xpos[floor], np.float32)[:, None]
                axes = np.array(self._data.geom_xmat[floor], np.float32).reshape(3, 3)
                local = axes[:, :2].T @ (point[:, rows] - place)
                lit[:, rows] *= pyramid.sample(local[0], local[1], footprint[rows])
        return lit

    def _reflect(
        self, lit: np.ndarray, geom: np.ndarray, surface: _Surface, distance: np.ndarray, eye: np.ndarray
    ) -> None:
        """Blend mirror images into reflective planes. All mirrored rays of a plane start at the mirrored eye."""
        for plane, share in self._mirrors.items():
            rows = np.flatnonzero(geom == plane)
            if not rows.size:
                continue
            normal = np.array(self._data.geom_xmat[plane]).reshape(3, 3)[:, 2]
            mirrored = eye - 2.0 * float((eye - self._data.geom_xpos[plane]) @ normal) * normal
            rays = -surface.toward.T[rows].astype(np.float64)
            rays -= 2.0 * (rays @ normal)[:, None] * normal
            other, beyond, facing = self._cast(mirrored, rays)
            keep = (other >= 0) & (other != plane) & (beyond > distance[rows])
            if keep.any():
                image = self._surface(mirrored, other[keep], beyond[keep], facing[keep], rays[keep])
                lit[:, rows[keep]] += share * np.minimum(self._light(image, shadows=True), 1.0)

    def _draw_solids(self, color: np.ndarray, depth: np.ndarray, view: _View, eye: np.ndarray, size: int) -> None:
        """Sites, tendons and transparent geoms, the opaque ones first, then from the far to the near."""
        solids = [*self._visible_extras(), *(self._solid(int(geom)) for geom in self._glassy)]
        if not solids:
            return
        turn = np.array(self._data.cam_xmat[self._index]).reshape(3, 3)
        solids.sort(key=lambda solid: (solid.rgba[3] < 1, -float(np.linalg.norm(solid.pos - eye))))
        for solid in solids:
            pixels = _window((solid.pos - eye) @ turn, solid.radius, view.focal, size)
            if not pixels.size:
                continue
            distance, normal = solid.hit(eye, view.rays[pixels])
            seen = distance < depth[pixels]
            if not seen.any():
                continue
            pixels, distance = pixels[seen], distance[seen]
            count = len(pixels)
            surface = _Surface(
                point=(eye + view.rays[pixels] * distance[:, None]).T.astype(np.float32),
                normal=normal[seen].T.astype(np.float32),
                toward=view.toward[:, pixels],
                color=np.repeat(solid.rgba[:3, None], count, axis=1),
                finish=np.repeat(solid.finish[:, None], count, axis=1),
            )
            alpha = solid.rgba[3]
            lit = np.minimum(self._light(surface, shadows=False), 1.0)
            color[:, pixels] = alpha * lit + (1 - alpha) * color[:, pixels]
            if alpha >= 1:
                depth[pixels] = distance

    def _visible_extras(self) -> list[Solid]:
        """What the scene holds beside geoms and can be cast at."""
        found = []
        for item in self._scene.geoms[: self._scene.ngeom]:
            if item.type in SOLIDS and item.rgba[3] > 0:
                found.append(
                    Solid(
                        kind=int(item.type),
                        pos=np.array(item.pos, np.float64),
                        mat=np.array(item.mat, np.float64).reshape(3, 3),
                        size=np.array(item.size, np.float64),
                        rgba=np.array(item.rgba, np.float32),
                        finish=np.array([item.emission, item.specular, 128.0 * item.shininess], np.float32),
                    )
                )
        return found

    def _solid(self, geom: int) -> Solid:
        """A geom of the model; capsules and cylinders state (radius, half length) there."""
        kind, size = int(self._model.geom_type[geom]), np.array(self._model.geom_size[geom])
        if kind in (3, 5):
            size = np.array([size[0], size[0], size[1]])
        return Solid(
            kind=kind,
            pos=np.array(self._data.geom_xpos[geom]),
            mat=np.array(self._data.geom_xmat[geom]).reshape(3, 3),
            size=size,
            rgba=self._rgba[geom],
            finish=self._finish[:, geom],
        )


def _falloff(light: Any, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (3, P or 1) from points to a light, and how much of it arrives there, (P or 1,)."""
    forward = np.asarray(light.dir, np.float32)[:, None]
    if light.headlight or light.type == 1:
        return -forward, np.ones(1, np.float32)
    toward = np.asarray(light.pos, np.float32)[:, None] - point
    distance = np.sqrt((toward * toward).sum(0)) + 1e-9
    toward /= distance
    constant, linear, square = (float(value) for value in light.attenuation)
    power = 1.0 / np.maximum(constant + linear * distance + square * distance * distance, 1e-6)
    if light.type == 0 and light.cutoff < 90:
        along = -(toward * forward).sum(0)
        inside = along > np.cos(np.radians(light.cutoff))
        power = power * inside * np.power(np.maximum(along, 1e-6), light.exponent)
    return toward, power


def _window(center: np.ndarray, radius: float, focal: float, size: int) -> np.ndarray:
    """Indices of the pixels that a sphere around ``center`` (camera coordinates, looking along -z) may touch."""
    near, far = -center[2] - radius, -center[2] + radius
    if far <= 0:
        return np.empty(0, np.intp)
    low, high = np.zeros(2), np.full(2, float(size))
    if near > 1e-6:
        flat = np.array([center[0], -center[1]])
        edges = np.stack([(flat + sign * radius) / z for sign in (-1, 1) for z in (near, far)])
        low = np.clip(np.floor(edges.min(0) * focal + size / 2), 0, size)
        high = np.clip(np.ceil(edges.max(0) * focal + size / 2), 0, size)
    columns, rows = (np.arange(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return np.add.outer(rows * size, columns).ravel()


def _is_plane(model: Any, geom: int) -> bool:
    return int(model.geom_type[geom]) == _PLANE


def _textures(model: Any) -> dict[int, int]:
    """Texture of every geom whose material has a colour texture (mjTEXROLE_RGB)."""
    materials = np.asarray(model.geom_matid)
    found = {}
    for geom in np.flatnonzero(materials >= 0):
        index = int(model.mat_texid[materials[geom], 1])
        if index >= 0:
            found[int(geom)] = index
    return found


def _mean_colors(model: Any) -> np.ndarray:
    """(geoms, 3) what a texture does to a geom's colour on average; ones for planes, which are painted properly."""
    means = np.ones((int(model.ngeom), 3), np.float32)
    for geom, index in _textures(model).items():
        if not _is_plane(model, geom):
            means[geom] = texture(model, index).mean((0, 1)) / 255.0
    return means


def _culling_boxes(model: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``model.bvh_aabb`` that MuJoCo culls rays by, one per body, and boxes (centre, half extents) in the
    body's inertial frame that hold all of its geoms, visual ones and those resized since compilation included."""
    rows, boxes = [], []
    for body in range(int(model.nbody)):
        row, first = int(model.body_bvhadr[body]), int(model.body_geomadr[body])
        count = int(model.body_geomnum[body])
        if row < 0 or count == 0:
            continue
        geoms = slice(first, first + count)
        rows.append(row)
        if (model.geom_type[geoms] == _PLANE).any():
            boxes.append([0.0, 0.0, 0.0, 1e10, 1e10, 1e10])
            continue
        frame = np.array(data.ximat[body]).reshape(3, 3)
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        for geom in range(first, first + count):
            axes = frame.T @ np.array(data.geom_xmat[geom]).reshape(3, 3)
            offset, half = _extents(model, geom)
            center = frame.T @ (data.geom_xpos[geom] - data.xipos[body]) + axes @ offset
            reach = np.abs(axes) @ half
            low, high = np.minimum(low, center - reach), np.maximum(high, center + reach)
        boxes.append([*((low + high) / 2), *((high - low) / 2)])
    return np.array(rows, np.intp), np.array(boxes, np.float64).reshape(-1, 6)


def _extents(model: Any, geom: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half extents of a geom's bounding box in its own frame."""
    kind, size = int(model.geom_type[geom]), np.array(model.geom_size[geom])
    if kind not in SOLIDS:
        return np.array(model.geom_aabb[geom, :3]), np.array(model.geom_aabb[geom, 3:])
    if kind == 2:
        size = np.repeat(size[0], 3)
    elif kind == 3:
        size = np.array([size[0], size[0], size[0] + size[1]])
    elif kind == 5:
        size = np.array([size[0], size[0], size[1]])
    return np.zeros(3), size
