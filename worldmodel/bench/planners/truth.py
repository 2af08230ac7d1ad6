"""Layer B: environments planned in their own truth. What a planner lacks here, no model can give it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from worldmodel import presets
from worldmodel.bench.planners.contest import Contest, Nothing, Row, attempt, contestant, play
from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.toys import ToyConfig
from worldmodel.planning.objectives import ExpectedReturn

HORIZON = 30
"""Decisions that planners look ahead (iCEM's protocol); toys whose episodes are shorter take half of it."""


class Lived:
    """A ``World`` of real environments; rows of all seeds begin as the same episodes."""

    def __init__(self, env: Any, model: Any, seeds: int, episodes: int) -> None:
        self.model, self.seeds, self.episodes = model, seeds, episodes
        self.envs = [env.build(i) for i in range(seeds * episodes)]

    def start(self) -> Any:
        for i, env in enumerate(self.envs):
            env.reset(seed=1000 + i % self.episodes)
        self.over = np.zeros(len(self.envs), bool)
        return self.model.capture(self.envs)

    def live(self, state: Any, action: Tensor) -> tuple[Any, np.ndarray, np.ndarray]:
        reward, continues = np.zeros(len(self.envs)), np.ones(len(self.envs))
        for i, (env, a) in enumerate(zip(self.envs, action.numpy())):
            if not self.over[i]:
                step = env.step(a)
                reward[i], self.over[i] = step.reward, step.is_last
            continues[i] = not self.over[i]
        return self.model.capture(self.envs), reward, continues

    def close(self) -> None:
        for env in self.envs:
            env.close()


def measure(contest: Contest, tasks: tuple[str, ...], *, frames: int = 1000, repeat: int = 2) -> list[Row]:
    """A row for each task, planner and budget. ``frames``: of the Control Suite's episodes, at most."""
    return [row for task in tasks for row in _rows(contest, task, frames, repeat)]


def _rows(contest: Contest, task: str, frames: int, repeat: int) -> list[Row]:
    is_toy = task in ("catch", "glide")
    env: Any = ToyConfig(task=task) if is_toy else DMCConfig(  # type: ignore[arg-type]
        task=task, obs="proprio", repeat=repeat, max_frames=frames
    )
    simulator: Any = presets.load_module("worldmodel.models.simulator")
    model = simulator.Simulator(env)
    spec = model.simulation.spec
    world = Lived(env, model, contest.seeds, contest.episodes)
    objective = ExpectedReturn(model=model, action=spec.action, discount=0.99)
    steps = int(spec.max_steps or 1000) if is_toy else -(-frames // repeat)
    horizon = HORIZON // 2 if is_toy else HORIZON
    about = {
        "layer": "truth", "problem": env.name, "horizon": horizon, "frames": steps * spec.repeat,
        "optimum": spec.reference.get("optimum") if is_toy else None,
    }

    def run(planner: Any) -> Row:
        return play(planner, objective, world, steps=steps, seeds=contest.seeds)

    rows: list[Row] = []
    try:
        rows.append(attempt(about | {"planner": "random", "budget": 0}, lambda: run(Nothing())))
        for name in contest.names(spec.action.kind, gradient=False):
            for budget in contest.budgets:
                contest.say(f"{env.name}: {name} {budget}")
                row = about | {"planner": name, "budget": budget}
                rows.append(attempt(row, lambda n=name, b=budget: run(contestant(n, b, horizon))))
    finally:
        world.close()
    return rows
