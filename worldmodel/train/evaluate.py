"""Evaluation: fixed seeds, its own environments, its own carry; training never notices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from worldmodel.protocols import Agent, EnvPool


class Interrupted(Exception):
    """An evaluation was asked to stop before its last episode ended."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a number of whole episodes gave."""

    returns: list[float]
    lengths: list[int]
    """Decisions of each episode."""
    frames: list[np.ndarray] = field(default_factory=list, repr=False)
    """uint8 (h, w, 3) pictures of one episode, where they were asked for."""
    tasks: list[str] = field(default_factory=list)
    """Of each episode, where there are several."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    def summary(self) -> dict[str, float]:
        """mean, std, median, min, max and standard error of the returns, and the mean length."""
        r = np.asarray(self.returns)
        return {
            "return": float(r.mean()),
            "return_std": float(r.std()),
            "return_median": float(np.median(r)),
            "return_min": float(r.min()),
            "return_max": float(r.max()),
            "return_sem": float(r.std(ddof=1) / np.sqrt(len(r))) if len(r) > 1 else 0.0,
            "length": float(np.mean(self.lengths)),
            "episodes": float(len(r)),
            **{f"return_{task}": float(r[[name == task for name in self.tasks]].mean()) for task in unique(self.tasks)},
        }


def unique(names: list[str]) -> list[str]:
    """Each once, in the order of their first."""
    return list(dict.fromkeys(names))


def evaluate(
    agent: Agent[Any], pool: EnvPool, *, episodes: int, explore: bool, seed: int, film: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> Scores:
    """Run ``episodes`` whole episodes; the same seed gives the same episodes (common random numbers).

    Every environment contributes a fixed quota (the first ceil or floor of episodes / N), so that short episodes are
    not counted more often than long ones. ``film`` keeps the pictures of environment 0's first episode.

    Raises: Interrupted as soon as ``is_over()``.
    """
    n = pool.num_envs
    quota = np.array([episodes // n + (i < episodes % n) for i in range(n)])
    carry, step = agent.initial(n, seed=seed), pool.reset(seed)
    running, length, done = np.zeros(n), np.zeros(n, int), np.zeros(n, int)
    returns: list[list[float]] = [[] for _ in range(n)]
    lengths: list[list[int]] = [[] for _ in range(n)]
    pictures: list[np.ndarray] = []
    while (done < quota).any():
        if is_over():
            raise Interrupted
        if film and done[0] == 0 and (picture := pool.render(0)) is not None:
            pictures.append(picture)
        action, carry = agent.act(carry, step, explore=explore)
        step = pool.step(action)
        first, last = step.is_first.numpy(), step.is_last.numpy()
        running += step.reward.numpy()
        length += ~first
        for i in np.flatnonzero(last):
            if done[i] < quota[i]:
                returns[i].append(float(running[i]))
                lengths[i].append(int(length[i]))
            done[i] += 1
            if film and i == 0 and done[0] == 1 and (picture := pool.render(0)) is not None:
                pictures.append(picture)
            running[i], length[i] = 0.0, 0
    tasks = [pool.spec.tasks[int(i)].name for i in step.obs["task"]] if pool.spec.tasks else []
    return Scores(
        returns=list(itertools.chain(*returns)), lengths=list(itertools.chain(*lengths)), frames=pictures,
        tasks=[name for name, found in zip(tasks, returns) for _ in found],
    )


class Evaluator:
    """Evaluates by the mode of the policy and by sampling from it; both are reported."""

    def __init__(self, *, make_pool: Callable[[], EnvPool], episodes: int, seed: int) -> None:
        """Args: make_pool() -> EnvPool, called at the first evaluation; episodes for each way of acting."""
        self._make_pool, self.episodes, self.seed = make_pool, episodes, seed
        self._pool: EnvPool | None = None

    def __call__(self, agent: Agent[Any], is_over: Callable[[], bool] = lambda: False) -> dict[str, Scores]:
        """{"mode": Scores, "sampled": Scores}; "mode" carries the pictures of one episode. Raises Interrupted."""
        pool = self._pool = self._make_pool() if self._pool is None else self._pool

        def by(*, explore: bool) -> Scores:
            return evaluate(
                agent, pool, episodes=self.episodes, explore=explore, seed=self.seed, film=not explore, is_over=is_over
            )

        with torch.no_grad():
            return {"mode": by(explore=False), "sampled": by(explore=True)}

    def close(self) -> None:
        """Close the environments."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
