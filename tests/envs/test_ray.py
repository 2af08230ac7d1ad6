"""The camera without OpenGL: geometry against MuJoCo's ray caster, light against numbers, pictures against OpenGL."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.gl import GLCamera, choose_backend, load_mujoco
from worldmodel.envs.ray import RayCamera
from worldmodel.envs.shapes import SOLIDS, Solid
from worldmodel.errors import EnvError

mujoco = load_mujoco()
AMBIENT = '<visual><headlight ambient=".4 .4 .4" diffuse="0 0 0" specular="0 0 0"/></visual>'


def _world(body: str, head: str = AMBIENT, assets: str = ""):
    """A model of ``body`` looked at from 3 above the origin, and its data."""
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco>{head}<asset>{assets}</asset><worldbody><camera pos="0 0 3"/>{body}</worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def _draw(body: str, size: int = 33, head: str = AMBIENT, assets: str = "", **settings) -> np.ndarray:
    return RayCamera(*_world(body, head, assets), camera=0, **settings).draw(size)


@pytest.fixture(scope="module")
def opengl() -> str:
    """A backend that draws here, or a skipped test."""
    try:
        return choose_backend().backend
    except EnvError as error:
        pytest.skip(str(error))


def test_ambient_light_gives_the_material_colour_times_its_strength():
    picture = _draw('<geom size=".5" rgba=".5 1 0 1"/>')
    np.testing.assert_array_equal(picture[16, 16], [51, 102, 0])  # 0.4 x 255 x colour
    np.testing.assert_array_equal(picture[0, 0], [0, 0, 0])  # no skybox


def test_diffuse_light_falls_off_with_the_cosine():
    head = '<visual><headlight ambient="0 0 0" diffuse=".8 .8 .8" specular="0 0 0"/></visual>'
    picture = _draw('<geom type="box" size=".5 .5 .1" euler="0 30 0" rgba="1 1 1 1"/>', head=head)
    assert abs(int(picture[16, 16, 0]) - 0.8 * np.cos(np.radians(30)) * 255) <= 1


def test_the_silhouette_of_a_sphere_is_where_a_pinhole_puts_it():
    size, radius, height = 201, 0.5, 3.0
    row = _draw(f'<geom size="{radius}"/>', size=size)[size // 2, :, 0] > 0
    focal = size / 2 / np.tan(np.radians(45) / 2)
    expected = 2 * focal * np.tan(np.arcsin(radius / height))
    assert abs(row.sum() - expected) <= 1.5
    assert abs(np.flatnonzero(row).mean() - size // 2) < 0.6


def test_up_and_right_are_not_mirrored():
    picture = _draw('<geom pos=".6 0 0" size=".2" rgba="1 0 0 1"/><geom pos="0 .6 0" size=".2" rgba="0 1 0 1"/>')
    rows, columns = np.nonzero(picture[..., 0])
    assert columns.mean() > 20 and abs(rows.mean() - 16) < 1
    rows, columns = np.nonzero(picture[..., 1])
    assert rows.mean() < 12 and abs(columns.mean() - 16) < 1


KINDS = {"sphere": ".3", "capsule": ".2 .3", "ellipsoid": ".2 .3 .4", "cylinder": ".3 .2", "box": ".2 .3 .4"}


@pytest.mark.parametrize("kind", KINDS)
def test_solids_are_hit_where_mujoco_hits_them(kind):
    model, data = _world(f'<geom type="{kind}" size="{KINDS[kind]}" pos=".1 .2 -.1" euler="20 40 60"/>')
    rng = np.random.default_rng(0)
    origin = np.array([0.3, -1.5, 1.2])
    rays = rng.normal(size=(400, 3)) * 0.3 + (data.geom_xpos[0] - origin)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    geom, distance, normal = np.empty(400, np.int32), np.empty(400), np.empty(1200)
    mujoco.mj_multiRay(model, data, origin, rays.ravel(), None, 1, -1, geom, distance, normal, 400, 1e10)
    size = model.geom_size[0]
    solid = Solid(
        kind=int(model.geom_type[0]),
        pos=data.geom_xpos[0],
        mat=data.geom_xmat[0].reshape(3, 3),
        size=np.array([size[0], size[0], size[1]]) if kind in ("capsule", "cylinder") else size,
        rgba=np.ones(4),
        finish=np.zeros(3),
    )
    found, facing = solid.hit(origin, rays)
    hit = geom >= 0
    assert set(SOLIDS) == {2, 3, 4, 5, 6} and 50 < hit.sum() < 395
    np.testing.assert_array_equal(np.isfinite(found), hit)
    np.testing.assert_allclose(found[hit], distance[hit], atol=1e-9)
    np.testing.assert_allclose(facing[hit], normal.reshape(-1, 3)[hit], atol=1e-6)
    center = np.linalg.norm(origin + rays[hit] * found[hit, None] - solid.pos, axis=1)
    assert center.max() <= solid.radius + 1e-9


@pytest.mark.parametrize("task", ["finger_turn_easy", "fish_swim", "humanoid_walk", "reacher_hard", "walker_walk"])
def test_every_geom_is_seen_that_a_single_ray_sees(task):
    """MuJoCo's bundle of rays misses geoms that do not collide, unless its culling boxes are mended."""
    env = DMCConfig(task=task, render="ray").build()
    env.reset(seed=1)
    camera = env._camera
    assert isinstance(camera, RayCamera)
    eye, rays = np.array(env._data.cam_xpos[0]), camera._view(64).rays[::5]
    bundled, _, _ = camera._cast(eye, rays)
    groups, geom = np.array([1, 1, 1, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    single = []
    for ray in rays:
        mujoco.mj_ray(env._model, env._data, eye, ray, groups, 1, -1, geom)
        single.append(int(geom[0]))
    assert (bundled != np.array(single)).sum() <= 1
    assert len(set(single)) >= 5


def test_drawing_leaves_the_model_as_it_was():
    model, data = _world('<geom size=".2"/><geom size=".3" pos="1 0 0" rgba="1 0 0 .5" contype="0" conaffinity="0"/>')
    before = model.bvh_aabb.copy(), model.geom_group.copy()
    RayCamera(model, data, camera=0).draw(16)
    np.testing.assert_array_equal(model.bvh_aabb, before[0])
    np.testing.assert_array_equal(model.geom_group, before[1])


def test_glass_mixes_with_what_is_behind_it():
    behind = '<geom size=".4" rgba="1 0 0 1"/>'
    front = '<geom type="box" size=".4 .4 .1" pos="0 0 1" rgba="0 1 0 .25"/>'
    np.testing.assert_array_equal(_draw(behind + front)[16, 16], [77, 26, 0])  # 102 x (0.75, 0.25)
    hidden = '<geom type="box" size=".4 .4 .1" pos="0 0 -1" rgba="0 1 0 .25"/>'
    np.testing.assert_array_equal(_draw(behind + hidden)[16, 16], [102, 0, 0])


def test_sites_of_visible_groups_are_drawn_and_hidden_ones_are_not():
    shown, hidden = '<site pos="-.5 0 0" size=".2" rgba="1 0 0 1" ', '<site pos=".5 0 0" size=".2" rgba="0 1 0 1" '
    picture = _draw(shown + "/>" + hidden + 'group="4"/>')
    assert picture[16, :16, 0].max() == 102 and picture[..., 1].max() == 0
    behind = '<geom type="box" size="1 1 .1" pos="0 0 .5" rgba="0 0 1 1"/>'
    assert _draw(behind + '<site size=".2" rgba="1 0 0 1"/>')[..., 0].max() == 0


def test_tendons_are_drawn():
    world = """<body><freejoint/><geom size=".1" rgba="0 0 1 1"/><site name="a" size=".01"/></body>
    <site name="b" pos="0 1 0" size=".01"/></worldbody><tendon><spatial width=".05" rgba="0 1 0 1"><site site="a"/>
    <site site="b"/></spatial></tendon><worldbody>"""
    picture = _draw(world)
    assert picture[8, 16, 1] == 102 and picture[24, 16, 1] == 0


def test_hidden_groups_and_invisible_geoms_are_not_drawn():
    assert _draw('<geom size=".5" group="3"/>').max() == 0
    assert _draw('<geom size=".5" rgba="1 1 1 0"/>').max() == 0


def test_shadows_fall_on_the_floor_under_a_light():
    world = """<light pos="1 0 2" dir="-.3 0 -1" cutoff="90" diffuse=".5 .5 .5" specular="0 0 0"/>
    <geom type="plane" size="3 3 .1" rgba="1 1 1 1"/><geom size=".2" pos=".5 0 1" rgba="1 0 0 1"/>"""
    lit, shaded = _draw(world, shadows=False), _draw(world)
    assert shaded[16, 16, 2] == 102 and lit[16, 16, 2] > 150  # the light, the ball and the origin lie on one line
    np.testing.assert_array_equal(lit[30, 4], shaded[30, 4])


def test_a_directional_light_casts_parallel_shadows():
    world = """<light directional="true" pos="0 0 2" dir="0 -1 -1" diffuse=".5 .5 .5" specular="0 0 0"/>
    <geom type="plane" size="3 3 .1" rgba="1 1 1 1"/><geom size=".2" pos="0 .5 .5" rgba="1 0 0 1"/>"""
    assert _draw(world)[16, 16, 2] == 102 and _draw(world, shadows=False)[16, 16, 2] > 150


def test_reflective_floors_mirror_what_stands_on_them():
    world = '<geom type="plane" size="3 3 .1" material="m"/><geom size=".3" pos="0 1 .3" rgba="1 0 0 1"/>'
    head = AMBIENT.replace("<visual>", '<visual><global fovy="60"/>')
    pictures = []
    for share in ("0", ".5"):
        assets = f'<material name="m" rgba="0 0 1 1" reflectance="{share}"/>'
        model, data = _world(world + '<camera name="low" pos="0 -2 1" xyaxes="1 0 0 0 1 2"/>', head, assets)
        pictures.append(RayCamera(model, data, camera=1).draw(33).astype(int))
    change = pictures[1] - pictures[0]
    assert change[..., 0].max() == 51 and change[..., 1:].max() == 0  # half of the ball's 102
    assert np.flatnonzero(change[..., 0].any(1)).min() > np.flatnonzero((pictures[0][..., 0] > 80).any(1)).min()


def test_the_checkers_lie_where_opengl_puts_them():
    """Cells of a plane, found by reading OpenGL's pictures: a finite plane's texture starts in a corner."""
    checker = '<texture name="t" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1" width="64" height="64"/>'
    for size, repeat, uniform, expected in (
        ("2 2 .1", "1 1", "true", 2), ("2 1 .1", "3 2", "false", 0), ("2 1 .1", "1 1", "false", 2),
        ("0 0 .1", "1 1", "true", 2), (".3 .3 .1", "1 1", "true", 0),
    ):  # fmt: skip
        material = f'<material name="m" texture="t" texrepeat="{repeat}" texuniform="{uniform}"/>'
        picture = _draw(f'<geom type="plane" size="{size}" material="m"/>', 201, AMBIENT, checker + material)
        focal = 100.5 / np.tan(np.radians(45) / 2)
        at = round(0.25 / 3 * focal)
        assert picture[100 - at, 100 + at].argmax() == expected, (size, repeat, uniform)


def test_the_skybox_is_the_right_way_round():
    sky = '<texture name="s" type="skybox" builtin="gradient" rgb1="1 0 0" rgb2="0 0 1" width="16" height="96"/>'
    axes = ["0 -1 0 0 0 1", "0 1 0 0 0 1", "1 0 0 0 -1 0", "1 0 0 0 1 0", "-1 0 0 0 0 1", "1 0 0 0 0 1"]
    cameras = "".join(f'<camera pos="0 0 0" xyaxes="{each}"/>' for each in axes)  # +x -x +z -z -y +y
    model, data = _world(f'{cameras}<geom size=".1" pos="0 0 -99"/>', assets=sky)
    faces = model.tex_data.reshape(6, 16, 16, 3)
    faces[..., 0], faces[..., 1] = np.arange(16)[None, None] * 16, np.arange(16)[None, :, None] * 16
    faces[..., 2] = np.arange(6)[:, None, None] * 40
    # Column and row grow along these corners of the picture, as measured on MuJoCo's own renderer.
    flipped = [(True, False), (True, False), (False, True), (False, True), (True, False), (True, False)]
    for face, (columns_flip, rows_flip) in enumerate(flipped):
        picture = RayCamera(model, data, camera=face + 1).draw(16).astype(int)
        assert picture[8, 8, 2] == face * 40
        assert (picture[8, 1, 0] > picture[8, 14, 0]) == columns_flip, face
        assert (picture[1, 8, 1] > picture[14, 8, 1]) == rows_flip, face


def test_the_camera_follows_the_walker():
    """Two units further on, the checkered floor repeats itself, so the tracking camera must see the same picture."""
    env = DMCConfig(task="walker_walk", render="ray").build()
    before = env.reset(seed=0).obs["image"].astype(int)
    env._data.qpos[1] += 2.0
    mujoco.mj_forward(env._model, env._data)
    assert env._camera is not None
    after = env._camera.draw(64).astype(int)
    assert np.abs(before - after).mean() < 0.1


def test_colours_are_read_anew_on_refresh():
    model, data = _world('<geom size=".5" rgba="1 0 0 1"/>')
    camera = RayCamera(model, data, camera=0)
    model.geom_rgba[0] = (0, 0, 1, 1)
    camera.refresh()
    np.testing.assert_array_equal(camera.draw(17)[8, 8], [0, 0, 102])


@pytest.mark.parametrize(
    ("task", "bound"), [("cartpole_swingup", 4.0), ("walker_walk", 8.0), ("cheetah_run", 4.0), ("reacher_easy", 5.0)]
)
def test_pictures_agree_with_opengl(opengl, task, bound):
    """Mean difference of 64 x 64 pictures, of 255. Smooth edges and the skybox's specks make about 2 of it; the rest is
    the floor, which OpenGL lights at the corners of a coarse grid only (walker: 3.1 upright, 6.9 lying)."""
    env = DMCConfig(task=task, render="ray").build()
    env.reset(seed=1)
    camera = GLCamera(env._model, env._data, camera=0, max_size=64)
    rng = np.random.default_rng(0)
    for _ in range(3):
        for _ in range(10):
            step = env.step(rng.uniform(-1, 1, env.spec.action.size))
        theirs = camera.draw(64)
        assert np.abs(step.obs["image"].astype(int) - theirs).mean() < bound
    camera.close()
