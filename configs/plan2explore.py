"""Plan2Explore on Dreamer: seek what the model does not know yet (Sekar et al. 2020, arXiv 2005.05960)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from worldmodel.config import Run
from worldmodel.configs.coplanner import uncertain
from worldmodel.configs.sizes import Core, Size
from worldmodel.models.disagreement import DisagreementConfig


def plan2explore(
    task: str = "walker_walk",
    size: Size | Literal["published"] = "published",
    intrinsic: float = 1.0,
    extrinsic: float = 0.0,
    core: Core = "rssm",
    render: Literal["gl", "gl-fast", "ray"] = "gl",
) -> Run:
    """Explore without rewards, by the model's own disagreement; the reward head learns beside, for a task afterwards.

    Then `worldmodel resume RUN --agent.intrinsic 0 --agent.extrinsic 1 --train.min-updates N` learns the task from what
    was explored, without another decision until there were N updates (zero-shot), and goes on where --train.steps asks
    for more. The networks are DreamerV3's; disagreement is in units of its running standard deviation, and
    returns are normalised by their percentiles as always. With both weights it is one reward, their sum.
    """
    run, _ = uncertain(task, size, core, render, DisagreementConfig())
    return replace(run, agent=replace(run.agent, intrinsic=intrinsic, extrinsic=extrinsic), published="")
