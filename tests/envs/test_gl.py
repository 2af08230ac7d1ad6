"""Which OpenGL works, what is said where none does, and a camera that draws with it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from worldmodel.envs import gl
from worldmodel.envs.dmc import DMCConfig
from worldmodel.errors import EnvError

WORLD = """<mujoco><worldbody><light pos="0 0 3"/><camera name="c" pos="0 0 3"/>
<geom name="ball" size=".5" rgba="1 0 0 1"/></worldbody></mujoco>"""


@pytest.fixture(scope="module")
def backend() -> str:
    """A backend that draws here, or a skipped test."""
    try:
        return gl.choose_backend().backend
    except EnvError as error:
        pytest.skip(str(error))


def _ball_world():
    mujoco = gl.load_mujoco()
    model = mujoco.MjModel.from_xml_string(WORLD)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_the_first_backend_that_draws_is_chosen_and_the_refusals_are_kept(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    answers = {"egl": (False, "no device"), "osmesa": (True, "llvmpipe (LLVM 15)")}
    choice = gl.choose_backend(answers.__getitem__)
    assert (choice.backend, choice.failures, choice.is_software) == ("osmesa", {"egl": "no device"}, True)
    assert not gl.GLChoice(backend="egl", device="NVIDIA H200/PCIe/SSE2").is_software


def test_where_nothing_draws_the_error_names_the_packages_and_the_renderer_that_needs_none(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(EnvError) as error:
        gl.choose_backend(lambda name: (False, f"no {name} here"))
    words = str(error.value)
    assert "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri" in words
    assert "libosmesa6" in words and "--env.render ray" in words and "\n" not in words
    if sys.platform != "darwin":
        assert "no egl here" in words and "no osmesa here" in words


def test_a_task_from_pixels_without_opengl_fails_with_that_sentence(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(gl, "_chosen", {})
    monkeypatch.delenv(gl._VERDICT, raising=False)
    monkeypatch.setattr(gl, "probe", lambda name: (False, "simulated"))
    with pytest.raises(EnvError, match=r"osmesa: simulated.*apt-get install.*--env.render ray"):
        DMCConfig(task="cartpole_swingup", render="gl").build()
    DMCConfig(task="cartpole_swingup", render="ray").build().close()


def test_the_users_backend_is_the_only_candidate(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "OSMesa")
    assert gl.candidates() == ["osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(EnvError, match=r"turns OpenGL off.*--env\.render ray"):
        gl.candidates()
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(EnvError, match=r"egl, osmesa.*'vulkan'"):
        gl.candidates()


def test_a_window_system_is_tried_only_where_there_is_a_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert gl.candidates() == ["egl", "osmesa"]
    monkeypatch.setenv("DISPLAY", ":0")
    assert gl.candidates() == ["egl", "osmesa", "glfw"]


def test_a_backend_that_cannot_start_is_refused_in_a_child_with_its_reason(monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    works, reason = gl.probe("egl")
    assert not works and reason


def test_a_backend_that_hangs_is_refused():
    assert gl.probe("egl", timeout=0.01) == (False, "no picture within 0 s")


def test_children_take_over_the_verdict_without_trying_again(monkeypatch):
    monkeypatch.setattr(gl, "_chosen", {})
    monkeypatch.setattr(gl, "probe", lambda name: pytest.fail(f"{name} was tried again"))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv(gl._VERDICT, "osmesa|some device")
    assert gl.choose_backend() == gl.GLChoice(backend="osmesa", device="some device")
    monkeypatch.setenv(gl._VERDICT, "egl|other device")  # a verdict on another backend than asked for says nothing
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        gl.choose_backend()


def test_importing_mujoco_leaves_the_users_setting_alone(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with gl.mujoco_without_gl():
        assert os.environ["MUJOCO_GL"] == "disabled"
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    with gl.mujoco_without_gl():
        pass
    assert "MUJOCO_GL" not in os.environ


def test_the_camera_draws_and_can_be_closed_twice(backend):
    camera = gl.GLCamera(*_ball_world(), camera=0, max_size=64)
    picture = camera.draw(48)
    camera.close()
    camera.close()
    assert picture.shape == (48, 48, 3) and picture.dtype == np.uint8
    assert picture[24, 30, 0] > 100 and picture[24, 30, 0] > 2 * picture[24, 30, 1] and picture[0, 0].sum() == 0


def test_cameras_of_one_process_do_not_disturb_each_other(backend):
    model, data = _ball_world()
    other, other_data = _ball_world()
    other.geom_rgba[0] = (0, 1, 0, 1)
    red = gl.GLCamera(model, data, camera=0, max_size=32)
    green = gl.GLCamera(other, other_data, camera=0, max_size=32, fast=True)
    before = red.draw(32)
    assert green.draw(32)[16, 16].argmax() == 1
    green.close()
    np.testing.assert_array_equal(red.draw(32), before)
    red.close()


SCRIPT = """
import numpy as np
from worldmodel.envs.dmc import DMCConfig
ray = DMCConfig(task="cartpole_swingup", render="ray").build()
ray.reset(seed=0)
for _ in range(2):
    env = DMCConfig(task="cartpole_swingup", render="gl").build()
    assert env.reset(seed=0).obs["image"].std() > 5
    env.step(np.zeros(1))
print("drawn")
"""


def test_a_process_that_forgot_to_close_ends_quietly_and_mixes_renderers(backend):
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    result = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (result.returncode, result.stdout.decode().strip(), result.stderr.decode()) == (0, "drawn", "")


THEIRS = """
import os, sys
os.environ["MUJOCO_GL"] = sys.argv[1]
import numpy as np
from dm_control import suite
pictures = []
for domain, task, camera in (("walker", "walk", 0), ("finger", "turn_easy", 0), ("quadruped", "escape", 2)):
    env = suite.load(domain, task, task_kwargs={"random": np.random.RandomState(7)})
    env.reset()
    for _ in range(3):
        pictures.append(env.physics.render(64, 64, camera_id=camera))
        env.step(env.action_spec().maximum)
np.save(sys.argv[2], np.stack(pictures))
"""


def test_gl_equals_dm_controls_own_pictures_pixel_for_pixel(backend, tmp_path):
    file = tmp_path / "theirs.npy"
    done = subprocess.run([sys.executable, "-c", THEIRS, backend, file], capture_output=True, timeout=120, check=False)
    assert file.exists(), done.stderr.decode()
    theirs = iter(np.load(file))
    for task in ("walker_walk", "finger_turn_easy", "quadruped_escape"):
        env = DMCConfig(task=task, render="gl", repeat=1).build()
        image = env.reset(seed=7).obs["image"]
        for _ in range(3):
            np.testing.assert_array_equal(image, next(theirs))
            image = env.step(np.ones(env.spec.action.size)).obs["image"]
        env.close()


def test_terrain_is_sent_to_the_driver_when_it_changes(backend):
    env = DMCConfig(task="quadruped_escape", render="gl-fast", size=32).build()
    first = env.reset(seed=1).obs["image"]
    other = env.reset(seed=2).obs["image"]
    again = env.reset(seed=1).obs["image"]
    env.close()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1


def test_the_fast_renderer_leaves_out_the_shadow(backend):
    images = []
    for render in ("gl", "gl-fast"):
        env = DMCConfig(task="walker_walk", render=render).build()
        images.append(env.reset(seed=0).obs["image"].astype(int))
        env.close()
    assert 1 < np.abs(images[0] - images[1]).mean() < 20
