"""OpenGL for MuJoCo pictures: which backend works on this machine, and a camera that draws with it.

A broken backend may abort the interpreter, so every candidate is tried in a child process first. The verdict is kept
in the environment, so that worker processes started later do not try again. numpy only; MuJoCo is imported lazily.
"""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.errors import EnvError

BACKENDS = ("egl", "osmesa", "glfw", "cgl")
PROBE_SECONDS = 60.0

_VERDICT = "WORLDMODEL_GL_PROBED"
"""Environment variable "<backend>|<device>" by which a parent tells its children what it found."""
_OFF = ("disable", "disabled", "off", "false", "0")
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swiftshader", "software")

_PROBE = """
import importlib, sys
import mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(16, 16)
context.make_current()
world = ("<mujoco><worldbody><light pos='0 0 3'/><camera name='c' pos='0 0 3'/><geom size='1' rgba='1 0 0 1'/>"
         "</worldbody></mujoco>")
model = mujoco.MjModel.from_xml_string(world)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
model.vis.global_.offwidth = model.vis.global_.offheight = 16
renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, renderer)
camera = mujoco.MjvCamera()
camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
scene = mujoco.MjvScene(model, 100)
mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
import numpy
picture = numpy.zeros((16, 16, 3), numpy.uint8)
rect = mujoco.MjrRect(0, 0, 16, 16)
mujoco.mjr_render(rect, scene, renderer)
mujoco.mjr_readPixels(picture, None, rect, renderer)
assert picture[8, 8, 0] > 20, "drew a black picture"
from OpenGL import GL
print("DEVICE", GL.glGetString(GL.GL_RENDERER).decode())
sys.stdout.flush()
renderer.free()
context.free()
"""


@dataclass(frozen=True, kw_only=True)
class GLChoice:
    """An OpenGL backend that drew a picture on this machine."""

    backend: str
    """"egl", "osmesa", "glfw" or (macOS) "cgl", as in MUJOCO_GL."""
    device: str = ""
    """What draws, in the driver's words: "llvmpipe (LLVM 15.0.6, 256 bits)"."""
    failures: dict[str, str] = field(default_factory=dict)
    """Backends tried before, with the reason why each was refused."""

    @property
    def is_software(self) -> bool:
        """Whether the processor draws instead of a GPU: 20 to 30 full frames per second."""
        return any(word in self.device.lower() for word in _SOFTWARE)


_chosen: dict[str, GLChoice] = {}
"""By backend, what this process found out."""


def probe(backend: str, timeout: float = PROBE_SECONDS) -> tuple[bool, str]:
    """Draw one picture with ``backend`` in a child process: (True, device name) or (False, reason)."""
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    environment["MUJOCO_GL"] = "disabled"
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE, backend], env=environment, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no picture within {timeout:.0f} s"
    for line in result.stdout.decode(errors="replace").splitlines():
        if line.startswith("DEVICE "):
            return True, line.removeprefix("DEVICE ").strip()
    last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return False, (last[0] if last else f"exit code {result.returncode}")[:160]


def candidates() -> list[str]:
    """Backends worth trying: the user's MUJOCO_GL alone where it is set, else those that can work here.

    Raises EnvError where MUJOCO_GL turns drawing off or names no backend.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted in _OFF:
        raise EnvError(
            f"MUJOCO_GL={wanted} turns OpenGL off but --env.render asks for it; unset MUJOCO_GL, or use "
            "--env.render ray, which needs no OpenGL"
        )
    if wanted and wanted not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise EnvError(f"MUJOCO_GL must be one of {known} or disabled, got {wanted!r}; unset it to let us choose")
    if wanted:
        return [wanted]
    if sys.platform == "darwin":
        return ["cgl", "glfw"]
    return ["egl", "osmesa", "glfw"] if os.environ.get("DISPLAY") else ["egl", "osmesa"]


def choose_backend(try_backend: Callable[[str], tuple[bool, str]] | None = None) -> GLChoice:
    """The first backend that draws here; decided once per process tree and written to MUJOCO_GL for the children.

    Args:
        try_backend: replaces :func:`probe`, for tests; the verdict is then neither read from nor kept in the cache.

    Raises EnvError with the line that installs what is missing.
    """
    if try_backend is None:
        known = _known()
        if known is not None:
            return known
    failures: dict[str, str] = {}
    for backend in candidates():
        works, words = (try_backend or probe)(backend)
        if works:
            choice = GLChoice(backend=backend, device=words, failures=failures)
            if try_backend is None:
                _chosen[backend] = choice
                os.environ["MUJOCO_GL"] = backend
                os.environ[_VERDICT] = f"{backend}|{words}"
            return choice
        failures[backend] = words
    raise EnvError(_nothing_works(failures))


def _known() -> GLChoice | None:
    """The verdict of this process or of its parent, as long as it fits what MUJOCO_GL says now."""
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted in _chosen:
        return _chosen[wanted]
    backend, _, device = os.environ.get(_VERDICT, "").partition("|")
    return GLChoice(backend=backend, device=device) if backend and backend == wanted else None


def _nothing_works(failures: dict[str, str]) -> str:
    tried = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
    return (
        f"no OpenGL to draw with ({tried}); run `apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri` (or "
        "`apt-get install -y libosmesa6`), or use --env.render ray, which needs no OpenGL"
    )


@contextmanager
def mujoco_without_gl() -> Iterator[None]:
    """Import MuJoCo and dm_control inside this: they then load no OpenGL of their own, whatever MUJOCO_GL says, so
    that every renderer can be used in one process in any order. Import-time deprecations are not the user's business.
    """
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = before


def load_mujoco() -> Any:
    """The ``mujoco`` module, imported without OpenGL. Raises EnvError where it is not installed."""
    try:
        with mujoco_without_gl():
            return importlib.import_module("mujoco")
    except ImportError as error:
        raise EnvError(f"MuJoCo cannot be imported ({error}); run `pip install 'mujoco>=3.3,<4'`") from error


class GLCamera:
    """Draws one camera of a MuJoCo model with OpenGL, pixel for pixel as ``physics.render`` of dm_control does.

    Owns its OpenGL context, which belongs to the process that made it. ``close`` frees it; so does the interpreter's
    exit, before the drivers go.

    Args:
        model: ``mujoco.MjModel``; its offscreen size is set to ``max_size``, and its shadow map and multisampling are
            turned off where ``fast``.
        data: ``mujoco.MjData`` to look at.
        camera: index of a camera of the model.
        max_size: largest picture that will be asked for, pixels.
        fast: no shadows, no reflections, no multisampling: 5 to 10 times faster on a processor.

    Raises EnvError where no backend works.
    """

    def __init__(self, model: Any, data: Any, *, camera: int, max_size: int, fast: bool = False) -> None:
        self._context: Any = None
        self._mjr: Any = None
        self._pid = os.getpid()
        backend = choose_backend().backend
        mujoco = load_mujoco()
        module = importlib.import_module(f"mujoco.{backend}")
        self._mujoco, self._model, self._data = mujoco, model, data
        model.vis.global_.offwidth = model.vis.global_.offheight = max_size
        if fast:
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        self._context = module.GLContext(max_size, max_size)
        _live.add(self)
        _close_first_at_exit()
        self._context.make_current()
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
        self._scene = mujoco.MjvScene(model, 5000)
        if fast:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0  # as dm_control does
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera

    def draw(self, size: int) -> np.ndarray:
        """The picture of now, uint8 (size, size, 3)."""
        mujoco = self._mujoco
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        picture = np.empty((size, size, 3), np.uint8)
        rect = mujoco.MjrRect(0, 0, size, size)
        self._context.make_current()
        mujoco.mjr_render(rect, self._scene, self._mjr)
        mujoco.mjr_readPixels(picture, None, rect, self._mjr)
        return np.ascontiguousarray(picture[::-1])  # OpenGL's first row is the lowest

    def refresh(self) -> None:
        """Tell the driver that height fields of the model changed; the rest is read anew in every picture."""
        self._context.make_current()
        for index in range(self._model.nhfield):
            self._mujoco.mjr_uploadHField(self._model, self._mjr, index)

    def close(self) -> None:
        """Free the context; harmless when repeated, and in a forked child, where the context is the parent's."""
        context, mjr, self._context, self._mjr = self._context, self._mjr, None, None
        _live.discard(self)
        if context is None or os.getpid() != self._pid:
            return
        context.make_current()
        if mjr is not None:
            mjr.free()
        context.free()


_live: weakref.WeakSet[GLCamera] = weakref.WeakSet()


def _close_all() -> None:
    for camera in list(_live):
        camera.close()


def _close_first_at_exit() -> None:
    """Exit hooks run newest first, and MuJoCo registers the one that takes the display away when the first context is
    made: ours, which frees the living contexts, has to be newer than that."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)
