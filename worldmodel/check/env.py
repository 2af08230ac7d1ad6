"""What an environment promises (``worldmodel.specs.Env``), and Gymnasium's own check where it is one of Gymnasium's."""

from __future__ import annotations

import copy
import pickle
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from worldmodel.check import modules
from worldmodel.check.report import Broken, Check, Report, Skip, examine
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.host import Contract
from worldmodel.errors import EnvError
from worldmodel.specs import ActionSpec, BuildsBatch, Clones, Env, EnvSpec, EnvStep

STEPS = 60
"""Decisions of most checks."""
PATIENCE = 4.0
"""Seconds that random play may take to end an episode."""
MEMBERS = {
    "spec": "spec, an EnvSpec", "reset": "reset(seed) -> EnvStep", "step": "step(action) -> EnvStep",
    "render": "render() -> uint8 (h, w, 3), or None", "close": "close()",
}


class Subject:
    """An environment in the making; every check builds its own."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.spec: Any = None

    def build(self) -> Env:
        """A new environment."""
        return self.config.build(0)

    def actions(self, count: int, *, seed: int = 0) -> list[np.ndarray]:
        """Random actions, (A,) float32 each, the extremes among them."""
        rng, action = np.random.default_rng(seed), self.spec.action
        if action.kind == "discrete":
            return list(np.eye(action.size, dtype=np.float32)[rng.integers(action.size, size=count)])
        return list(np.clip(rng.uniform(-1.5, 1.5, (count, action.size)), -1, 1).astype(np.float32))


def check_env(config: Any) -> Report:
    """Put the environments of ``config`` to every promise of ``worldmodel.specs.Env``.

    Args: config: an EnvConfig, or what ``GymConfig.id`` takes: "CartPole-v1", "my_envs:Maze-v0", "my_envs:Maze".

    >>> check_env("CartPole-v1").require().passed
    True
    """
    config = GymConfig(id=config) if isinstance(config, str) else config
    name = config.id if isinstance(config, GymConfig) else type(config).__name__
    return examine("env", name, CHECKS, Subject(config))


def config_travels(s: Subject) -> None:
    modules.config_is_data(s.config)
    if pickle.loads(pickle.dumps(s.config)) != s.config:
        raise Broken(
            "the config is another one once it was pickled; worker processes get it that way, so hold plain values"
        )


def build_works(s: Subject) -> str:
    env = s.build()
    modules.has_members(env, MEMBERS, "environment")
    spec = s.spec = env.spec
    if not isinstance(spec, EnvSpec):
        raise Broken(f"spec is a {type(spec).__name__}, expected a worldmodel.specs.EnvSpec")
    if getattr(s.config, "name", None) != spec.name:
        raise Broken(
            f"the config's name is {getattr(s.config, 'name', None)!r}, but spec.name is {spec.name!r}; say the same"
        )
    if not spec.obs:
        raise Broken("spec.obs is empty; name at least one observation")
    if not isinstance(spec.action, ActionSpec) or spec.action.size < 1:
        raise Broken(f"spec.action is {spec.action}, expected an ActionSpec with a size of at least 1")
    env.close()
    observed = [f"{key} {array.shape} {array.dtype}" for key, array in spec.obs.items()]
    return f"{', '.join(observed)}; action ({spec.action.size},) {spec.action.kind}"


def keeps_its_contract(s: Subject) -> str:
    contract, env = Contract(s.spec), s.build()
    try:
        step = env.reset(1)
        contract.check(step, is_reset=True)
        episodes = 1
        for action in s.actions(2 * STEPS):
            is_reset = step.is_last
            step = env.reset() if is_reset else env.step(action)
            episodes += is_reset
            contract.check(step, is_reset=is_reset)
    except EnvError as error:
        raise Broken(str(error)) from error
    finally:
        env.close()
    return f"{2 * STEPS} decisions, {episodes} episodes begun"


def repeats(s: Subject) -> None:
    env, other = s.build(), s.build()
    actions = s.actions(STEPS)
    first, second = (_follow(one, one.reset(5), actions) for one in (env, other))
    gap = _difference(first, second)
    if gap:
        raise Broken(
            f"reset(5) and the same actions give two courses in two environments ({gap}); draw all chance from the seed"
        )
    gap = _difference(first, _follow(env, env.reset(5), actions))
    if gap:
        raise Broken(
            f"reset(5) gives another course once the environment was used ({gap}); reset must set everything anew"
        )
    env.close()
    other.close()


def drawing_changes_nothing(s: Subject) -> str:
    env, other = s.build(), s.build()
    env.reset(5)
    picture = env.render()
    if picture is None:
        raise Skip("render returns None: no videos")
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        got = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise Broken(f"render returns {got}, expected uint8 (h, w, 3), or None where there is no picture")
    actions = s.actions(STEPS)
    drawn = _follow(env, env.reset(5), actions, each=env.render)
    gap = _difference(drawn, _follow(other, other.reset(5), actions))
    if gap:
        raise Broken(f"render changes what follows ({gap}); draw, and touch nothing")
    env.close()
    other.close()
    return f"{picture.shape}"


def arrays_are_the_callers(s: Subject) -> None:
    env = s.build()
    step = env.reset(3)
    for action in s.actions(STEPS):
        given, kept, held = action.copy(), copy.deepcopy(step.obs), step.obs
        step = env.reset() if step.is_last else env.step(action)
        for key, value in held.items():
            if not np.array_equal(value, kept[key], equal_nan=True):
                raise Broken(
                    f"obs[{key!r}] of a step changes with the next step; return a fresh array each time, or a copy"
                )
        if not np.array_equal(given, action):
            raise Broken("step writes into the action it is given; copy it first")
    env.close()


def episodes_end(s: Subject) -> str:
    env = s.build()
    limit = s.spec.max_steps
    began, count, step = time.perf_counter(), 0, env.reset(2)
    for action in s.actions(10_000):
        step, count = env.step(action), count + 1
        if step.is_last:
            break
        if limit is not None and count >= limit:
            raise Broken(
                f"spec.max_steps is {limit}, but step {count} is not is_last; truncate there, or leave max_steps None"
            )
        if time.perf_counter() - began > PATIENCE:
            break
    if not step.is_last:
        env.close()
        raise Skip(f"no episode ended within {count:,} random decisions")
    try:
        env.step(s.actions(1)[0])
    except Exception:  # whatever it raises, it refuses
        env.close()
        return f"after {count:,} decisions, {'terminal' if step.is_terminal else 'truncated'}"
    raise Broken(
        "step after is_last goes on, expected an error; the pool resets, and an environment that resets by itself "
        "loses its last observation"
    )


def clones(s: Subject) -> None:
    env = s.build()
    if not isinstance(env, Clones):
        raise Skip("no get_state and set_state: a resumed run begins new episodes")
    step = _follow(env, env.reset(8), s.actions(STEPS // 2))[-1]
    state = env.get_state()
    where = _foreign(state)
    if where:
        raise Broken(
            f"get_state holds {where}; checkpoints hold numbers, text, None, bytes, numpy arrays, lists and dicts"
        )
    kept = copy.deepcopy(state)
    there = _follow(env, step, s.actions(STEPS))
    other = s.build()
    assert isinstance(other, Clones)
    other.reset(99)
    other.set_state(kept)
    gap = _difference(there, _follow(other, step, s.actions(STEPS)))
    if gap:
        raise Broken(
            f"set_state in another environment does not go on as the first one did ({gap}); keep everything, random "
            f"streams too"
        )
    env.close()
    other.close()


def batches(s: Subject) -> None:
    if not isinstance(s.config, BuildsBatch):
        raise Skip("no build_batch: a pool steps its environments one by one")
    n = 3
    env = s.config.build_batch(n)
    contract = Contract(s.spec)
    step, last = env.reset(4), np.zeros(n, bool)
    rng = [s.actions(5 * STEPS, seed=row) for row in range(n)]
    for t in range(5 * STEPS):
        for row in range(n):
            one = EnvStep(
                obs={key: x[row] for key, x in step.obs.items()},
                reward=float(step.reward[row]),
                is_first=bool(step.is_first[row]),
                is_last=bool(step.is_last[row]),
                is_terminal=bool(step.is_terminal[row]),
            )
            try:
                contract.check(one, is_reset=t == 0 or bool(last[row]))
            except EnvError as error:
                raise Broken(f"build_batch, row {row}: {error}") from error
        last = step.is_last.copy()
        step = env.step(np.stack([actions[t] for actions in rng]))
    env.close()


def gymnasium_agrees(s: Subject) -> str:
    if not isinstance(s.config, GymConfig):
        raise Skip("not one of Gymnasium's")
    from gymnasium.utils.env_checker import check_env as check

    env = s.config.make()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check(env.unwrapped, skip_render_check=True, skip_close_check=True)
    except Exception as error:  # its checks raise whatever fits
        text = _plain(str(error)) or "no message"
        raise Broken(f"gymnasium.utils.env_checker.check_env raises {type(error).__name__}: {text}") from error
    finally:
        env.close()
    warned = sorted({_plain(str(warning.message)) for warning in said})
    return f"warns: {' | '.join(warned)}" if warned else ""


def speed(s: Subject) -> str:
    env, actions = s.build(), s.actions(2_000)
    step, began, count = env.reset(0), time.perf_counter(), 0
    while time.perf_counter() - began < 0.3 and count < len(actions):
        step = env.reset() if step.is_last else env.step(actions[count])
        count += 1
    rate = count / (time.perf_counter() - began)
    env.close()
    return f"{rate:,.0f} decisions per second"


def _follow(
    env: Env, step: EnvStep, actions: list[np.ndarray], each: Callable[[], Any] = lambda: None
) -> list[EnvStep]:
    """What an environment says from ``step`` on, reset where an episode is over; ``each`` is called in between."""
    told = [copy.deepcopy(step)]
    for action in actions:
        each()
        step = env.reset() if step.is_last else env.step(action)
        told.append(copy.deepcopy(step))
    return told


def _difference(one: list[EnvStep], other: list[EnvStep]) -> str:
    for t, (a, b) in enumerate(zip(one, other, strict=True)):
        for key, value in a.obs.items():
            if not np.array_equal(value, b.obs[key], equal_nan=np.issubdtype(np.asarray(value).dtype, np.floating)):
                return f"obs[{key!r}] at step {t}"
        for name in ("reward", "is_first", "is_last", "is_terminal"):
            if getattr(a, name) != getattr(b, name):
                return f"{name} at step {t}"
    return ""


def _foreign(value: Any, where: str = "state") -> str:
    """The first thing in a state that a checkpoint cannot hold; "" where there is none."""
    if isinstance(value, dict):
        return next((said for key, x in value.items() if (said := _foreign(x, f"{where}[{key!r}]"))), "")
    if isinstance(value, (list, tuple)):
        return next((said for i, x in enumerate(value) if (said := _foreign(x, f"{where}[{i}]"))), "")
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return ""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return ""
    return f"a {type(value).__name__} at {where}"


def _plain(text: str) -> str:
    """Without colours and line ends, and without the warning's own prefix."""
    return " ".join(re.sub(r"\x1b\[\d+m", "", text).removeprefix("WARN: ").split())


CHECKS: tuple[Check[Subject], ...] = (
    Check("config is data and travels", config_travels),
    Check("build gives an environment", build_works, is_needed=True),
    Check("observations, rewards and flags as spec says", keeps_its_contract, is_needed=True),
    Check("arrays are the caller's", arrays_are_the_callers),
    Check("episodes end, and end once", episodes_end),
    Check("batches", batches),
    Check("Gymnasium's check_env", gymnasium_agrees),
    Check("speed", speed),
    Check("same seed, same course", repeats, is_needed=True),
    Check("drawing changes nothing", drawing_changes_nothing),
    Check("clones", clones),
)
