"""Dreams that branch off real states: how many, how long, how often, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.pessimism import Halt
from worldmodel.agents.dyna.rules.base import Learner
from worldmodel.errors import check_range
from worldmodel.protocols import Solved
from worldmodel.types import Transitions

AT_ONCE = 1024
"""States whose candidates are played side by side: K times as many rows, H steps of which are held at a time."""


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """Time is counted in updates."""

    rows: int = 50_000
    """Branches of one round, from as many real states drawn with replacement."""
    every: int = 1000
    """Updates between two rounds."""
    keep: int = 5
    """Rounds whose transitions are held."""
    length: int = 5
    """k, steps of a branch."""
    grown: int = 0
    """Steps of a branch in the end, for lengths that grow; 0: they do not."""
    grows: tuple[int, int] = (0, 1)
    """Updates between which they grow, linearly."""

    def __post_init__(self) -> None:
        check_range(self, 1, "rows", "every", "keep", "length")
        if (self.grown and self.grown < self.length) or self.grows[0] >= self.grows[1]:
            raise ValueError(f"lengths grow from length={self.length} to grown={self.grown}, during grows={self.grows}")

    def at(self, updates: int) -> int:
        """Steps of a branch after so many updates.

        >>> BranchConfig(length=1, grown=15, grows=(20, 100)).at(60)
        8
        """
        if not self.grown:
            return self.length
        start, end = self.grows
        share = min(1.0, max(0.0, (updates - start) / (end - start)))
        return int(self.length + share * (self.grown - self.length))


@torch.no_grad()
def branch(
    it: Learner, start: Tensor, length: int, keep: Callable[[Transitions], None], *, penalty: float, halt: Halt | None,
    choose: Callable[[Any], tuple[Tensor, dict[str, Tensor]]],
) -> dict[str, Tensor]:
    """One round of branches from observations (N, F), by the policy, ``length`` steps or to their end.

    Args:
        keep: takes the transitions of each step.
        penalty: what the model's disagreement costs in reward.
        halt: where it ends a branch, if anywhere.
        choose: states (N, ...) to actions (N, A), and what the choice was about, (N,) each.
    Returns: scalars for the log.
    """
    model, state = it.model, it.place(start)
    known: object = model
    solved = known if isinstance(known, Solved) else None
    made, beyond, halts = 0, 0.0, 0.0
    told: list[dict[str, Tensor]] = []
    for step in range(length):
        x = model.features(state)
        action, about = choose(state)
        told.append(about)
        arrived = model.step(state, action)
        said = model.predict(state, action, arrived)
        reward, terminal = said.reward, (said.continues < 0.5).float()
        edge = torch.full_like(terminal, float(step == length - 1)) * (1 - terminal)
        if penalty or halt is not None:
            doubt = model.disagreement(state, action)
            reward = losses.penalised_reward(reward=reward, doubt=doubt, weight=penalty)
            if halt is not None:
                reward, terminal, edge, halted = halt.apply_to(doubt, reward, terminal, edge)
                halts += float(halted.sum())
        next_x = model.features(arrived)
        keep(Transitions(x=x, action=action, reward=reward, next_x=next_x, terminal=terminal, edge=edge))
        if solved is not None:
            beyond += float(solved.beyond(next_x, length).sum())
        made += len(reward)
        alive = torch.maximum(terminal, edge) == 0
        if not bool(alive.all()):
            if not bool(alive.any()):
                break
            arrived = tree.index(arrived, alive)
        state = arrived
    found = {"branch/length": float(length), "branch/transitions": float(made), "branch/mean": made / len(start)}
    if halt is not None:
        found["halt/share"] = halts / made
    if solved is not None:
        found["reach/beyond_share"] = beyond / made
    for name in told[0]:
        found[f"select/{name}"] = float(torch.cat([about[name] for about in told]).mean())
    return {name: torch.tensor(x) for name, x in found.items()}


def chosen(
    selector: Any, model: Any, act: Callable[[Tensor], Tensor], worth: Callable[[Tensor], Tensor], state: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a ``CandidateSelector`` takes in states (N, ...), (N, A), and what it says of that, (N,) each; without one,
    or with one candidate, samples of the policy ``act``, with the same random numbers."""
    if selector is None or selector.candidates == 1:
        return act(model.features(state)), {}
    rows = model.features(state).shape[0]
    parts = [
        selector.select(model, act, tree.index(state, slice(at, at + AT_ONCE)), value=worth)
        for at in range(0, rows, AT_ONCE)
    ]
    actions, abouts = zip(*parts)
    return torch.cat(actions), {name: torch.cat([about[name] for about in abouts]) for name in abouts[0]}
