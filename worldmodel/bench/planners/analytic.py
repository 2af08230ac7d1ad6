"""Layer A: known systems, where the best return is known or nearly so. Seconds on a CPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import presets, tree
from worldmodel.bench.planners.contest import Contest, Nothing, Row, attempt, contestant, play
from worldmodel.errors import UserError, unknown
from worldmodel.planning.problem import Problem


@dataclass
class System:
    """A ``World`` that is its own model."""

    problem: Problem
    seeds: int
    episodes: int

    def __post_init__(self) -> None:
        start = self.problem.starts(self.episodes, torch.Generator().manual_seed(0))
        # (seeds * episodes, ...): every seed begins in the same states
        self.first = tree.map(lambda x: x.repeat(self.seeds, *[1] * (x.ndim - 1)), start)

    def start(self) -> Any:
        self.left = self.problem.steps
        return self.first

    def live(self, state: Any, action: Tensor) -> tuple[Any, np.ndarray, np.ndarray]:
        model = self.problem.model
        after = model.step(state, action)
        said = model.predict(state, action, after)
        self.left -= 1
        reward = said.reward
        if not self.left and self.problem.value is not None:
            reward = reward + said.continues * self.problem.value(model.features(after))
        return after, reward.double().numpy(), said.continues.numpy()


def measure(contest: Contest, names: tuple[str, ...] = ()) -> list[Row]:
    """A row for each problem, planner and budget. ``names``: some of the problems, or FILE:NAME for one of yours (a
    Problem, or a function that returns one)."""
    return [row for problem in find_problems(names) for row in _rows(contest, problem)]


def _rows(contest: Contest, problem: Problem) -> list[Row]:
    contest.say(problem.name)
    system, objective = System(problem, contest.seeds, contest.episodes), problem.objective()
    best = None if problem.optimum is None else float(problem.optimum(system.first).mean())
    about = {"layer": "analytic", "problem": problem.name, "horizon": problem.horizon, "optimum": best}

    def run(planner: Any) -> Row:
        return play(planner, objective, system, steps=problem.steps, seeds=contest.seeds)

    def make(name: str, budget: int) -> Any:
        planner = contestant(name, budget, problem.horizon)
        return dataclasses.replace(planner, policy_samples=0) if getattr(planner, "policy_samples", 0) else planner

    rows = [about | {"planner": "random", "budget": 0} | run(Nothing())]
    for name in contest.names(problem.action.kind, value=problem.value is not None, policy=True):
        if name == "hybrid":  # without a policy it is "gradient"
            continue
        for budget in (*contest.budgets, *([problem.ample] if name in problem.regret else [])):
            allowed = problem.regret.get(name) if budget == problem.ample else None
            row = about | {"planner": name, "budget": budget, "allowed": allowed}
            rows.append(attempt(row, lambda name=name, budget=budget: run(make(name, budget))))
    return rows


def find_problems(names: tuple[str, ...] = ()) -> list[Problem]:
    """The shipped problems, or those that are named. Raises UserError for one that does not exist."""
    table: Any = presets.load_module("worldmodel.configs.problems")
    shipped = {problem.name: problem for problem in table.analytic()}
    return [_find(name, shipped) for name in names] if names else list(shipped.values())


def _find(name: str, shipped: dict[str, Problem]) -> Problem:
    where, colon, attribute = name.rpartition(":")
    if not colon:
        if name not in shipped:
            raise UserError(unknown("problem", name, shipped))
        return shipped[name]
    found: Any = getattr(presets.load_module(where), attribute, None)
    found = found() if callable(found) and not isinstance(found, Problem) else found
    if not isinstance(found, Problem):
        raise UserError(f"{name} must be a worldmodel.planning.problem.Problem or a function that returns one")
    return found
