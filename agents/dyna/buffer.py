"""Transitions in tensors of fixed shape on the learner's device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.types import Batch, Transitions

FIELDS = ("x", "action", "reward", "next_x", "terminal", "edge")


class Ring(nn.Module):
    """Holds the last ``capacity`` transitions, and a number beside each; its content is part of the agent's state."""

    count: Tensor
    mark: Tensor

    def __init__(self, capacity: int, feature_dim: int, actions: int) -> None:
        super().__init__()
        self.capacity = capacity
        widths = {"x": (feature_dim,), "action": (actions,), "next_x": (feature_dim,)}
        for name in FIELDS:
            self.register_buffer(name, torch.zeros(capacity, *widths.get(name, ())))
        self.register_buffer("mark", torch.zeros(capacity))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.total = 0
        """``count`` on the host: how many were ever added."""

    def __len__(self) -> int:
        return min(self.total, self.capacity)

    def add(self, data: Transitions, mark: Tensor | None = None) -> None:
        """Append (N, ...), over the oldest ones where it is full; ``mark`` (N,) goes with them."""
        rows = len(data.reward)
        if rows > self.capacity:
            raise ValueError(f"{rows} transitions do not fit a ring of {self.capacity}")
        at = (self.total + torch.arange(rows, device=self.count.device)) % self.capacity
        for name in FIELDS:
            getattr(self, name)[at] = getattr(data, name).detach().to(torch.float32)
        if mark is not None:
            self.mark[at] = mark.to(torch.float32)
        self.total += rows
        self.count.fill_(self.total)

    def draw(self, rows: int, newest: int | None = None) -> Transitions:
        """(rows, ...) with replacement, every one alike, of all or of the ``newest``."""
        held = len(self) if newest is None else min(newest, len(self))
        index = torch.randint(held, (rows,), device=self.count.device)
        return self.at(index if held == len(self) else (self.total - held + index) % self.capacity)

    def at(self, index: Tensor | slice) -> Transitions:
        """Those of these places."""
        return Transitions(**{name: getattr(self, name)[index] for name in FIELDS})

    def everything(self) -> Transitions:
        """All that are held; in their order until the oldest ones have gone."""
        return self.at(slice(0, len(self)))

    def clear(self) -> None:
        """Forget everything."""
        self.total = 0
        self.count.zero_()

    def restore(self) -> None:
        """After loading: what the host has to know."""
        self.total = int(self.count)


def flatten(batch: Batch, x: Tensor) -> tuple[Transitions, Tensor]:
    """Sequences (B, T) with features (B, T, F) to transitions (B (T-1), ...), and which of them are real (the others
    lead from an episode's end into another episode).

    Index t of a result leads from step t to t + 1, whose reward it has. The end of an episode that is not terminal is
    an ``edge``: the data goes no further.
    """
    def left(value: Tensor) -> Tensor:
        return value[:, :-1].flatten(0, 1)

    def arrived(value: Tensor) -> Tensor:
        return value[:, 1:].flatten(0, 1)

    terminal, last = arrived(batch.is_terminal), arrived(batch.is_last)
    data = Transitions(
        x=left(x), action=left(batch.action), reward=arrived(batch.reward), next_x=arrived(x),
        terminal=terminal.float(), edge=(last & ~terminal).float(),
    )
    return data, ~arrived(batch.is_first)


def marks(index: Tensor | None, time: int, share: float, rows: int) -> Tensor:
    """(B (T-1),) float, 1 for transitions that models are tested on and never learn from. By the place in replay, so
    that a transition that is drawn again is on the same side; at random where the place is not known."""
    if index is None:
        return (torch.rand(rows) < share).float()
    step = index[:, 1:] + torch.arange(time - 1, device=index.device)
    # Knuth's multiplicative hash: neighbours come to lie apart
    hashed = ((index[:, :1] * 40503 + step) * 2654435761) % 2**32
    return (hashed.double() / 2**32 < share).float().flatten()


def episode_returns(data: Transitions) -> Tensor:
    """(M,) returns of the whole episodes in (N, ...) transitions; (0,) where these do not follow each other."""
    ends = (data.terminal + data.edge) > 0
    follows = (data.next_x[:-1] == data.x[1:]).all(-1) | ends[:-1]
    if not bool(follows.all()):
        return data.reward.new_zeros(0)
    total = data.reward.double().cumsum(0)[ends]
    return total.diff(prepend=total.new_zeros(1)).float()
