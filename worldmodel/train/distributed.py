"""Several processes, on one machine or many, that share every batch: joining, beginning alike, noticing who has gone.

``torchrun`` says by environment variables who there is. Each process (rank) computes the gradient of its rows; what
must be computed over all rows goes through :mod:`worldmodel.ranks`. A rank that dies leaves the others waiting in the
middle of an operation, and no back end says whom they wait for: every rank therefore shows a sign of life in the common
store, and whoever sees one missing says so and ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from worldmodel import ranks
from worldmodel.errors import UserError
from worldmodel.protocols import Agent, EnvPool, Replay
from worldmodel.train.hold import hold_newest

BEAT = 0.5
"""Seconds between two signs of life."""
SILENCE = 8.0
"""Seconds without one after which a rank counts as gone."""
JOINING = 300.0
"""Seconds within which all ranks must have come."""
OPERATION = 7200.0
"""Seconds that one may wait for the others while they live: rank 0 evaluates alone."""
GONE = 75
"""Exit code of a rank that others have left: sysexits.h's EX_TEMPFAIL, for the run can go on."""
DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among all."""

    rank: int
    size: int
    local: int
    """Which of its machine's processes it is; the GPU of that number is its own."""
    address: str
    port: int
    hosts_store: bool
    """Whether this process keeps the common store; with torchrun its agent does."""

    @classmethod
    def find(cls, variables: Mapping[str, str] = os.environ) -> Place | None:
        """From the environment that torchrun makes; None for a process that is alone.

        Raises: UserError where the variables are incomplete.
        """
        if int(variables.get("WORLD_SIZE", "1")) < 2:
            return None
        try:
            rank = int(variables["RANK"])
            return cls(
                rank=rank, size=int(variables["WORLD_SIZE"]), local=int(variables.get("LOCAL_RANK", rank)),
                address=variables["MASTER_ADDR"], port=int(variables["MASTER_PORT"]),
                hosts_store=rank == 0 and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            )
        except (KeyError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE is {variables['WORLD_SIZE']}, but {error.args[0]} is missing or no number; start several "
                f"processes with torchrun, or unset WORLD_SIZE"
            ) from error


@contextlib.contextmanager
def join(place: Place, device: torch.device, *, end: Callable[[str], None] | None = None) -> Iterator[Crew]:
    """Share every batch with the other ranks while the block runs.

    Args:
        device: where gradients are; "cuda" communicates by NCCL, "cpu" by gloo.
        end: told the sentence about a rank that has gone; by default it is printed and the process ends with ``GONE``.
    Raises: UserError where the others do not come.
    """
    try:
        # connections of their own: the thread that watches must not wait behind one that communicates
        store, watched = _store(place, place.hosts_store), _store(place, False)
    except (RuntimeError, ValueError) as error:
        raise _unmet(place, error) from error
    try:
        with Watch(place, watched, end or _end) as watch:
            try:
                dist.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo", store=PrefixStore("group", store), rank=place.rank,
                    world_size=place.size, timeout=timedelta(seconds=OPERATION),
                )
            except (RuntimeError, ValueError) as error:
                watch.explain()
                raise _unmet(place, error) from error
            try:
                with ranks.sharing(dist.group.WORLD):
                    yield Crew(place.size, dist.new_group(backend="gloo"), watch.explain)
            except RuntimeError:
                watch.explain()
                raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class Alone:
    """The crew of a process that shares with nobody."""

    size = 1

    def ready(self, mine: bool) -> bool:
        """Whether everybody's replay can be sampled."""
        return mine

    def order(self, updates: int = 0) -> int:
        """Rank 0 tells how many updates follow, -1 for the end, and the others are told."""
        return updates

    def end(self) -> None:
        """Rank 0 sends everybody home."""

    def explain(self) -> None:
        """After an operation failed: wait until it is clear whether a rank has gone."""


class Crew(Alone):
    """All ranks: what they tell each other between updates, on the host."""

    def __init__(self, size: int, group: Any, explain: Callable[[], None]) -> None:
        self.size, self._group, self._explain = size, group, explain

    def ready(self, mine: bool) -> bool:
        flag = torch.tensor(int(mine))
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=self._group)
        return bool(flag)

    def order(self, updates: int = 0) -> int:
        told = torch.tensor(updates)
        dist.broadcast(told, 0, group=self._group)
        return int(told)

    def end(self) -> None:
        self.ready(True)  # where the others wait
        self.order(-1)

    def explain(self) -> None:
        self._explain()


def follow(agent: Agent[Any], pool: EnvPool, replay: Replay, crew: Crew, seed: int) -> int:
    """What ranks other than 0 do: act, remember, and learn when rank 0 says so; the number of updates."""
    carry, step, updates = agent.initial(pool.num_envs, seed=seed), pool.reset(seed), 0
    while True:
        action, carry = agent.act(carry, step, explore=True)
        replay.add(step, action, agent.memory(carry))
        hold_newest(agent, replay, pool.num_envs)
        step = pool.step(action)
        crew.ready(replay.is_ready)
        due = crew.order()
        if due < 0:
            return updates
        for _ in range(due):
            batch = replay.sample()
            replay.write_back(batch, agent.learn(batch))
        updates += due


def begin_alike(state: Mapping[str, Tensor]) -> None:
    """Overwrite an agent's state, in place, with rank 0's; but for its random streams, which are each rank's own."""
    for name, x in state.items():
        if not name.startswith("rng/"):
            dist.broadcast(x, 0)


class Watch:
    """Shows a sign of life, and tells of the first rank that shows none, or does not come."""

    def __init__(self, place: Place, store: Store, end: Callable[[str], None]) -> None:
        """Args: store: for this object alone."""
        self.place, self.end = place, end
        self._store, self._stop, self._found = store, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch-ranks", daemon=True)

    def __enter__(self) -> Watch:
        self._store.set(_key(self.place.rank), "0")
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # whoever keeps the store may have ended before us
            self._store.set(_key(self.place.rank), DONE)

    def explain(self) -> None:
        """After an operation failed: wait until it is clear whether a rank has gone."""
        self._found.wait(SILENCE + 4 * BEAT)

    def _run(self) -> None:
        others = [rank for rank in range(self.place.size) if rank != self.place.rank]
        seen: dict[int, tuple[bytes | None, float]] = dict.fromkeys(others, (None, time.monotonic()))
        beat = 0
        while not self._stop.wait(BEAT):
            beat += 1
            try:
                self._store.set(_key(self.place.rank), str(beat))
                # to get what is not there yet would wait for it
                signs = {rank: self._store.get(_key(rank)) for rank in others if self._store.check([_key(rank)])}
            except RuntimeError:
                self._tell("the process that keeps the common store (rank 0, or torchrun) has gone")
                return
            now = time.monotonic()
            for rank in others:
                sign, (last, since) = signs.get(rank), seen[rank]
                if sign != last:
                    seen[rank] = sign, now
                elif sign is None and now - since > JOINING:
                    self._tell(f"rank {rank} of {self.place.size} has not come within {JOINING:.0f} s")
                    return
                elif sign not in (None, DONE.encode()) and now - since > SILENCE:
                    self._tell(f"rank {rank} of {self.place.size} has shown no sign of life for {SILENCE:.0f} s")
                    return

    def _tell(self, what: str) -> None:
        self._found.set()
        self.end(
            f"{what}; rank {self.place.rank} ends, for no update is possible without it: go on with "
            f"`worldmodel resume` on all ranks"
        )


def _unmet(place: Place, error: Exception) -> UserError:
    return UserError(
        f"rank {place.rank} of {place.size} could not meet the others at {place.address}:{place.port} "
        f"({str(error).splitlines()[0]}); start all of them, with the same torchrun --nnodes and --rdzv-endpoint"
    )


def _store(place: Place, is_master: bool) -> TCPStore:
    return TCPStore(
        place.address, place.port, place.size, is_master, timedelta(seconds=JOINING), wait_for_workers=False
    )


def _key(rank: int) -> str:
    return f"alive/{rank}"


def _end(sentence: str) -> None:
    sys.stderr.write(f"worldmodel: {sentence}\n")
    sys.stderr.flush()
    # the main thread may be in an operation that never returns
    os._exit(GONE)
