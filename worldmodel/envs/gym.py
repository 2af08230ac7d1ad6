"""Any Gymnasium environment, unchanged: spaces become specs, and Gymnasium's tuple becomes an EnvStep.

``terminated`` is ``is_last`` and ``is_terminal``; ``truncated`` alone is ``is_last``. What each space becomes is in
``worldmodel/envs/spaces.py``.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.envs.spaces import Translator
from worldmodel.errors import EnvError, unknown
from worldmodel.specs import Clones, Env, EnvSpec, EnvStep

if TYPE_CHECKING:
    import gymnasium

_log = logging.getLogger(__name__)

REFERENCE: dict[str, dict[str, float]] = {"CartPole-v1": {"optimum": 500.0}}
"""Known returns by Gymnasium id."""

_NAMESPACES = {"ALE": "ale_py", "worldmodel": "worldmodel.envs.toys"}
"""Modules that register the ids of a namespace when imported."""

_CLASSIC_STATE: dict[str, tuple[str, ...]] = {
    "AcrobotEnv": ("state",),
    "CartPoleEnv": ("state", "steps_beyond_terminated"),
    "Continuous_MountainCarEnv": ("state",),
    "MountainCarEnv": ("state",),
    "PendulumEnv": ("state", "last_u"),
}
"""What changes over time inside Gymnasium's classic control, beside the random stream."""

_failed_to_draw: set[str] = set()
"""Libraries that could not draw in this process and are not asked again: where there is no display, MuJoCo's second try
at an OpenGL context ends the process."""

_WRAPPER_STATE: dict[str, tuple[str, ...]] = {"TimeLimit": ("_elapsed_steps",), "OrderEnforcing": ("_has_reset",)}
"""What changes over time inside the wrappers that ``gymnasium.make`` puts around an environment."""


@dataclass(frozen=True, kw_only=True)
class GymConfig:
    """One Gymnasium environment.

    >>> GymConfig(id="CartPole-v1").build().spec.action
    ActionSpec(kind='discrete', size=2)
    """

    id: str = "CartPole-v1"
    """A Gymnasium id ("CartPole-v1"), an id with the module that registers it ("my_envs:Maze-v0"), or a class or
    function that returns an environment ("my_envs:Maze")."""
    repeat: int = 1
    """Environment steps per decision; their rewards are summed."""
    size: int = 64
    """Images that are larger in either direction become (size, size) by Pillow's bilinear filter; 0 keeps them."""
    kwargs: tuple[tuple[str, bool | int | float | str], ...] = ()
    """Arguments of the environment, as (name, value) pairs."""

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise ValueError(f"GymConfig.repeat must be at least 1, got {self.repeat}")
        if self.size < 0:
            raise ValueError(f"GymConfig.size must be positive, or 0 to keep images as they are, got {self.size}")
        for pair in self.kwargs:
            if len(pair) != 2 or not isinstance(pair[0], str):
                raise ValueError(f'GymConfig.kwargs must hold (name, value) pairs such as ("g", 9.8), got {pair!r}')

    @property
    def name(self) -> str:
        """The id, and what departs from its defaults."""
        departures = [f"{key}={value}" for key, value in self.kwargs]
        departures += [f"repeat={self.repeat}"] if self.repeat > 1 else []
        return "/".join(["gym", self.id.rpartition(":")[2]] + ([",".join(departures)] if departures else []))

    def make(self) -> gymnasium.Env[Any, Any]:
        """The environment as Gymnasium has it. Raises EnvError for an unknown id or a missing package."""
        return _make(self.id, dict(self.kwargs))

    def build(self, index: int = 0) -> Env:
        """Make the environment. Raises EnvError for an unknown id, a missing package, or a space we cannot offer."""
        env = self.make()
        return CloneableGym(env, self) if _can_clone(env) else Gym(env, self)


class Gym:
    """One Gymnasium environment as ``specs.Env``."""

    def __init__(self, env: gymnasium.Env[Any, Any], config: GymConfig) -> None:
        self._env = env
        self._repeat = config.repeat
        self._name = config.name
        self._has_begun = False
        self._needs_reset = True
        self._can_render = env.render_mode == "rgb_array"
        drawn_by_mujoco = any("mujoco" in kind.__module__ for kind in type(env.unwrapped).__mro__)
        self._library = "mujoco" if drawn_by_mujoco else ""
        self._translator = Translator(self._name, env.observation_space, env.action_space, size=config.size)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        self._spec = EnvSpec(
            name=self._name,
            obs=self._translator.obs,
            action=self._translator.action,
            repeat=config.repeat,
            max_steps=None if limit is None else -(-limit // config.repeat),
            reference=dict(REFERENCE.get(config.id, {})),
        )

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def reset(self, seed: int | None = None) -> EnvStep:
        """Start an episode; a seed reseeds the environment, None goes on with its random stream."""
        raw, _ = self._env.reset(seed=seed)
        self._has_begun, self._needs_reset = True, False
        return EnvStep(obs=self._translator.observe(raw), is_first=True)

    def step(self, action: np.ndarray) -> EnvStep:
        """Apply one action, (A,) float32, ``repeat`` times. Raises EnvError before the first reset, after ``is_last``,
        and for an action of another size."""
        if self._needs_reset:
            raise EnvError(f"{self._name}: step was called before reset or after is_last; call reset first")
        if np.shape(action) != (self._spec.action.size,):
            raise EnvError(
                f"{self._name}: an action must have shape ({self._spec.action.size},), got {np.shape(action)}; "
                f"see spec.action"
            )
        reward, raw, terminated, truncated = 0.0, None, False, False
        for _ in range(self._repeat):
            raw, gained, terminated, truncated, _ = self._env.step(self._translator.act(action))
            reward += float(gained)
            if terminated or truncated:
                break
        self._needs_reset = bool(terminated or truncated)
        return EnvStep(
            obs=self._translator.observe(raw), reward=reward, is_last=self._needs_reset, is_terminal=bool(terminated)
        )

    def render(self) -> np.ndarray | None:
        """An RGB picture, or None where the environment has none or cannot draw on this machine (logged once)."""
        if not self._can_render or not self._has_begun or self._library in _failed_to_draw:
            return None
        try:
            picture = self._env.render()
        except Exception as error:  # foreign drawing code: no display, no pygame, no GL; a video is not worth a run
            _log.warning("%s cannot draw here, so it has no videos: %s: %s", self._name, type(error).__name__, error)
            self._can_render = False
            if type(error).__module__.partition(".")[0] == self._library:
                _failed_to_draw.add(self._library)
            return None
        return None if picture is None else np.array(picture, np.uint8)

    def close(self) -> None:
        self._env.close()


class CloneableGym(Gym):
    """A Gymnasium environment whose whole state we know: our own toys and classic control. Adds ``specs.Clones``."""

    def get_state(self) -> dict[str, Any]:
        """The environment's variables, its random stream, and the wrappers' counters."""
        core = self._env.unwrapped
        if isinstance(core, Clones):
            inner = core.get_state()
        else:
            stream = core._np_random
            inner = {key: _pack(getattr(core, key, None)) for key in _CLASSIC_STATE[type(core).__name__]}
            inner["np_random"] = None if stream is None else stream.bit_generator.state
        layers = [[_pack(getattr(layer, key)) for key in keys] for layer, keys in _layers(self._env)]
        mine = {"has_begun": self._has_begun, "needs_reset": self._needs_reset}
        return {"name": self._name, "env": inner, "layers": layers, **mine}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where ``get_state`` was called. Raises EnvError for a state of another environment."""
        if state["name"] != self._name:
            raise EnvError(f"the state belongs to {state['name']!r}, not to {self._name!r}; build that one")
        core, inner = self._env.unwrapped, state["env"]
        if isinstance(core, Clones):
            core.set_state(inner)
        else:
            for key in _CLASSIC_STATE[type(core).__name__]:
                setattr(core, key, _unpack(inner[key]))
            if inner["np_random"] is None:
                core._np_random = None
            else:
                core.np_random.bit_generator.state = inner["np_random"]
        for (layer, keys), values in zip(_layers(self._env), state["layers"], strict=True):
            for key, value in zip(keys, values, strict=True):
                setattr(layer, key, _unpack(value))
        self._has_begun, self._needs_reset = bool(state["has_begun"]), bool(state["needs_reset"])


def describe(spec: EnvSpec) -> list[str]:
    """What an agent will make of each observation and of the action, one line each, to print before a run.

    >>> describe(GymConfig(id="CartPole-v1").build().spec)
    ['vector (4,) float32 -> vector encoder', 'action (2,) discrete']
    """
    lines = []
    for key, array in spec.obs.items():
        kind = "image encoder" if array.is_image else "vector encoder"
        classes = "" if array.classes is None else f", {array.classes} classes -> one-hot"
        lines.append(f"{key} {array.shape} {array.dtype}{classes} -> {kind}")
    size = spec.action.size
    lines.append(f"action ({size},) {spec.action.kind}")
    return lines


def _make(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """The environment, or EnvError with a sentence for whatever stands in the way."""
    import gymnasium

    try:
        env = _create(env_id, kwargs)
    except gymnasium.error.DeprecatedEnv as error:
        raise EnvError(f"Gymnasium id {env_id!r} is gone: {error}") from error
    except gymnasium.error.UnregisteredEnv as error:
        raise EnvError(unknown("Gymnasium id", env_id.rpartition(":")[2], gymnasium.registry)) from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise EnvError(f"{env_id} needs a package that is not installed: {error}; install it and try again") from error
    except Exception as error:  # foreign constructors raise anything; the cause stays attached
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
        raise EnvError(f"{env_id} could not be made with {given}: {type(error).__name__}: {error}") from error
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"{env_id} made a {type(env).__name__}, expected a gymnasium.Env; convert old gym environments")
    return env


def _create(env_id: str, kwargs: dict[str, Any]) -> Any:
    """``gymnasium.make`` without its checker, or the class that "module:Name" names where Name is no id; drawing to an
    array where the environment says it can and its constructor agrees."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    module_name, _, short = env_id.rpartition(":")
    module = importlib.import_module(module_name) if module_name else None
    creator = getattr(module, short, None)
    make = creator
    if creator is None:
        namespace = short.partition("/")[0]
        if namespace in _NAMESPACES:
            importlib.import_module(_NAMESPACES[namespace])
        entry = gymnasium.spec(short).entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        make = functools.partial(gymnasium.make, short, disable_env_checker=True)
    if not callable(make):
        raise TypeError(f"{env_id} is a {type(make).__name__}, expected a class or a function that returns one")
    can_draw = "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ())
    if not can_draw or "render_mode" in kwargs:
        return make(**kwargs)
    try:
        return make(render_mode="rgb_array", **kwargs)
    except TypeError as error:
        if "render_mode" not in str(error):
            raise
        return make(**kwargs)


def _layers(env: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """The wrappers around an environment, outermost first, with the names of what changes in each."""
    import gymnasium

    layers = []
    while isinstance(env, gymnasium.Wrapper):
        layers.append((env, _WRAPPER_STATE.get(type(env).__name__, ())))
        env = env.env
    return layers


def _can_clone(env: Any) -> bool:
    """Whether we know everything that changes: exact classes only, since a subclass may keep more."""
    from gymnasium.envs import classic_control

    if not all(
        type(layer).__name__ in _WRAPPER_STATE and type(layer).__module__.startswith("gymnasium.wrappers")
        for layer, _ in _layers(env)
    ):
        return False
    core = type(env.unwrapped)
    if core.__module__.startswith("worldmodel."):
        return isinstance(env.unwrapped, Clones)
    return core.__name__ in _CLASSIC_STATE and getattr(classic_control, core.__name__, None) is core


def _pack(value: Any) -> Any:
    """A number, an array, a tuple of them or None as plain data that remembers which it was."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, np.generic):
        return {"scalar": np.array([value])}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item) for item in value]}
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return value["scalar"][0] if "scalar" in value else tuple(_unpack(item) for item in value["tuple"])
    return value
