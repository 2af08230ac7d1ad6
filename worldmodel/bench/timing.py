"""How long calls take: blocks of calls that alternate between subjects, and what is said of them."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks points in time; what lies between two marks is known once ``wait`` has returned."""

    def mark(self) -> Any: ...
    def between(self, start: Any, end: Any) -> float:
        """Milliseconds."""
        ...

    def wait(self) -> None:
        """Until the device has done all it was asked to."""
        ...

    def wall(self) -> float:
        """Milliseconds of wall time."""
        ...

    def cpu(self) -> float:
        """Milliseconds of processor time that this process has taken, all threads together."""
        ...


class HostClock:
    """Wall time as the caller feels it: right on a CPU, and for calls that wait for the device themselves."""

    def mark(self) -> float:
        return self.wall()

    def between(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        """Nothing to wait for."""

    def wall(self) -> float:
        return time.perf_counter_ns() / 1e6

    def cpu(self) -> float:
        return time.process_time_ns() / 1e6


class CudaClock(HostClock):
    """Calls are told apart by events on the stream, so that timing them makes nobody wait."""

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end)

    def wait(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> Clock:
    """The clock for work on ``device``."""
    return CudaClock() if device.type == "cuda" else HostClock()


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some calls in a row, without waiting in between."""

    calls_ms: list[float]
    """Each call."""
    wall_ms: float
    """All of them, from the first call until the device has done everything."""
    cpu_ms: float
    """Processor time of all of them: on a machine that others use too, this tells more than wall time."""


Subject = Callable[[int], Block]
"""Runs that many calls, here or in another process."""


def run_block(call: Callable[[], object], count: int, clock: Clock) -> Block:
    """``count`` calls in a row; waits for the device before and after, never in between."""
    clock.wait()
    cpu, wall = clock.cpu(), clock.wall()
    marks = [clock.mark()]
    for _ in range(count):
        call()
        marks.append(clock.mark())
    clock.wait()
    wall, cpu = clock.wall() - wall, clock.cpu() - cpu
    return Block(calls_ms=[clock.between(a, b) for a, b in itertools.pairwise(marks)], wall_ms=wall, cpu_ms=cpu)


def subject(call: Callable[[], object], clock: Clock) -> Subject:
    """A call in this process, as a subject."""
    return lambda count: run_block(call, count, clock)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    blocks: int = 5
    """Blocks of calls; where subjects are compared, their blocks alternate."""
    seconds: float = 10.0
    """About how long the blocks of one row take; decides how many calls a block has."""
    warmup: int = 3
    """Calls before anything is measured."""
    most: int = 200
    """Calls in a block, at most."""

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"--blocks must be at least 1, got {self.blocks}")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"--seconds must be finite and not negative, got {self.seconds}")
        if self.warmup < 1:
            raise ValueError(f"--warmup must be at least 1 call, got {self.warmup}")

    def count(self, call_ms: float) -> int:
        """Calls in a block, for calls that take ``call_ms`` each.

        >>> Plan(blocks=5, seconds=10).count(100.0)
        20
        """
        fit = 1e3 * self.seconds / self.blocks / max(call_ms, 1e-6)
        return max(1, min(self.most, int(fit)))


def alternate(subjects: Mapping[str, Subject], plan: Plan) -> dict[str, list[Block]]:
    """Blocks of every subject, A B A B ...: what the machine does besides falls on all alike."""
    counts = {}
    for name, run in subjects.items():
        run(plan.warmup)
        counts[name] = plan.count(run(1).wall_ms)
    blocks: dict[str, list[Block]] = {name: [] for name in subjects}
    for _ in range(plan.blocks):
        for name, run in subjects.items():
            blocks[name].append(run(counts[name]))
    return blocks


def summary(blocks: Sequence[Block]) -> dict[str, Any]:
    """What a row says of its blocks: milliseconds of a call.

    "median_ms", "p95_ms", "p99_ms" over all calls; "wall_ms" the median over blocks of a block's mean, with "min_ms"
    and "max_ms" over blocks; "cpu_ms" likewise of processor time; "block_ms" those means, in order.
    """
    calls = sorted(ms for block in blocks for ms in block.calls_ms)
    walls = [block.wall_ms / len(block.calls_ms) for block in blocks]
    numbers = {
        "median_ms": statistics.median(calls),
        "p95_ms": percentile(calls, 0.95),
        "p99_ms": percentile(calls, 0.99),
        "wall_ms": statistics.median(walls),
        "min_ms": min(walls),
        "max_ms": max(walls),
        "cpu_ms": statistics.median(block.cpu_ms / len(block.calls_ms) for block in blocks),
    }
    rounded = {name: round(ms, 4) for name, ms in numbers.items()}
    return rounded | {"block_ms": [round(ms, 4) for ms in walls], "calls": len(calls), "blocks": len(blocks)}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the ordered values that at least ``share`` of them do not exceed.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(0, rank - 1)]


def ratios(ours: Sequence[Block], theirs: Sequence[Block]) -> dict[str, float]:
    """Ours over theirs, below 1 where ours is faster: of the medians over calls ("ratio"), of processor time ("cpu"),
    and of blocks that ran one after the other ("paired", with the lowest and highest of them)."""
    us, them = summary(ours), summary(theirs)
    paired = [a / b for a, b in zip(us["block_ms"], them["block_ms"])]
    numbers = {
        "ratio": us["median_ms"] / them["median_ms"],
        "cpu": us["cpu_ms"] / them["cpu_ms"],
        "paired": statistics.median(paired),
        "paired_min": min(paired),
        "paired_max": max(paired),
    }
    return {name: round(value, 4) for name, value in numbers.items()}
