"""Planners by name, each made for a budget, and agents that act by one.

A budget is a number of trajectories of ``horizon`` model steps, about as many as a decision may look at (iCEM's
protocol: 100, 300, 500, 4000). What a decision really took, a planner says itself ("evaluations"); a tree takes one
step for each simulation, of which there are 32 at most. Nothing here was tuned to a task.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worldmodel.agents.planner.agent import PlannerAgentConfig
from worldmodel.planning.categorical import CategoricalCEM
from worldmodel.planning.cem import CEM
from worldmodel.planning.gradcem import GradCEM
from worldmodel.planning.gradient import GRADIENT, GradientPlanner
from worldmodel.planning.gumbel import GumbelMuZero
from worldmodel.planning.icem import ICEM
from worldmodel.planning.mppi import MPPI
from worldmodel.planning.muzero import MuZero
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.planning.predictive import PredictiveSampling
from worldmodel.planning.sampled_gumbel import SampledGumbelMuZero
from worldmodel.planning.shooting import RandomShooting
from worldmodel.protocols import Planner

CONTINUOUS = (
    "shooting", "predictive", "mppi", "cem", "icem", "policy_mppi", "gradient", "hybrid", "gradcem", "sampled_gumbel",
)
DISCRETE = ("categorical", "muzero", "gumbel")
NEEDS_POLICY = ("policy_mppi", "hybrid")
NEEDS_GRADIENT = ("gradient", "hybrid", "gradcem")
NEEDS_VALUE = ("sampled_gumbel", "muzero", "gumbel")


def shooting(trajectories: int = 300, horizon: int = 12) -> Planner:
    """The best of random sequences."""
    return RandomShooting(horizon=horizon, samples=trajectories)


def predictive(trajectories: int = 300, horizon: int = 12) -> Planner:
    """The best of noisy copies of the last plan."""
    return PredictiveSampling(horizon=horizon, samples=trajectories)


def mppi(trajectories: int = 300, horizon: int = 12) -> Planner:
    """The softmax-weighted mean of noisy copies."""
    iterations = _iterations(trajectories)
    return MPPI(
        horizon=horizon, samples=max(1, trajectories // iterations), iterations=iterations, std=0.3, temperature=0.02
    )


def cem(trajectories: int = 300, horizon: int = 12) -> Planner:
    """A Gaussian refitted to its elites."""
    iterations = _iterations(trajectories)
    samples = max(2, trajectories // iterations)
    return CEM(horizon=horizon, samples=samples, elites=max(2, samples // 8), iterations=iterations)


def icem(trajectories: int = 300, horizon: int = 12) -> Planner:
    """CEM with coloured noise that keeps its elites."""
    iterations = _iterations(trajectories)
    # populations of n, n / 1.25, n / 1.25^2, ..., and in each some three kept elites
    samples = max(2, round((trajectories - 3 * iterations) / sum(1.25**-i for i in range(iterations))))
    return ICEM(horizon=horizon, samples=samples, elites=max(2, min(10, samples // 5)), iterations=iterations)


def policy_mppi(trajectories: int = 300, horizon: int = 5) -> Planner:
    """TD-MPC2's: elites of a population that the policy seeds."""
    samples = max(4, trajectories // 6)
    return PolicyMPPI(
        horizon=horizon, samples=samples, elites=max(2, samples // 8), policy_samples=max(1, samples // 20),
        select="mean",
    )


def gradient(trajectories: int = 300, horizon: int = 12) -> Planner:
    """A few sequences that climb the gradient of the predicted return (Adam)."""
    return GradientPlanner(horizon=horizon, restarts=_restarts(trajectories), steps=10)


def hybrid(trajectories: int = 300, horizon: int = 12) -> Planner:
    """The policy proposes, the gradient refines."""
    restarts = _restarts(trajectories)
    return GradientPlanner(horizon=horizon, restarts=restarts, policy_restarts=max(1, restarts - 1), steps=10)


def gradcem(trajectories: int = 300, horizon: int = 12) -> Planner:
    """CEM whose samples climb before they are compared."""
    samples = max(2, trajectories // (3 * (GRADIENT + 1)))
    return GradCEM(horizon=horizon, samples=samples, elites=max(2, samples // 4), iterations=3)


def sampled_gumbel(trajectories: int = 300, horizon: int = 5) -> Planner:
    """Tree search over sampled actions."""
    return SampledGumbelMuZero(simulations=min(32, trajectories), max_depth=horizon, gumbel_scale=0.0)


def categorical(trajectories: int = 300, horizon: int = 12) -> Planner:
    """CEM over discrete actions."""
    iterations = _iterations(trajectories)
    samples = max(2, trajectories // iterations)
    return CategoricalCEM(horizon=horizon, samples=samples, elites=max(2, samples // 8), iterations=iterations)


def muzero(trajectories: int = 300, horizon: int = 12) -> Planner:
    """Tree search by PUCT."""
    return MuZero(simulations=min(32, trajectories), max_depth=horizon)


def gumbel(trajectories: int = 300, horizon: int = 12) -> Planner:
    """Tree search by sequential halving."""
    return GumbelMuZero(simulations=min(32, trajectories), max_depth=horizon, gumbel_scale=0.0)


def exploring(planner: Any) -> Any:
    """The same planner with the noise that its paper collects data with, where it has such."""
    noise: dict[type, dict[str, float]] = {
        PolicyMPPI: {"exploration": 1.0}, GumbelMuZero: {"gumbel_scale": 1.0},
        SampledGumbelMuZero: {"gumbel_scale": 1.0}, MuZero: {"root_noise": 0.25, "temperature": 1.0},
    }
    return replace(planner, **noise.get(type(planner), {}))


def evaluated(agent: Any, planner: Any) -> PlannerAgentConfig:
    """An agent's config with ``planner`` acting in evaluation; it learns, and collects, as before."""
    if isinstance(agent, PlannerAgentConfig):
        return replace(agent, evaluate=planner)
    return PlannerAgentConfig(agent=agent, evaluate=planner)


def _iterations(trajectories: int) -> int:
    return 3 if trajectories < 300 else 5 if trajectories < 2000 else 10


def _restarts(trajectories: int) -> int:
    return max(1, round(trajectories / (10 * GRADIENT + 1)))
