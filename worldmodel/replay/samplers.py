"""How start positions are drawn. A sampler knows numbers of steps, never what the steps hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel.replay.config import ReplayConfig


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which steps are held and where a sequence may start. Steps are absolute: every environment counts from 0 and all
    have the same count; step s lies in slot s % slots, flat row ``env * slots + s % slots``."""

    num_envs: int
    slots: int
    length: int
    """Steps per sequence (T)."""
    low: int
    """Oldest step held."""
    total: int
    """Steps ever added per environment; the newest step held is total - 1."""

    @property
    def first(self) -> int:
        """First valid start: the step before it, its context, is still held."""
        return self.low + 1

    @property
    def last(self) -> int:
        """One past the last valid start."""
        return max(self.first, self.total - self.length + 1)

    @property
    def starts(self) -> int:
        """Valid starts over all environments."""
        return self.num_envs * (self.last - self.first)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Start positions."""

    index: Tensor
    """(count, 2) int64, (environment, absolute step)."""
    weight: Tensor | None = None
    """(count,) float32 importance weights, the largest possible one being 1; None where all are 1."""


class Sampler(Protocol):
    """Draws start positions, by whatever it keeps per step.

    The ring saves, loads and hashes ``per_step`` tensors beside the steps they belong to, so a sampler only restores
    what follows from them. Random numbers come from the ring's generator, which is saved too.
    """

    @property
    def per_step(self) -> dict[str, Tensor]:
        """(num_envs * slots + 1,) tensors by name, one entry per flat row; the last row is a bin for ignored writes."""
        ...

    def added(self, slot: int) -> None:
        """A new step of every environment lies in ``slot``."""
        ...

    def draw(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """Choose ``count`` starts of the window's valid ones."""
        ...

    def draw_windows(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """Choose ``count`` starts of the short sequences that dreams begin from."""
        ...

    def update(self, rows: Tensor, priority: Tensor) -> None:
        """Fresh priorities (M,) for flat rows (M,); equal rows carry equal values, ignored ones point at the bin."""
        ...

    def state(self) -> dict[str, float]:
        """What is neither per step nor derived, as JSON numbers."""
        ...

    def restore(self, state: Mapping[str, float], window: Window) -> None:
        """Go on from ``state`` ({} if the saved run used another sampler) and ``per_step``, already in place."""
        ...


def make_sampler(config: ReplayConfig, num_envs: int, slots: int, device: torch.device) -> Sampler:
    """The sampler that ``config.sampler`` names."""
    if config.sampler == "prioritized":
        return PrioritizedSampler(
            num_envs, slots, device, exponent=config.priority_exponent, importance=config.importance_exponent
        )
    if config.sampler == "dfs":
        return FrequencySampler(
            num_envs, slots, device, temperature=config.dfs_temperature,
            share=config.batch_size / max(1, config.windows),
        )
    return UniformSampler(device)


def span_rows(env_base: Tensor, slots: int, first: int, last: int) -> Tensor:
    """(N * (last - first),) flat rows of absolute steps [first, last), environment by environment, if there are any.

    Args:
        env_base: (N,) first flat row of each environment.
    """
    slot = torch.arange(first, max(first, last), device=env_base.device) % slots
    # (N, 1) + (S,) -> (N*S,)
    return (env_base[:, None] + slot).flatten()


def bytes_per_start(sampler: str) -> int:
    """Bytes that a sampler keeps per step held."""
    return {"uniform": 0, "prioritized": 12, "dfs": 8}[sampler]


class UniformSampler:
    """Every (environment, start) alike."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.per_step: dict[str, Tensor] = {}

    def added(self, slot: int) -> None:
        """Nothing to keep."""

    def draw(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """See :meth:`Sampler.draw`."""
        env, offset = np.divmod(rng.integers(0, window.starts, count), window.last - window.first)
        index = torch.from_numpy(np.stack([env, window.first + offset], 1))
        return Draw(index=index.to(self._device, non_blocking=True))

    def draw_windows(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """As :meth:`draw`."""
        return self.draw(count, window, rng)

    def update(self, rows: Tensor, priority: Tensor) -> None:
        """Priorities mean nothing here."""

    def state(self) -> dict[str, float]:
        """Nothing beside the generator."""
        return {}

    def restore(self, state: Mapping[str, float], window: Window) -> None:
        """Nothing to restore."""


class SumTree:
    """Draws leaves in proportion to integer weights, O(log n) per draw and per update, vectorised on any device.

    Integers make every sum exact: a tree that was updated a million times equals one built afresh, on any device. The
    fan-out is wide because a level costs a few launches whatever its width.
    """

    FANOUT = 128

    def __init__(self, size: int, device: torch.device) -> None:
        width, self.levels = size, []
        while not self.levels or width > 1:
            width = -(-width // self.FANOUT)
            self.levels.append(torch.zeros(width * self.FANOUT, dtype=torch.int64, device=device))

    @property
    def leaves(self) -> Tensor:
        """(padded size,) int64 weights."""
        return self.levels[0]

    @property
    def total(self) -> Tensor:
        """() int64 sum of all weights."""
        return self.levels[-1].sum()

    def assign(self, leaf: Tensor, weight: Tensor) -> None:
        """Set the weights (M,) of leaves (M,); equal leaves must carry equal weights."""
        if leaf.numel() == 0:
            return
        self.levels[0].index_copy_(0, leaf, weight)
        whole = leaf.numel() * self.FANOUT > self.levels[0].numel()
        node = leaf
        for below, level in zip(self.levels, self.levels[1:]):
            groups = below.view(-1, self.FANOUT)
            if whole:
                level[: groups.shape[0]] = groups.sum(-1)
            else:
                node = node // self.FANOUT
                level.index_copy_(0, node, groups.index_select(0, node).sum(-1))

    def find(self, point: Tensor) -> Tensor:
        """(M,) int64 in [0, total) to the leaf whose share of the cumulated weights holds the point."""
        node = torch.zeros_like(point)
        for level in reversed(self.levels):
            # (M, FANOUT)
            weight = level.view(-1, self.FANOUT).index_select(0, node)
            cumulated = weight.cumsum(-1)
            child = (cumulated <= point[:, None]).sum(-1, keepdim=True)
            point = point - (cumulated.gather(1, child) - weight.gather(1, child)).squeeze(1)
            node = node * self.FANOUT + child.squeeze(1)
        return node


class PrioritizedSampler:
    """Proportional prioritisation (Schaul et al. 2016, section 3.3): P(start) ~ priority(step at start)^alpha.

    A new step gets the highest priority seen so far. Weights of the tree are priority^alpha in units of 2^-20, at least
    one unit, so nothing is ever lost for good; steps where no sequence can start weigh 0. The tree follows the window
    lazily, at the next draw, which keeps ``added`` to one small write.
    """

    UNIT = 2.0**20
    LARGEST = 2**39
    """Largest weight: the sum over 2^23 steps stays inside int64."""

    def __init__(
        self, num_envs: int, slots: int, device: torch.device, *, exponent: float, importance: float
    ) -> None:
        self._num_envs, self._slots, self._device = num_envs, slots, device
        self._exponent, self._importance = exponent, importance
        self._priority = torch.ones(num_envs * slots + 1, dtype=torch.float32, device=device)
        self._highest = torch.ones((), dtype=torch.float32, device=device)
        self._tree = SumTree(num_envs * slots + 1, device)
        self._env_base = torch.arange(num_envs, device=device) * slots
        self._grid = self._priority[:-1].view(num_envs, slots)
        self._first = self._last = 0
        """The valid starts that the tree knows."""

    @property
    def per_step(self) -> dict[str, Tensor]:
        """See :attr:`Sampler.per_step`."""
        return {"priority": self._priority}

    def added(self, slot: int) -> None:
        """New steps get the highest priority seen so far."""
        self._grid.select(1, slot).copy_(self._highest)

    def draw(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """See :meth:`Sampler.draw`; weights are (P_min / P(i))^beta, P_min the smallest probability of this draw."""
        self._follow(window)
        total = self._tree.total
        share = torch.from_numpy(rng.random(count)).to(self._device, non_blocking=True)
        leaf = self._tree.find(torch.minimum((share * total).long(), total - 1))
        env, slot = leaf // self._slots, leaf % self._slots
        step = window.low + (slot - window.low) % self._slots
        mass = self._tree.leaves.index_select(0, leaf).double()
        weight = (mass.amin() / mass).pow(self._importance).float()
        return Draw(index=torch.stack([env, step], 1), weight=weight)

    def draw_windows(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """Every one alike: priorities are the batch's."""
        return UniformSampler(self._device).draw(count, window, rng)

    def update(self, rows: Tensor, priority: Tensor) -> None:
        """See :meth:`Sampler.update`; a priority that is not finite is ignored."""
        old = self._priority.index_select(0, rows)
        new = torch.where(torch.isfinite(priority), priority.clamp(min=0), old)
        self._priority.index_copy_(0, rows, new)
        self._highest = torch.maximum(self._highest, new.amax())
        # A leaf of weight 0 is no valid start (or the bin); it gets its weight when it becomes one.
        known = self._tree.leaves.index_select(0, rows) > 0
        self._tree.assign(rows, torch.where(known, self._weigh(new), 0))

    def state(self) -> dict[str, float]:
        """The highest priority so far."""
        return {"highest": float(self._highest)}

    def restore(self, state: Mapping[str, float], window: Window) -> None:
        """See :meth:`Sampler.restore`; without a saved state every step counts as new."""
        self._highest = torch.tensor(state.get("highest", 1.0), dtype=torch.float32, device=self._device)
        if not state:
            self._priority.fill_(1.0)
        self._tree = SumTree(self._num_envs * self._slots + 1, self._device)
        self._first = self._last = window.first
        self._follow(window)

    def _weigh(self, priority: Tensor) -> Tensor:
        mass = priority.double().pow(self._exponent) * self.UNIT
        return mass.clamp(1, self.LARGEST).round().long()

    def _follow(self, window: Window) -> None:
        """Let the tree know the window's valid starts: forget the old ones first, their slots may be taken again."""
        gone = self._rows(self._first, min(window.first, self._last))
        self._tree.assign(gone, torch.zeros_like(gone))
        fresh = self._rows(max(window.first, self._last), window.last)
        self._tree.assign(fresh, self._weigh(self._priority.index_select(0, fresh)))
        self._first, self._last = window.first, window.last

    def _rows(self, first: int, last: int) -> Tensor:
        return span_rows(self._env_base, self._slots, first, last)


class FrequencySampler:
    """Dynamic frequency-based sampling (Drama, Wang et al. 2025): batches favour starts that were trained on seldom,
    dreams those that were trained on more often than dreamed from.

    With v_i and b_i, how often start i began a sequence of a batch and a window for dreams, and b'_i = b_i share:

        batches  p_i ~ exp(-v_i / tau)        windows  p_i ~ exp(min(0, v_i - b'_i) / tau)

    (the paper's score v - b' - max(0, v - b') is that minimum). Draws are without replacement and exact: independent
    exponential times with rates p_i, of which the first ``count`` are taken, are draws one after the other. That is one
    pass over the valid starts, in parallel. Where there are fewer starts than asked for, all are taken again and again.
    """

    def __init__(
        self, num_envs: int, slots: int, device: torch.device, *, temperature: float, share: float
    ) -> None:
        """Args: temperature tau; share of a window in a batch's sequence, batch size / windows."""
        self._slots, self._device = slots, device
        self._temperature, self._share = temperature, share
        self._trained = torch.zeros(num_envs * slots + 1, dtype=torch.int32, device=device)
        self._dreamed = torch.zeros_like(self._trained)
        self._grids = [x[:-1].view(num_envs, slots) for x in (self._trained, self._dreamed)]
        self._env_base = torch.arange(num_envs, device=device) * slots

    @property
    def per_step(self) -> dict[str, Tensor]:
        """See :attr:`Sampler.per_step`."""
        return {"trained": self._trained, "dreamed": self._dreamed}

    def added(self, slot: int) -> None:
        """New steps were never drawn."""
        for grid in self._grids:
            grid.select(1, slot).zero_()

    def draw(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """See :meth:`Sampler.draw`; without replacement."""
        rows = self._rows(window)
        return self._take(rows, -self._trained.index_select(0, rows).float(), count, window, rng, self._trained)

    def draw_windows(self, count: int, window: Window, rng: np.random.Generator) -> Draw:
        """See :meth:`Sampler.draw_windows`; without replacement."""
        rows = self._rows(window)
        trained, dreamed = (x.index_select(0, rows).float() for x in (self._trained, self._dreamed))
        score = (trained - dreamed * self._share).clamp(max=0)
        return self._take(rows, score, count, window, rng, self._dreamed)

    def update(self, rows: Tensor, priority: Tensor) -> None:
        """Priorities mean nothing here."""

    def state(self) -> dict[str, float]:
        """The counters are per step; this tells :meth:`restore` that they were saved."""
        return {"counted": 1.0}

    def restore(self, state: Mapping[str, float], window: Window) -> None:
        """See :meth:`Sampler.restore`; without a saved state nothing was drawn yet."""
        if not state:
            self._trained.zero_()
            self._dreamed.zero_()

    def _rows(self, window: Window) -> Tensor:
        return span_rows(self._env_base, self._slots, window.first, window.last)

    def _take(
        self, rows: Tensor, score: Tensor, count: int, window: Window, rng: np.random.Generator, counter: Tensor
    ) -> Draw:
        """Draw ``count`` of ``rows`` by exp(score / tau), and count them."""
        # on the device, since there may be a million; the ring's generator decides, and is what is saved
        generator = torch.Generator(self._device).manual_seed(int(rng.integers(2**63)))
        waits = torch.empty(len(rows), dtype=torch.float64, device=self._device).exponential_(generator=generator)
        # logarithms: rates of starts drawn very often underflow
        first = torch.topk(waits.log() - score / self._temperature, min(count, len(rows)), largest=False).indices
        if len(first) < count:
            first = first.repeat(-(-count // len(first)))[:count]
        chosen = rows[first]
        counter.index_add_(0, chosen, torch.ones_like(chosen, dtype=counter.dtype))
        env, slot = chosen // self._slots, chosen % self._slots
        step = window.low + (slot - window.low) % self._slots
        return Draw(index=torch.stack([env, step], 1))
