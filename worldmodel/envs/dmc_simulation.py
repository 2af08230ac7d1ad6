"""The futures of Control Suite tasks, by ``mujoco.rollout``: many states and actions at once, on threads.

A state is MuJoCo's full physics state. Rewards are the task's own: in closed form over whole batches for the tasks of
:data:`REWARDS`, else asked of the task for one state at a time, which takes some 30 to 100 microseconds each.

Exact (to rounding) where nothing is in touch. A contact's forces are found by iterations that begin at the last ones;
those are known for the first step after :meth:`PhysicsSimulation.capture` alone, so tasks with contacts (cheetah,
walker, hopper, humanoid, quadruped, finger, manipulator, ...) agree as far as the solver has converged, and like every
chaotic system they part after many steps.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worldmodel.envs.gl import load_mujoco
from worldmodel.specs import EnvSpec

Reward = Callable[[Any, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Model, positions (M, nq), velocities (M, nv) and controls (M, nu) to rewards (M,)."""


class PhysicsSimulation:
    """Implements ``specs.Simulation`` for one task of the suite."""

    def __init__(self, spec: EnvSpec, *, threads: int = 0) -> None:
        """Args: threads that rollouts run on; 0: every core there is, up to 8, or just this one where there are two."""
        self._spec = spec
        self._mujoco = load_mujoco()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = threads or (min(8, cores) if cores > 2 else 1)
        rollout = importlib.import_module("mujoco.rollout")
        self._rollout = rollout.Rollout(nthread=self._threads if self._threads > 1 else 0)
        self._kind = self._mujoco.mjtState.mjSTATE_FULLPHYSICS.value
        self._models: list[Any] = []
        self._asked: list[tuple[Any, Any]] = []
        self._data: list[Any] = []

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def capture(self, envs: Sequence[Any]) -> dict[str, np.ndarray]:
        """(N, ...) of ``DMCEnv``s. Futures are those of the environments' models and tasks as they are while
        :meth:`advance` runs, so capture anew after a reset."""
        running = [env.simulated for env in envs]
        if [x.model for x in running] != self._models:
            self._models = [x.model for x in running]
            self._data = [self._mujoco.MjData(self._models[0]) for _ in range(self._threads)]
            # physics of their own over the same models: asking for rewards must not touch the environments
            self._asked = [(x.task, x.physics.copy(share_model=True)) for x in running]
        self._first = running[0]
        physics = np.empty((len(envs), self._mujoco.mj_stateSize(self._models[0], self._kind)))
        for row, x in zip(physics, running):
            self._mujoco.mj_getState(x.model, x.data, row, self._kind)
        return {
            "physics": physics, "warmstart": np.stack([x.data.qacc_warmstart for x in running]),
            "env": np.arange(len(envs)),
        }

    def advance(
        self, state: dict[str, np.ndarray], action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """(M, ...) and (M, A) in [-1, 1] to the next state, reward (M,) summed over repeats, is_terminal (M,)."""
        rows, x = state["env"], self._first
        control = x.low + (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0) / 2.0 * (x.high - x.low)
        models = x.model if len(self._models) == 1 else [self._models[i] for i in rows]
        path, _ = self._rollout.rollout(
            models, self._data, state["physics"], control[:, None].repeat(x.repeat * x.substeps, 1),
            initial_warmstart=state["warmstart"],
        )
        reward = np.zeros(len(action))
        for frame in range(1, x.repeat + 1):
            reward += self._rewards(path[:, frame * x.substeps - 1], control, rows)
        after = {"physics": path[:, -1].copy(), "warmstart": np.zeros_like(state["warmstart"]), "env": rows}
        return after, reward.astype(np.float32), np.zeros(len(action), bool)

    def _rewards(self, physics: np.ndarray, control: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(M,) of one frame's end."""
        model = self._models[0]
        # a full physics state is time, positions, velocities, activations
        split = np.split(physics, [1, 1 + model.nq, 1 + model.nq + model.nv], 1)
        if (formula := REWARDS.get(self._first.name)) is not None:
            reward = np.empty(len(rows))
            for i, own in enumerate(self._models):
                mine = slice(None) if len(self._models) == 1 else rows == i
                reward[mine] = formula(own, split[1][mine], split[2][mine], control[mine])
            return reward
        return np.array([self._ask(i, x, u) for i, x, u in zip(rows, physics, control)])

    def _ask(self, row: int, physics: np.ndarray, control: np.ndarray) -> float:
        task, scratch = self._asked[row]
        model, data = scratch.model.ptr, scratch.data.ptr
        self._mujoco.mj_setState(model, data, physics, self._kind)
        data.ctrl[:] = control
        self._mujoco.mj_forward(model, data)
        return float(task.get_reward(scratch))


def _tolerance(*args: Any, **kwargs: Any) -> Any:
    from dm_control.utils import rewards

    return rewards.tolerance(*args, **kwargs)


def _cartpole(model: Any, q: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    upright = (np.cos(q[:, 1:].cumsum(1)) + 1) / 2
    centered = (1 + _tolerance(q[:, 0], margin=2)) / 2
    control = (4 + _tolerance(u[:, 0], margin=1, value_at_margin=0, sigmoid="quadratic")) / 5
    slow = (1 + _tolerance(v[:, 1:], margin=5).min(1)) / 2
    return upright.mean(1) * control * slow * centered


def _cartpole_sparse(model: Any, q: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    inside = _tolerance(q[:, 0], (-0.25, 0.25))
    return inside * _tolerance(np.cos(q[:, 1:].cumsum(1)), (0.995, 1)).prod(1)


def _pendulum(model: Any, q: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    return _tolerance(np.cos(q[:, 0]), (np.cos(np.deg2rad(8)), 1))


def _reacher(model: Any, q: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    # the tips of both links: each body lies at the end of the one before
    upper = model.body("hand").pos[0]
    lower = model.body("finger").pos[0]
    angle = q[:, 0] + q[:, 1]
    x = upper * np.cos(q[:, 0]) + lower * np.cos(angle)
    y = upper * np.sin(q[:, 0]) + lower * np.sin(angle)
    target, finger = model.geom("target"), model.geom("finger")
    far = np.hypot(target.pos[0] - x, target.pos[1] - y)
    return _tolerance(far, (0, target.size[0] + finger.size[0]))


def _cup(model: Any, q: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    # cup and ball both slide along x and z, from where the model puts them
    ball = model.body("ball").pos[[0, 2]] + q[:, 2:4]
    target = model.body("cup").pos[[0, 2]] + model.site("target").pos[[0, 2]] + q[:, 0:2]
    room = model.site("target").size[[0, 2]] - model.geom("ball").size[0]
    return (np.abs(target - ball) < room).all(1).astype(np.float64)


REWARDS: dict[str, Reward] = {
    "cartpole_balance": _cartpole, "cartpole_swingup": _cartpole, "cartpole_two_poles": _cartpole,
    "cartpole_three_poles": _cartpole, "cartpole_balance_sparse": _cartpole_sparse,
    "cartpole_swingup_sparse": _cartpole_sparse, "pendulum_swingup": _pendulum, "reacher_easy": _reacher,
    "reacher_hard": _reacher, "ball_in_cup_catch": _cup,
}
"""Rewards of the suite as functions of whole batches, by full name of the task."""
