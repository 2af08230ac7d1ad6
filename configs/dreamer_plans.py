"""A Dreamer that plans: it learns as a Dreamer does, and a planner acts in its world model. The actor proposes, the
critic judges where plans end."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from worldmodel.agents.planner.agent import PlannerAgentConfig
from worldmodel.config import Run
from worldmodel.configs import dmc, planners
from worldmodel.configs.quickstart import quickstart
from worldmodel.configs.sizes import Core, Objective, Size, Version
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.protocols import Planner

When = Literal["both", "evaluate", "collect"]


def toys(
    task: Literal["catch", "glide", "recall"] = "catch",
    objective: Objective = "reconstruction",
    core: Core = "rssm",
    plan: When = "both",
) -> Run:
    """Catch and Recall by Gumbel MuZero, Glide by policy-guided MPPI, in a Dreamer's world model."""
    planner = planners.policy_mppi(300) if task == "glide" else planners.gumbel(16)
    return _planned(quickstart(task, objective, core), planner, plan, "no table")


def vision(
    task: str = "walker_walk",
    size: Size | Literal["published"] = "published",
    version: Version = "2024",
    objective: Objective = "reconstruction",
    core: Core = "rssm",
    render: Literal["gl", "gl-fast", "ray"] = "gl",
    plan: When = "both",
) -> Run:
    """DMC from 64 x 64 pixels, a Dreamer whose actions TD-MPC2's planner chooses."""
    run = dmc.vision(task, size, version, objective, core, render)
    return _planned(run, PolicyMPPI(select="mean"), plan, f"no table; without planning: {run.published}")


def _planned(run: Run, planner: Planner, plan: When, published: str) -> Run:
    collect = planners.exploring(planner) if plan != "evaluate" else None
    agent = PlannerAgentConfig(agent=run.agent, collect=collect, evaluate=planner if plan != "collect" else None)
    return replace(run, agent=agent, published=published)
