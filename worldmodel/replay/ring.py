"""The replay buffer: a ring of steps over parallel environments, sampled in sequences that may cross episodes."""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.errors import UserError
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.samplers import Sampler, UniformSampler, Window, make_sampler
from worldmodel.replay.segments import Segments, canonical, fingerprint
from worldmodel.replay.storage import Storage, bytes_per_step, choose_device, columns, latest_of_equal, slots_per_env
from worldmodel.types import ArraySpec, Batch, EnvSpec, Step, Update


def make_replay(
    config: ReplayConfig,
    spec: EnvSpec,
    memory_spec: dict[str, ArraySpec],
    num_envs: int,
    *,
    device: torch.device,
    seed: int,
    scratch: Path | None = None,
) -> RingReplay:
    """Plan the bytes, choose where they live, and make an empty buffer.

    Args:
        memory_spec: what the agent keeps beside each step (``Agent.memory_spec``); {} for nothing.
        device: the learner's device, where batches are delivered.
        seed: of the sampler's random numbers.
        scratch: a folder for steps, where ``config.device`` is "disk"; the system's own where there is none.

    Raises:
        UserError: the capacity does not fit the memory budget, or holds no sequence.
    """
    per_step = bytes_per_step(spec, memory_spec, config.sampler)
    home = choose_device(config, per_step, num_envs, device)
    return RingReplay(config, spec, memory_spec, num_envs, home=home, device=device, seed=seed, scratch=scratch)


class RingReplay:
    """``protocols.Replay`` as a ring: per environment, the newest ``capacity // num_envs`` steps.

    Steps have absolute numbers: every environment counts from 0, and all of them stand at the same count. A sequence
    may start at step s when s-1 (its context) to s+T-1 are held. Not safe to call from several threads at once.
    """

    def __init__(
        self,
        config: ReplayConfig,
        spec: EnvSpec,
        memory_spec: Mapping[str, ArraySpec],
        num_envs: int,
        *,
        home: torch.device,
        device: torch.device,
        seed: int,
        scratch: Path | None = None,
        prefix: str = "",
    ) -> None:
        """Args: prefix of the names of files that :meth:`save` writes."""
        self.config, self.num_envs, self.device = config, num_envs, device
        self._action = spec.action
        slots = slots_per_env(config, num_envs)
        folder = (scratch or Path(tempfile.gettempdir())) if config.device == "disk" else None
        self.storage = Storage(columns(spec, memory_spec), num_envs, slots, home, folder=folder)
        self._sampler: Sampler = make_sampler(config, num_envs, slots, home)
        self._bytes_per_step = bytes_per_step(spec, memory_spec, config.sampler)
        self._segments = Segments(self.storage, fingerprint(spec, self.storage), prefix=prefix)
        self._obs_keys = [f"obs/{key}" for key in spec.obs]
        self._memory_keys = [f"memory/{key}" for key in sorted(memory_spec)]
        self._rng = np.random.default_rng(seed)
        self._count = 0
        """Steps ever added per environment."""
        self._origin = 0
        """Oldest step that exists at all; above 0 only after loading a ring of smaller capacity."""
        self._fresh: deque[tuple[int, int]] = deque()
        """(environment, start) of the fresh sequences nobody has drawn yet, oldest first."""
        self._online_rows = 0
        if config.online_fraction > 0:
            self._online_rows = max(1, int(config.online_fraction * config.batch_size))
        most = num_envs * (slots - config.length)
        self._needed = config.min_starts or min(config.batch_size * config.length, most)
        if self._needed > most:
            raise UserError(
                f"replay.min_starts {config.min_starts} can never be reached, because a replay.capacity of "
                f"{config.capacity} holds at most {most} start positions; lower it or raise the capacity"
            )
        # Row `size` is "no action", the zero vector.
        self._one_hot = torch.eye(spec.action.size + 1, spec.action.size, device=home)
        self._arange = torch.arange(config.length + 1, device=home)

    # Writing

    def add(self, step: Step, action: Tensor, memory: Mapping[str, Tensor]) -> None:
        """Append one step of all N environments; ``action`` (N, A) was chosen after seeing ``step``.

        Actions at ``is_last`` are stored as zeros. Where an episode begins although the one before never ended (its
        environment was lost), the step before is marked ``is_last``, not terminal. ``memory`` may be empty (a policy
        without one acts): zeros are stored.

        Raises:
            ValueError: keys, shapes or types differ from the spec.
        """
        slot = self._count % self.storage.slots
        if self._count and (step.is_first.is_cuda or bool(step.is_first.any())):
            self._end_episodes((self._count - 1) % self.storage.slots, step.is_first)
        self._put_all("obs/", self._obs_keys, step.obs, slot)
        if memory:
            self._put_all("memory/", self._memory_keys, memory, slot)
        else:
            for name in self._memory_keys:
                self.storage.at(name, slot).zero_()
        self._put("reward", step.reward, slot)
        self._put("is_first", step.is_first, slot)
        self._put("is_last", step.is_last, slot)
        self._put("is_terminal", step.is_terminal, slot)
        self._put_action(action, step.is_last, slot)
        self._sampler.added(slot)
        self._count += 1
        self._queue_fresh()

    def extend(self, batch: Batch) -> None:
        """Append (N, T, ...) steps of all environments at once, as T calls of :meth:`add` without memory would.

        Raises: ValueError where there are more than fit, or keys, shapes and types differ from the spec.
        """
        length = batch.reward.shape[1]
        if batch.reward.shape[0] != self.num_envs or length > self.storage.slots:
            wanted = (self.num_envs, f"at most {self.storage.slots}")
            raise ValueError(f"steps to append must be {wanted}, got {tuple(batch.reward.shape)}")
        if self._count and bool(batch.is_first[:, 0].any()):
            self._end_episodes((self._count - 1) % self.storage.slots, batch.is_first[:, 0])
        rows = self.storage.rows(self._count, self._count + length)
        action = batch.action.float().masked_fill(batch.is_last[..., None], 0)
        if self._action.kind == "discrete":
            nothing = ~action.any(-1)
            action = action.argmax(-1).masked_fill_(nothing, self._action.size)
        given = {f"obs/{key}": x for key, x in batch.obs.items()} | {
            "action": action, "reward": batch.reward, "is_first": batch.is_first, "is_last": batch.is_last,
            "is_terminal": batch.is_terminal,
        }
        if sorted([*given, *self._memory_keys]) != sorted(self.storage.columns):
            raise ValueError(f"steps must have the observations {self._obs_keys} of the spec, got {sorted(batch.obs)}")
        for name, column in self.storage.columns.items():
            empty = torch.zeros((len(rows), *column.shape), dtype=column.dtype)
            value = given[name].flatten(0, 1).to(column.dtype) if name in given else empty
            self.storage.write(name, rows, value)
        for _ in range(length):
            self._sampler.added(self._count % self.storage.slots)
            self._count += 1
            self._queue_fresh()

    def _put_all(self, prefix: str, names: list[str], given: Mapping[str, Tensor], slot: int) -> None:
        if len(given) != len(names) or any(name.removeprefix(prefix) not in given for name in names):
            wanted = [name.removeprefix(prefix) for name in names]
            raise ValueError(f"a step's {prefix[:-1]} must have the keys {wanted} of the spec, got {sorted(given)}")
        for name in names:
            self._put(name, given[name.removeprefix(prefix)], slot)

    def _put(self, name: str, value: Tensor, slot: int) -> None:
        column = self.storage.columns[name]
        if value.dtype != column.dtype or value.shape != (self.num_envs, *column.shape):
            wanted = f"{column.dtype} {(self.num_envs, *column.shape)}"
            raise ValueError(f"{name} of a step must be {wanted}, got {value.dtype} {tuple(value.shape)}")
        self.storage.put(name, slot, value)

    def _put_action(self, action: Tensor, is_last: Tensor, slot: int) -> None:
        if action.shape != (self.num_envs, self._action.size):
            wanted = (self.num_envs, self._action.size)
            raise ValueError(f"actions of a step must be {wanted}, got {tuple(action.shape)}")
        action, is_last = self.storage.bring(action), self.storage.bring(is_last)
        if self._action.kind == "discrete":
            nothing = is_last | ~action.any(-1)
            chosen = action.argmax(-1).masked_fill_(nothing, self._action.size)
            self.storage.put("action", slot, chosen.to(self.storage.columns["action"].dtype))
        else:
            self.storage.put("action", slot, action.float().masked_fill(is_last[:, None], 0))

    def _end_episodes(self, slot: int, where: Tensor) -> None:
        """Let the episodes of ``where`` (N,) end in ``slot``, not terminal; where they ended there, nothing changes."""
        where = self.storage.bring(where)
        self.storage.at("is_last", slot).logical_or_(where)
        action = self.storage.at("action", slot)
        if self._action.kind == "discrete":
            action.masked_fill_(where, self._action.size)
        else:
            action.masked_fill_(where[:, None], 0)

    def _queue_fresh(self) -> None:
        """Fresh sequences start at steps 1, 1+T, 1+2T, ...: step 0 can only be a context."""
        length = self.config.length
        if self._online_rows and self._count > length and (self._count - 1) % length == 0:
            self._fresh.extend((env, self._count - length) for env in range(self.num_envs))

    # Reading

    @property
    def window(self) -> Window:
        """Which steps are held and where sequences may start."""
        low = max(self._origin, self._count - self.storage.slots)
        return Window(
            num_envs=self.num_envs, slots=self.storage.slots, length=self.config.length, low=low, total=self._count
        )

    def sample(self) -> Batch:
        """Draw B sequences: unseen fresh ones first, the rest by the sampler. Raises ValueError before any fits."""
        window = self.window
        if not window.starts:
            raise ValueError(f"replay holds {window.total} steps per environment, too few for one sequence; add more")
        fresh = self._take_fresh(window)
        index = torch.tensor(fresh, dtype=torch.int64).reshape(-1, 2).to(self.storage.device, non_blocking=True)
        weight = None
        rest = self.config.batch_size - len(fresh)
        if rest:
            draw = self._sampler.draw(rest, window, self._rng)
            index = torch.cat([index, draw.index])
            weight = draw.weight
        if weight is not None and fresh:
            weight = torch.cat([weight.new_ones(len(fresh)), weight])
        return replace(self._gather(index, weight), starts=self._draw_windows(window))

    def _draw_windows(self, window: Window) -> Batch | None:
        """The short sequences that dreams begin from, where they are asked for."""
        if not self.config.windows:
            return None
        short = replace(window, length=self.config.window)
        draw = self._sampler.draw_windows(self.config.windows, short, self._rng)
        return replace(self._gather(draw.index, None, short.length), index=None)

    def peek(self, *, rows: int | None = None, length: int | None = None) -> Batch:
        """A uniform batch for looking: a function of the content alone, it disturbs neither random stream nor queue.

        Args: rows, length instead of those that are trained on; sequences are as long as what is held allows.
        """
        window = self.window
        if not window.starts:
            raise ValueError(f"replay holds {window.total} steps per environment, too few for one sequence; add more")
        longer = replace(window, length=length or window.length)
        window = longer if longer.starts else window
        draw = UniformSampler(self.storage.device).draw(
            rows or self.config.batch_size, window, np.random.default_rng(self._count)
        )
        return self._gather(draw.index, None, window.length)

    def read(self, first: int, last: int, *, env: int | None = None) -> Batch:
        """(N, last - first, ...) the steps [first, last) of every environment, or (1, ...) of one, in their order. Of
        the oldest step that is held, ``prev_action`` and context are its own.

        Raises: ValueError where not all of them are held.
        """
        window = self.window
        if not window.low <= first < last <= window.total:
            raise ValueError(f"replay holds steps [{window.low}, {window.total}), asked for [{first}, {last})")
        envs = torch.arange(self.num_envs) if env is None else torch.tensor([env])
        index = torch.stack([envs, torch.full_like(envs, first)], 1).to(self.storage.device)
        return self._gather(index, None, last - first)

    def _take_fresh(self, window: Window) -> list[tuple[int, int]]:
        while self._fresh and self._fresh[0][1] < window.first:
            self._fresh.popleft()
        return [self._fresh.popleft() for _ in range(min(self._online_rows, len(self._fresh)))]

    def _gather(self, index: Tensor, weight: Tensor | None, length: int | None = None) -> Batch:
        store = self.storage
        steps = self._arange if length is None else torch.arange(length + 1, device=self._arange.device)
        length = length or self.config.length
        # (B, T+1), the context first; read() alone may ask for the oldest step, which has none
        slot = (index[:, 1:] - 1 + steps).clamp(min=self.window.low) % store.slots
        rows = index[:, :1] * store.slots + slot
        before, body, lead = rows[:, 0].contiguous(), rows[:, 1:].flatten(), (index.shape[0], length)

        def read(name: str) -> Tensor:
            value = store.read(name, body, self.device)
            return value.view(*lead, *value.shape[1:])

        is_first = read("is_first")
        action = self._read_action(rows)
        every = self._memory_keys if self.config.memory == "steps" else []
        return Batch(
            obs={name.removeprefix("obs/"): read(name) for name in self._obs_keys},
            action=action[:, 1:].contiguous(),
            prev_action=action[:, :-1].masked_fill(is_first[..., None], 0),
            reward=read("reward"),
            is_first=is_first,
            is_last=read("is_last"),
            is_terminal=read("is_terminal"),
            context={name.removeprefix("memory/"): store.read(name, before, self.device) for name in self._memory_keys},
            memory={name.removeprefix("memory/"): read(name) for name in every},
            index=index.to(self.device, non_blocking=True),
            weight=None if weight is None else weight.to(self.device, non_blocking=True),
        )

    def _read_action(self, rows: Tensor) -> Tensor:
        """(B, T+1) rows to (B, T+1, A) actions."""
        value = self.storage.read("action", rows.flatten(), self.storage.device)
        if self._action.kind == "discrete":
            value = self._one_hot.index_select(0, value.long())
        return value.view(*rows.shape, self._action.size).to(self.device, non_blocking=True)

    def write_back(self, batch: Batch, update: Update) -> None:
        """Store fresh memory (B, T, ...) and priorities (B, T) over the steps of ``batch``.

        Steps overwritten since are skipped, those whose memory is not finite, and for priorities those whose priority
        is not; where sequences of the batch overlap, the last row wins.

        Raises:
            ValueError: ``batch`` has no index, or memory differs from the spec.
        """
        if batch.index is None:
            raise ValueError("write_back needs batch.index, got None; pass a batch that sample() returned")
        if not update.memory and update.priority is None:
            return
        if update.memory and sorted(update.memory) != [name.removeprefix("memory/") for name in self._memory_keys]:
            known = [name.removeprefix("memory/") for name in self._memory_keys]
            raise ValueError(f"write_back needs memory for {known}, got {sorted(update.memory)}")
        rows = self._targets(self.storage.bring(batch.index))
        for key, value in update.memory.items():
            self._check_memory(f"memory/{key}", value, batch.index.shape[0])
            if value.is_floating_point():
                finite = torch.isfinite(value.detach()).reshape(rows.shape[0], -1).all(-1)
                rows = torch.where(self.storage.bring(finite), rows, self.storage.bin)
        latest = latest_of_equal(rows)
        for key, value in update.memory.items():
            self.storage.write(f"memory/{key}", rows, value.detach().flatten(0, 1), latest)
        if update.priority is not None:
            priority = self.storage.bring(update.priority.detach().float().flatten())
            known = torch.where(torch.isfinite(priority), rows, self.storage.bin)
            self._sampler.update(known, priority.index_select(0, latest_of_equal(known)))

    def _check_memory(self, name: str, value: Tensor, batch_size: int) -> None:
        column = self.storage.columns[name]
        wanted = (batch_size, self.config.length, *column.shape)
        if value.shape != wanted or value.dtype != column.dtype:
            got = f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(f"{name} to write back must be {column.dtype} {wanted}, got {got}")

    def _targets(self, index: Tensor) -> Tensor:
        """(B, 2) to the flat rows (B*T,) of the steps still held; the bin for the others."""
        step = index[:, 1:] + self._arange[:-1]
        rows = index[:, :1] * self.storage.slots + step % self.storage.slots
        return torch.where(step >= self.window.low, rows, self.storage.bin).flatten()

    # Counting

    @property
    def is_ready(self) -> bool:
        """Whether ``min_starts`` start positions are held."""
        return self.window.starts >= self._needed

    @property
    def total_steps(self) -> int:
        """Decisions ever added, over all environments."""
        return self._count * self.num_envs

    def __len__(self) -> int:
        """Steps held now."""
        return self.num_envs * (self._count - self.window.low)

    @property
    def nbytes_now(self) -> int:
        """Bytes of the steps held now."""
        return len(self) * self._bytes_per_step

    @property
    def nbytes_capacity(self) -> int:
        """Bytes at full capacity."""
        return self.num_envs * self.storage.slots * self._bytes_per_step

    def stats(self) -> dict[str, float]:
        """Counters for the log: "steps", "total_steps", "fill", "starts", "fresh", "bytes", "bytes_capacity"."""
        return {
            "steps": float(len(self)),
            "total_steps": float(self.total_steps),
            "fill": len(self) / (self.num_envs * self.storage.slots),
            "starts": float(self.window.starts),
            "fresh": float(len(self._fresh)),
            "bytes": float(self.nbytes_now),
            "bytes_capacity": float(self.nbytes_capacity),
        }

    # Keeping

    def save(self, folder: Path, previous: Path | None = None) -> None:
        """Write everything, random numbers included, into ``folder``; the caller syncs and renames it.

        Files: ``replay.json``; ``steps-<k>.safetensors``, immutable once the segment is full and hard-linked from
        ``previous`` when that holds the same bytes; ``memory-<k>.safetensors``, what training rewrites (memory and the
        sampler's numbers), written afresh. Changes nothing in the buffer. Raises OSError from the disk.
        """
        self._segments.save(folder, previous, self.window, self._sampler.per_step, self._counters())

    def take_as_known(self, digest: str) -> None:
        """The steps held now lie elsewhere, under this digest: :meth:`save` leaves them out, :meth:`load` wants them
        here already."""
        self._segments.known = digest

    def load(self, folder: Path, *, salvage: bool = False) -> int:
        """Replace all content by what ``folder`` holds; ``sample`` then goes on bit for bit.

        The number of environments and the spec must be those of the saved run. The capacity may differ (of a larger
        ring the newest steps are kept), so may the sampler and the sequence length: then draws differ from the saved
        run's, and after a change of length the queue of fresh sequences starts empty.

        Args:
            salvage: leave out segments that are damaged. The others close up towards the newest: where steps are
                missing, an episode ends (not terminal) and another begins; the queue of fresh sequences starts empty.

        Returns:
            The number of steps left out.

        Raises:
            CheckpointError: missing, damaged, or of another spec; the buffer must not be used afterwards.
        """
        loaded = self._segments.load(folder, self._sampler.per_step, salvage=salvage)
        counters = loaded.saved["counters"]
        self._count, self._origin = loaded.saved["last"], loaded.low
        everywhere = torch.ones(self.num_envs, dtype=torch.bool)
        for step in loaded.seams:
            slot = step % self.storage.slots
            self._end_episodes((step - 1) % self.storage.slots, everywhere)
            self.storage.at("is_first", slot).fill_(True)
            self.storage.at("reward", slot).zero_()
        window = self.window
        self._fresh = deque((env, start) for env, start in counters["fresh"])
        if counters["length"] != self.config.length or not self._online_rows or loaded.lost:
            self._fresh.clear()
        self._rng.bit_generator.state = counters["rng"]
        known = counters["sampler_name"] == self.config.sampler
        self._sampler.restore(counters["sampler"] if known else {}, window)
        return loaded.lost * self.num_envs

    def _counters(self) -> dict[str, Any]:
        return {
            "length": self.config.length,
            "fresh": [list(entry) for entry in self._fresh],
            "rng": self._rng.bit_generator.state,
            "sampler_name": self.config.sampler,
            "sampler": self._sampler.state(),
        }

    def digest(self) -> str:
        """SHA-256 of all held content, counters and random state: two buffers with equal digests go on alike."""
        window, digest = self.window, hashlib.sha256()
        header = {"counters": self._counters(), "low": window.low, "total": window.total, "slots": window.slots}
        digest.update(canonical(header | {"fingerprint": self._segments.fingerprint}))
        grids = {name: self.storage.grid(name) for name in self.storage.columns}
        for name, value in self._sampler.per_step.items():
            grids[name] = value[:-1].view(self.num_envs, self.storage.slots)
        for name in sorted(grids):
            digest.update(name.encode())
            for env in range(self.num_envs):
                for first, last in self._stretches(window):
                    digest.update(grids[name][env, first:last].contiguous().view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()

    def _stretches(self, window: Window) -> list[tuple[int, int]]:
        """The held steps as one or two ranges of slots, oldest first."""
        if window.total == window.low:
            return []
        first, last = window.low % window.slots, (window.total - 1) % window.slots + 1
        return [(first, last)] if first < last else [(first, window.slots), (0, last)]
