"""The DeepMind Control Suite (arXiv 1801.00690), from pixels, from state vectors, or both.

A frame is one control step of the suite; a decision is ``repeat`` frames with the same action, whose rewards are
summed; repeating stops where the episode does. Episodes last 1000 frames and end by that limit: a truncation, not a
death. A task that ended with discount 0 would be terminal; of the suite's only lqr can.

Three renderers draw the same scene, and the one used is part of the environment's name, since returns from pixels
depend on it. "gl" equals dm_control's own pictures pixel for pixel; published scores are "gl". "gl-fast" leaves out
shadows, reflections and smooth edges. "ray" needs no OpenGL at all (see ``worldmodel.envs.ray``).
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from worldmodel.envs.gl import GLCamera, load_mujoco, mujoco_without_gl
from worldmodel.envs.ray import RayCamera
from worldmodel.errors import EnvError, unknown
from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec, EnvStep, Simulation

Observation = Literal["pixels", "proprio", "both"]
Renderer = Literal["gl", "gl-fast", "ray"]

RENDER_SIZE = 128
"""Height and width of pictures for videos, pixels; larger where the observation is."""

_ALIASES = {"cup": "ball_in_cup"}
_CAMERAS = {"quadruped": 2}
"""Camera by domain where it is not 0, as in all published runs."""
_UNBOUNDED = 1e9
"""The suite writes 1e10 for actions without limits (lqr)."""


@dataclass(frozen=True, kw_only=True)
class DMCConfig:
    """One task of the Control Suite.

    >>> DMCConfig(task="cup_catch", render="ray").name
    'dmc/ball_in_cup_catch/ray'
    """

    task: str = "walker_walk"
    """"<domain>_<task>", see :func:`tasks`; "cup" stands for "ball_in_cup"."""
    obs: Observation = "pixels"
    """"pixels": "image" alone; "proprio": the task's vectors; "both"."""
    render: Renderer = "gl"
    """What draws "image"; state vectors need no renderer, and their videos are drawn by "ray"."""
    size: int = 64
    """Height and width of "image", pixels."""
    repeat: int = 2
    """Frames per decision."""
    camera: int = -1
    """Index of a camera of the model; -1 takes the one of the published runs: 2 for quadruped, else 0."""
    max_frames: int = 1000
    """Frames after which an episode is truncated; the suite's own limit is 1000, and none for lqr."""

    def __post_init__(self) -> None:
        for name, known in (("obs", get_args(Observation)), ("render", get_args(Renderer))):
            if getattr(self, name) not in known:
                raise ValueError(unknown(name, str(getattr(self, name)), known))
        for name, low in (("size", 8), ("repeat", 1), ("camera", -1), ("max_frames", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """Task and what it is seen through: "dmc/walker_walk/gl", "dmc/walker_walk/proprio"."""
        view = {"pixels": self.render, "proprio": "proprio", "both": f"{self.render}+proprio"}[self.obs]
        return f"dmc/{_full_name(self.task)}/{view}"

    def build(self, index: int = 0) -> DMCEnv:
        """Make environment ``index`` of a pool; until it is seeded it draws from a stream of that number.

        Raises EnvError: unknown task or camera, dm_control missing or its MuJoCo too new, no OpenGL.
        """
        return DMCEnv(self, index)

    def simulation(self) -> Simulation:
        """Futures of running tasks, see ``specs.Simulates``."""
        from worldmodel.envs.dmc_simulation import PhysicsSimulation

        return PhysicsSimulation(DMCConfig(task=self.task, obs="proprio", repeat=self.repeat).build().spec)


@functools.cache
def tasks() -> list[str]:
    """Names of all tasks, sorted. Raises EnvError where dm_control is not installed or does not work."""
    return sorted(_by_name())


class Camera(Protocol):
    """What draws: ``GLCamera`` or ``RayCamera``."""

    def draw(self, size: int) -> np.ndarray: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running task from the inside, for simulations of it: to be read, not changed."""

    task: Any
    physics: Any
    model: Any
    data: Any
    name: str
    """In full: "ball_in_cup_catch"."""
    repeat: int
    substeps: int
    """Steps of MuJoCo in a frame."""
    low: np.ndarray
    high: np.ndarray
    """(A,) bounds of controls."""


class DMCEnv:
    """A running task; made by :meth:`DMCConfig.build`. Its whole state can be taken out and put into another one of
    the same configuration, which then goes on bit for bit (on the same version of MuJoCo and kind of processor)."""

    def __init__(self, config: DMCConfig, index: int) -> None:
        self._config = config
        self._env = _load(config.task)
        self._task, self._physics = self._env.task, self._env.physics
        self._model, self._data = self._physics.model.ptr, self._physics.data.ptr
        self._task.random.seed(index)
        if self._model.nhfield:
            _forbid_contexts(self._physics)
        self._diverged = importlib.import_module("dm_control.rl.control").PhysicsError
        self._frames = 0
        self._is_over = True
        self._pristine = _tables(self._model)
        bounds = self._env.action_spec()
        self._low, self._high = np.array(bounds.minimum, np.float64), np.array(bounds.maximum, np.float64)
        self._is_bounded = bool((np.abs(self._low) < _UNBOUNDED).all() and (np.abs(self._high) < _UNBOUNDED).all())
        self._spec = self._make_spec()
        self._camera: Camera | None = self._make_camera(config.render) if config.obs != "proprio" else None

    def _make_spec(self) -> EnvSpec:
        config = self._config
        obs: dict[str, ArraySpec] = {}
        if config.obs != "proprio":
            obs["image"] = ArraySpec(shape=(config.size, config.size, 3), dtype="uint8")
        if config.obs != "pixels":
            for key, spec in self._env.observation_spec().items():
                if count := int(np.prod(spec.shape)):
                    obs[key] = ArraySpec(shape=(count,), dtype="float32")
        # dm_control keeps the limit in frames as a quotient of floats and compares with >=.
        frames = int(min(config.max_frames, np.ceil(self._env._step_limit)))
        return EnvSpec(
            name=config.name,
            obs=obs,
            action=ActionSpec(kind="continuous", size=len(self._low), is_bounded=self._is_bounded),
            repeat=config.repeat,
            max_steps=-(-frames // config.repeat),
        )

    def _make_camera(self, render: Renderer) -> Camera:
        config, count = self._config, int(self._model.ncam)
        domain = _by_name()[_full_name(config.task)][0]
        camera = _CAMERAS.get(domain, 0) if config.camera < 0 else config.camera
        if camera >= count:
            raise EnvError(f"camera {camera} does not exist: {config.task} has {count}; take 0 to {count - 1}, or -1")
        if render == "ray":
            return RayCamera(self._model, self._data, camera=camera)
        largest = max(config.size, RENDER_SIZE)
        return GLCamera(self._model, self._data, camera=camera, max_size=largest, fast=render == "gl-fast")

    @property
    def spec(self) -> EnvSpec:
        """Observations by key, actions in [-1, 1] (lqr: unbounded, as they are)."""
        return self._spec

    @property
    def simulated(self) -> Running:
        """What a simulation of this task reads while it runs."""
        return Running(
            task=self._task, physics=self._physics, model=self._model, data=self._data,
            name=_full_name(self._config.task), repeat=self._config.repeat, substeps=int(self._env._n_sub_steps),
            low=self._low, high=self._high,
        )

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start an episode; a seed restarts the task's random stream, None goes on with it."""
        if seed is not None:
            self._task.random.seed(seed % 2**32)
        first = self._guarded(self._env.reset)
        self._frames, self._is_over = 0, False
        if self._camera is not None:
            self._camera.refresh()
        return EnvStep(obs=self._observe(first.observation), is_first=True)

    def step(self, action: np.ndarray) -> EnvStep:
        """Repeat one action, (A,) in [-1, 1], clipped to that. Raises EnvError after ``is_last``, for an action of the
        wrong shape or with NaN, and where the physics diverged."""
        if self._is_over:
            raise EnvError(f"{self._spec.name} was stepped after the end of its episode; call reset first")
        control = self._control(action)
        reward, repeated = 0.0, 0
        while True:
            step = self._guarded(self._env.step, control)
            reward += float(step.reward or 0.0)
            repeated += 1
            self._frames += 1
            self._is_over = bool(step.last()) or self._frames >= self._config.max_frames
            if self._is_over or repeated == self._config.repeat:
                break
        return EnvStep(
            obs=self._observe(step.observation),
            reward=reward,
            is_last=self._is_over,
            is_terminal=bool(step.last() and step.discount == 0),
        )

    def _control(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, np.float64)
        if action.shape != self._low.shape:
            raise EnvError(f"{self._spec.name} takes actions of shape {self._low.shape}, got {action.shape}")
        if not np.isfinite(action).all():
            raise EnvError(f"{self._spec.name} was given an action that is not finite: {action}")
        if not self._is_bounded:
            return action
        return self._low + (np.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (self._high - self._low)

    def _guarded(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except self._diverged as error:
            self._is_over = True
            raise EnvError(f"the physics of {self._spec.name} diverged ({error}); reset it") from error

    def _observe(self, vectors: dict[str, Any]) -> dict[str, np.ndarray]:
        obs: dict[str, np.ndarray] = {}
        for key in self._spec.obs:
            if key == "image" and self._camera is not None:
                obs[key] = self._camera.draw(self._config.size)
            else:
                obs[key] = np.array(vectors[key], np.float32).reshape(-1)
        return obs

    def render(self) -> np.ndarray:
        """A picture for videos, at least 128 x 128; drawn by "ray" where the observation has none."""
        if self._camera is None:
            self._camera = self._make_camera("ray")
        return self._camera.draw(max(self._config.size, RENDER_SIZE))

    def close(self) -> None:
        """Free what the renderer holds."""
        if self._camera is not None:
            self._camera.close()

    def get_state(self) -> dict[str, Any]:
        """Physics, what the task changed in the model and keeps itself, its random stream and the counters.

        Beside the integrator's state it holds what MuJoCo computed last, since the suite advances from there: some
        sensors are only computed while stepping.
        """
        mujoco = load_mujoco()
        kind = mujoco.mjtState.mjSTATE_INTEGRATION.value
        physics = np.empty(mujoco.mj_stateSize(self._model, kind))
        mujoco.mj_getState(self._model, self._data, physics, kind)
        _, keys, place, has_gauss, gauss = self._task.random.get_state(legacy=True)
        now = _tables(self._model)
        return {
            "env": self._spec.name,
            "physics": physics,
            "derived": {name: values.copy() for name, values in _derived(self._data).items()},
            "model": {name: now[name] for name in now if not np.array_equal(now[name], self._pristine[name])},
            "task": _plain_attributes(self._task),
            "random": {"keys": keys.copy(), "place": int(place), "has_gauss": int(has_gauss), "gauss": float(gauss)},
            "count": int(self._env._step_count),
            "needs_reset": bool(self._env._reset_next_step),
            "frames": self._frames,
            "is_over": self._is_over,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from another environment's state. Raises EnvError where it belongs to another task or MuJoCo."""
        mujoco = load_mujoco()
        kind = mujoco.mjtState.mjSTATE_INTEGRATION.value
        derived = _derived(self._data)
        fits = state["physics"].size == mujoco.mj_stateSize(self._model, kind) and set(state["derived"]) == set(derived)
        if state["env"] != self._spec.name or not fits:
            raise EnvError(
                f"{self._spec.name} cannot go on from a state of {state['env']} that another version of MuJoCo, or "
                "another task, wrote; start this environment afresh"
            )
        for name, values in self._pristine.items():
            getattr(self._model, name)[...] = state["model"].get(name, values)
        mujoco.mj_setState(self._model, self._data, np.asarray(state["physics"], np.float64), kind)
        mujoco.mj_forward(self._model, self._data)
        for name, values in _derived(self._data).items():
            values[...] = state["derived"][name]
        for name, value in state["task"].items():
            setattr(self._task, name, value)
        random = state["random"]
        self._task.random.set_state(
            ("MT19937", np.asarray(random["keys"]), random["place"], random["has_gauss"], random["gauss"])
        )
        self._env._step_count, self._env._reset_next_step = state["count"], state["needs_reset"]
        self._frames, self._is_over = state["frames"], state["is_over"]
        if self._camera is not None:
            self._camera.refresh()


def _full_name(task: str) -> str:
    head, _, rest = task.partition("_")
    return f"{_ALIASES[head]}_{rest}" if head in _ALIASES else task


@functools.cache
def _suite() -> Any:
    """dm_control's suite, imported without any OpenGL of its own."""
    mujoco = load_mujoco()
    try:
        with mujoco_without_gl():
            suite = importlib.import_module("dm_control.suite")
    except ImportError as error:
        raise EnvError(
            f"dm_control cannot be imported ({error}); run `pip install 'dm-control>=1.0.28' 'mujoco>=3.3,<4'`"
        ) from error
    if int(mujoco.__version__.split(".")[0]) >= 4:
        raise EnvError(
            f"dm_control does not work with MuJoCo {mujoco.__version__}; run `pip install 'mujoco>=3.3,<4'`"
        )
    return suite


@functools.cache
def _by_name() -> dict[str, tuple[str, str]]:
    """(domain, task) by full name; a look-up settles where the domain's name ends, since both may contain "_"."""
    return {f"{domain}_{task}": (domain, task) for domain, task in _suite().ALL_TASKS}


def _load(task: str) -> Any:
    known = _by_name()
    name = _full_name(task)
    if name not in known:
        raise EnvError(unknown("task of the Control Suite", task, known))
    # Some models (lqr) are drawn at random when they are built: every environment gets the same one.
    with _without_model_warnings():
        return _suite().load(*known[name], task_kwargs={"random": np.random.RandomState(0)})


@contextmanager
def _without_model_warnings() -> Iterator[None]:
    """MuJoCo warns of an attribute in the suite's own model files at every load; nobody here can act on it."""

    def keep(record: logging.LogRecord) -> bool:
        return "settotalmass" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _forbid_contexts(physics: Any) -> None:
    """quadruped_escape uploads its terrain to dm_control's OpenGL context whenever it draws a new one, and would make
    a context for that alone. Cameras here upload for themselves, so the task gets a context that does nothing."""

    @contextmanager
    def make_current() -> Iterator[Any]:
        yield SimpleNamespace(call=lambda *args, **kwargs: None)

    nothing = SimpleNamespace(ptr=None, free=lambda: None, make_current=make_current)
    physics._contexts = SimpleNamespace(gl=nothing, mujoco=nothing)


def _tables(model: Any) -> dict[str, np.ndarray]:
    """Copies of the model's tables that tasks may change: targets, sizes, colours, terrain. Not pictures and meshes."""
    skipped = ("tex_data", "mesh_", "skin_", "names", "text_", "paths", "bvh_", "oct_")
    found = {}
    for name in dir(model):
        if not name.startswith(("_", *skipped)):
            values = getattr(model, name)
            if isinstance(values, np.ndarray):
                found[name] = values.copy()
    return found


# Lists whose length changes with the contacts; mj_forward rebuilds them from the rest.
_TRANSIENT = re.compile(r"_|efc_|iefc_|efm_|island_|map_|iacc|ifrc_|.*_island$|tendon_efcadr|plugin_data|contact")


def _derived(data: Any) -> dict[str, np.ndarray]:
    """Views of everything of fixed size that MuJoCo computes."""
    found = {}
    for name in dir(data):
        if not _TRANSIENT.match(name):
            values = getattr(data, name)
            if isinstance(values, np.ndarray) and values.size:
                found[name] = values
    return found


def _plain_attributes(task: Any) -> dict[str, Any]:
    """What a task keeps between steps that is data: numbers, words, arrays."""
    found: dict[str, Any] = {}
    for name, value in vars(task).items():
        if isinstance(value, np.ndarray):
            found[name] = value.copy()
        elif isinstance(value, np.generic):
            found[name] = value.item()
        elif isinstance(value, (bool, int, float, str)):
            found[name] = value
    return found
