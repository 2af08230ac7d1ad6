"""What sampling planners have in common: candidates (B, N, H, A), scores (B, N), elites and their moments."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.protocols import PlanningObjective
from worldmodel.types import Plan

S = TypeVar("S")

Info = dict[str, Tensor]


def blank(batch_size: int, horizon: int, action_size: int, *, kept: int = 0) -> Plan:
    """A plan of zeros."""
    sequence = torch.zeros(batch_size, horizon, action_size)
    return Plan(
        action=sequence[:, 0].clone(), mean=sequence, std=sequence.clone(),
        kept=torch.zeros(batch_size, kept, horizon, action_size),
    )


def require(objective: PlanningObjective[Any], kind: str, planner: object) -> None:
    """Raises UserError where the objective's actions are not of this kind, or have no bounds to plan within."""
    if objective.action.kind != kind:
        continuous = "CEM, ICEM, MPPI, PolicyMPPI or SampledGumbelMuZero"
        other = "CategoricalCEM, MuZero or GumbelMuZero" if kind == "continuous" else continuous
        raise UserError(
            f"{type(planner).__name__} plans {kind} actions, but this environment's are {objective.action.kind}; take "
            f"{other}"
        )
    if not objective.action.is_bounded:
        raise UserError(
            f"{type(planner).__name__} plans actions in [-1, 1], but this environment's have no finite bounds; wrap it "
            f"so that they have some, or act by a policy"
        )


def fits(*, elites: int, samples: int, policy_samples: int = 0) -> None:
    """Raises ValueError where there are more elites, or more samples of the policy, than samples."""
    if elites > samples:
        raise ValueError(
            f"elites must be at most samples, got {elites} of {samples}; lower elites or draw more samples"
        )
    if not 0 <= policy_samples <= samples:
        raise ValueError(
            f"policy_samples are part of samples, so they must be from 0 to {samples}, got {policy_samples}"
        )


def proposed(objective: PlanningObjective[S], state: S, count: int, horizon: int, *, like: Tensor) -> Tensor:
    """(B, count, H, A) of the objective's policy, which is asked for nothing where ``count`` is 0."""
    if count:
        return objective.propose(state, count, horizon)
    return like.new_zeros(like.shape[0], 0, horizon, like.shape[-1])


def warm(sequence: Tensor, first: Tensor) -> Tensor:
    """(B, ..., H, A) one step on, the last slot zero; all zeros where ``first`` (B,)."""
    moved = torch.cat([sequence[..., 1:, :], torch.zeros_like(sequence[..., :1, :])], -2)
    return torch.where(first.reshape(-1, *[1] * (sequence.ndim - 1)), 0.0, moved)


def bounded(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, H, A) inside [-1, 1], and (B,) the share of numbers that were outside."""
    return candidates.clamp(-1, 1), (candidates.abs() > 1).float().mean((1, 2, 3))


def best(candidates: Tensor, score: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best, best first: (B, K, H, A), their scores (B, K), their indices (B, K)."""
    values, index = score.topk(count, 1)
    return pick(candidates, index), values, index


def pick(candidates: Tensor, index: Tensor) -> Tensor:
    """(B, N, ...) at (B, K) -> (B, K, ...)."""
    return candidates[torch.arange(candidates.shape[0], device=candidates.device).unsqueeze(1), index]


def moments(candidates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, H, A) under weights (B, K) that sum to 1, but for rounding."""
    weight = weight[..., None, None]
    mean = (weight * candidates).sum(1).clamp(-1, 1)
    return mean, (weight * (candidates - mean.unsqueeze(1)).square()).sum(1).sqrt()


def told(score: Tensor, evaluations: int, **more: Tensor) -> Info:
    """What every planner tells of its last population: (B, N) scores, and model steps an environment."""
    return {
        "value": score.amax(1), "spread": score.std(1, correction=0),
        "evaluations": torch.full((), float(evaluations), device=score.device), **more,
    }
