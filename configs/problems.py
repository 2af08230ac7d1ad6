"""Problems with known answers for planners (``worldmodel bench planners analytic``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldmodel.models.analytic import LinearQuadratic, Pendulum, Point, double_integrator
from worldmodel.models.courses import Course, Disc
from worldmodel.planning.problem import Problem
from worldmodel.types import ActionSpec

NEAR = {"mppi": 0.05, "cem": 0.05, "icem": 0.05}
"""Shares of the cost by which these may exceed the Riccati solution."""


def analytic() -> list[Problem]:
    """All of them."""
    return [
        lqr(4, regret=NEAR), lqr(16), *(dimensions(d) for d in (1, 8, 32)), *(horizon(h) for h in (3, 10, 30)),
        pendulum(), bound(),
        course("cliff", goals=[(1.0, 0.0, 0.3)], pits=[(0.5, 0.0, 0.2)]),
        course("obstacles", goals=[(1.0, 0.0, 0.3)], walls=[(0.5, 0.0, 0.15), (0.5, 0.3, 0.15), (0.5, -0.3, 0.15)]),
        course("two_goals", goals=[(0.5, 0.5, 0.12), (0.5, -0.5, 0.12)]),
        course("needle", goals=[(0.6, 0.0, 0.08)], is_sparse=True),
    ]


def lqr(size: int, *, regret: dict[str, float] | None = None) -> Problem:
    """``size`` / 2 masses on a line, each pushed and each pulled by its neighbour. The Riccati value ends plans."""
    masses = size // 2
    eye = torch.eye(masses)
    pull = 0.2 * (torch.diag(torch.ones(masses - 1), 1) + torch.diag(torch.ones(masses - 1), -1) - eye)
    a = torch.cat([torch.cat([eye, 0.1 * eye], 1), torch.cat([0.1 * pull, eye], 1)])
    model = LinearQuadratic(a, torch.cat([0 * eye, 0.1 * eye]), torch.eye(size), 0.1 * eye)
    return _quadratic(f"lqr{size}", model, masses, spread=0.15, steps=20, horizon=6, regret=regret or {})


def dimensions(size: int) -> Problem:
    """As many independent positions as actions."""
    eye = torch.eye(size)
    model = LinearQuadratic(eye, 0.3 * eye, eye, 0.1 * eye)
    return _quadratic(f"dimensions_{size}", model, size, spread=0.2, steps=20, horizon=5)


def horizon(steps: int) -> Problem:
    """One mass, no value at the end of plans: they have to be long enough, and no longer than can be searched."""
    model = double_integrator()
    value = model.value()
    return Problem(
        name=f"horizon_{steps}", model=model, action=ActionSpec(kind="continuous", size=1), steps=40, horizon=steps,
        starts=_around(2, 0.3), optimum=lambda start: value(start.x),
    )


def pendulum() -> Problem:
    """Gymnasium's pendulum from anywhere; it has to swing up."""

    def starts(count: int, generator: torch.Generator) -> Point:
        angle = (2 * torch.rand(count, generator=generator) - 1) * torch.pi
        speed = 2 * torch.rand(count, generator=generator) - 1
        return Point(x=torch.stack([angle.cos(), angle.sin(), speed], -1))

    return Problem(
        name="pendulum", model=Pendulum(), action=ActionSpec(kind="continuous", size=1), steps=80, horizon=20,
        starts=starts,
    )


def bound() -> Problem:
    """So far away that the best action is on the bound throughout."""
    eye = torch.eye(2)
    model = LinearQuadratic(eye, 0.1 * eye, eye, 0.001 * eye)

    def starts(count: int, generator: torch.Generator) -> Point:
        side = torch.randint(0, 2, (count, 2), generator=generator).float() * 2 - 1
        return Point(x=side * (4 + torch.rand(count, 2, generator=generator)))

    def optimum(start: Point) -> Tensor:
        state, total, action = start, torch.zeros(start.x.shape[0]), -start.x.sign()
        for _ in range(20):
            after = model.step(state, action)
            total, state = total + model.predict(state, action, after).reward, after
        return total

    return Problem(
        name="bound", model=model, action=ActionSpec(kind="continuous", size=2), steps=20, horizon=10, starts=starts,
        optimum=optimum, regret={"mppi": 0.05, "cem": 0.02, "icem": 0.02},
    )


def course(
    name: str, *, goals: list[Disc], walls: list[Disc] | None = None, pits: list[Disc] | None = None,
    is_sparse: bool = False,
) -> Problem:
    """A course that begins near the origin, at rest."""

    def starts(count: int, generator: torch.Generator) -> Point:
        place = 0.05 * (2 * torch.rand(count, 2, generator=generator) - 1)
        return Point(x=torch.cat([place, torch.zeros(count, 2)], -1))

    return Problem(
        name=name, model=Course(goals=goals, walls=walls or [], pits=pits or [], is_sparse=is_sparse),
        action=ActionSpec(kind="continuous", size=2), steps=30, horizon=12, starts=starts,
    )


def _quadratic(
    name: str, model: LinearQuadratic, actions: int, *, spread: float, steps: int, horizon: int,
    regret: dict[str, float] | None = None,
) -> Problem:
    value = model.value()
    return Problem(
        name=name, model=model, action=ActionSpec(kind="continuous", size=actions), steps=steps, horizon=horizon,
        starts=_around(model.feature_dim, spread), value=value, optimum=lambda start: value(start.x),
        regret=regret or {},
    )


def _around(size: int, spread: float) -> Callable[[int, torch.Generator], Any]:
    """Normal starts, so near that the Riccati solution seldom asks for more than actions may be."""
    return lambda count, generator: Point(x=spread * torch.randn(count, size, generator=generator).clamp(-2, 2))
