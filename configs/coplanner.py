"""COPlanner on Dreamer: optimistic when it acts, conservative when it dreams (Wang et al. 2024, arXiv 2310.07220)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from worldmodel.config import Run
from worldmodel.configs.dmc import vision
from worldmodel.configs.quickstart import quickstart
from worldmodel.configs.sizes import Core, Size
from worldmodel.models.disagreement import DisagreementConfig
from worldmodel.planning.selector import CandidateSelector, DreamSelector

NANO = DisagreementConfig(members=5, units=64, layers=2)
"""The ensemble of small models on CPUs."""


def coplanner(
    task: str = "walker_walk",
    size: Size | Literal["published"] = "published",
    select: Literal["both", "acting", "dreaming", "none"] = "both",
    core: Core = "rssm",
    render: Literal["gl", "gl-fast", "ray"] = "gl",
) -> Run:
    """DMC from pixels, or Glide and Catch on a CPU, with uncertainty-aware selection among actions of the policy.

    The settings of the paper for pixels: 4 candidates, 4 steps, weights 1 (acting) and 0.5 (dreaming) of the raw
    disagreement of 8 heads. The Dreamer around it is ours of 2024, theirs that of 2023; uncertainty is summed over H
    states, theirs over H + 1. ``select`` leaves out a half, for ablations; "none" is Dreamer with an idle ensemble.
    Small sizes and the games count disagreement in its own standard deviations, and select in a quarter of the dreams.
    Continuous actions are taught by the gradient of the dynamics, as their Dreamer does: the score function believes
    that the policy drew what was selected. The rate stays, since plain Dreamer on Glide is better at it too.
    """
    run, is_small = uncertain(task, size, core, render, DisagreementConfig(scale="raw"))
    rates = (0.05, 0.025) if is_small else (1.0, 0.5)
    acting = CandidateSelector(candidates=4, horizon=4, mode="optimistic", rate=rates[0])
    dreaming = DreamSelector(
        selector=replace(acting, mode="conservative", rate=rates[1]), fraction=0.25 if is_small else 1.0
    )
    agent = replace(
        run.agent, acting=acting if select in ("both", "acting") else None,
        dreaming=dreaming if select in ("both", "dreaming") else None,
        actor=run.agent.actor if task == "catch" else replace(run.agent.actor, gradient="dynamics"),
    )
    return replace(run, agent=agent, published="COPlanner (arXiv 2310.07220) has curves, and no table by task")


def uncertain(task: str, size: str, core: Core, render: Any, ensemble: DisagreementConfig) -> tuple[Run, bool]:
    """The plain run of a task, whose model carries an ensemble; and whether it is small, which then has a small one."""
    if task == "glide" or task == "catch":
        run, is_small = quickstart(task, core=core), True
    else:
        chosen: Any = size
        run, is_small = vision(task, chosen, core=core, render=render), size == "nano"
    model = replace(run.agent.model, disagreement=NANO if is_small else ensemble)
    return replace(run, agent=replace(run.agent, model=model)), is_small
