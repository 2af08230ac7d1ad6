"""Data beside what is lived: every batch has a share of both (symmetric sampling, Ball et al. 2023, is one half)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.errors import UserError
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay
from worldmodel.types import Batch, Step, Update


def split(config: ReplayConfig) -> tuple[ReplayConfig, ReplayConfig]:
    """What of a batch each draws: of data, and of what is lived; together what ``config`` says.

    Raises: UserError where one of them would draw nothing.
    """
    rows = [round(config.data_fraction * n) for n in (config.batch_size, config.windows)]
    if not 0 < rows[0] < config.batch_size:
        raise UserError(
            f"replay.data_fraction {config.data_fraction:g} of replay.batch_size {config.batch_size} leaves one side "
            f"nothing; set it between the two, or leave --data away"
        )
    return (
        replace(config, batch_size=rows[0], windows=rows[1]),
        replace(config, batch_size=config.batch_size - rows[0], windows=config.windows - rows[1]),
    )


class MixedReplay:
    """``protocols.Replay`` over two: rows of a batch that come from ``data`` are in front. What is added and read is
    lived."""

    def __init__(self, data: RingReplay, lived: RingReplay) -> None:
        """Args: whose configurations are those of :func:`split`."""
        self.data, self.lived = data, lived
        self._rows = data.config.batch_size

    def add(self, step: Step, action: Tensor, memory: Mapping[str, Tensor]) -> None:
        self.lived.add(step, action, memory)

    def sample(self) -> Batch:
        """Raises ValueError before enough was lived."""
        return _joined(self.data.sample(), self.lived.sample())

    def peek(self, *, rows: int | None = None, length: int | None = None) -> Batch:
        return (self.lived if self.lived.is_ready else self.data).peek(rows=rows, length=length)

    def read(self, first: int, last: int) -> Batch:
        return self.lived.read(first, last)

    def write_back(self, batch: Batch, update: Update) -> None:
        """To whom each row came from."""
        whole = replace(batch, starts=None)
        parts = (slice(0, self._rows), slice(self._rows, None))
        for replay, at in zip((self.data, self.lived), parts):
            memory = {name: x[at] for name, x in update.memory.items()}
            priority = None if update.priority is None else update.priority[at]
            replay.write_back(tree.index(whole, at), Update(metrics={}, memory=memory, priority=priority))

    @property
    def is_ready(self) -> bool:
        return self.lived.is_ready

    @property
    def total_steps(self) -> int:
        return self.lived.total_steps

    def __len__(self) -> int:
        return len(self.lived)

    def stats(self) -> dict[str, float]:
        """Of what is lived; "data_steps" and "data_bytes" of the data."""
        held = self.data.stats()
        return self.lived.stats() | {"data_steps": held["steps"], "data_bytes": held["bytes"]}

    def save(self, folder: Path, previous: Path | None = None) -> None:
        self.lived.save(folder, previous)
        self.data.save(folder, previous)

    def load(self, folder: Path, *, salvage: bool = False) -> int:
        self.data.load(folder, salvage=salvage)
        return self.lived.load(folder, salvage=salvage)


def _joined(first: Batch, second: Batch) -> Batch:
    """Rows of both, ``first``'s in front."""
    def both(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    def each(name: str) -> dict[str, Tensor]:
        one, other = getattr(first, name), getattr(second, name)
        return {key: torch.cat([one[key], other[key]]) for key in one}

    starts = weight = None
    if first.starts is not None and second.starts is not None:
        starts = _joined(first.starts, second.starts)
    if first.weight is not None or second.weight is not None:  # fresh sequences have none, which means 1
        parts = [torch.ones_like(b.reward[:, 0]) if b.weight is None else b.weight for b in (first, second)]
        weight = torch.cat(parts)
    return Batch(
        obs=each("obs"), action=both("action"), prev_action=both("prev_action"), reward=both("reward"),
        is_first=both("is_first"), is_last=both("is_last"), is_terminal=both("is_terminal"), context=each("context"),
        memory=each("memory"), index=None if first.index is None else both("index"), weight=weight, starts=starts,
    )
