"""Where steps lie: one flat tensor per column, its bytes planned before anything is allocated."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldmodel.errors import StorageError, UserError
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.samplers import bytes_per_start, span_rows
from worldmodel.types import ArraySpec, EnvSpec

GIB = 1 << 30
_DTYPES = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
}

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Column:
    """Shape and torch type of what one step stores under one name."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one step."""
        return prod(self.shape) * self.dtype.itemsize


def columns(spec: EnvSpec, memory_spec: Mapping[str, ArraySpec]) -> dict[str, Column]:
    """Everything a step stores: "obs/<key>", "action", "reward", three flags, "memory/<key>".

    Discrete actions are stored as a class index; ``spec.action.size`` itself stands for "no action", the zero vector.
    Raises UserError for a type that torch cannot store.
    """
    found = {f"obs/{key}": _column(f"obs[{key!r}]", array) for key, array in spec.obs.items()}
    if spec.action.kind == "discrete":
        found["action"] = Column(shape=(), dtype=torch.uint8 if spec.action.size <= 255 else torch.int16)
    else:
        found["action"] = Column(shape=(spec.action.size,), dtype=torch.float32)
    found["reward"] = Column(shape=(), dtype=torch.float32)
    found |= {name: Column(shape=(), dtype=torch.bool) for name in ("is_first", "is_last", "is_terminal")}
    return found | {f"memory/{key}": _column(f"memory[{key!r}]", array) for key, array in sorted(memory_spec.items())}


def _column(name: str, array: ArraySpec) -> Column:
    if array.dtype not in _DTYPES:
        raise UserError(f"{name} has type {array.dtype!r}, which replay cannot store; use one of {', '.join(_DTYPES)}")
    return Column(shape=tuple(array.shape), dtype=_DTYPES[array.dtype])


def bytes_per_step(spec: EnvSpec, memory_spec: Mapping[str, ArraySpec], sampler: str = "uniform") -> int:
    """Bytes that one step takes, what the sampler keeps beside it included; allocates nothing."""
    return sum(column.nbytes for column in columns(spec, memory_spec).values()) + bytes_per_start(sampler)


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated on ``device`` now: what the driver, the kernel or a container limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).exists() and Path(usage).exists():
            cap = Path(limit).read_text().strip()
            if cap != "max":
                free = min(free, max(0, int(cap) - int(Path(usage).read_text())))
    return free


def slots_per_env(config: ReplayConfig, num_envs: int) -> int:
    """Steps held of each environment: the capacity is shared evenly. Raises UserError where no sequence would fit."""
    slots = config.capacity // num_envs
    if slots <= config.length:
        raise UserError(
            f"replay.capacity {config.capacity} leaves {slots} steps to each of {num_envs} environments, but a "
            f"sequence needs length + 1 = {config.length + 1}; set it to at least {(config.length + 1) * num_envs}"
        )
    return slots


def choose_device(config: ReplayConfig, per_step: int, num_envs: int, learner: torch.device) -> torch.device:
    """The device that shall hold the storage, by ``config.device`` and the budget, before anything is allocated.

    Raises UserError with the numbers where the full capacity would exceed the budget.
    """
    host = torch.device("cpu")
    if config.device == "disk":
        return host
    needed = per_step * slots_per_env(config, num_envs) * num_envs
    candidates = {"host": [host], "learner": [learner], "auto": [learner, host]}[config.device]
    if learner.type == "cpu":
        candidates = [host]
    free = 0
    for device in candidates:
        free = free_memory(device)
        if needed <= config.memory_budget * free:
            return device
    fits = int(config.memory_budget * free) // per_step // num_envs * num_envs
    raise UserError(
        f"replay.capacity {config.capacity} needs {needed / GIB:.2f} GiB ({per_step} bytes a step), but "
        f"replay.memory_budget {config.memory_budget:g} of the {free / GIB:.2f} GiB free on {candidates[-1]} is "
        f"{config.memory_budget * free / GIB:.2f} GiB; set replay.capacity to at most {fits}, or raise the budget"
    )


class Storage:
    """One tensor per column, (num_envs, slots, ...), allocated untouched so that host pages appear as steps arrive.

    Each column is flat in memory with one row more than it needs: row ``num_envs * slots`` is a bin for writes that
    must go nowhere, which keeps masked scatters free of data-dependent shapes (and of host syncs on a GPU).

    On the host, bulk copies go through numpy: one core moves a batch as fast as several, and unlike torch's parallel
    loops it does not stall when the other cores are busy stepping environments.
    """

    def __init__(
        self, table: Mapping[str, Column], num_envs: int, slots: int, device: torch.device, *,
        folder: Path | None = None,
    ) -> None:
        """Args: folder: map columns from files there instead of holding them in memory; they go with the process.

        Raises: StorageError where there is no room for them."""
        self.columns = dict(table)
        self.num_envs, self.slots, self.device = num_envs, slots, device
        rows = num_envs * slots
        if folder is None:
            self._flat: dict[str, Tensor] = {
                name: torch.empty((rows + 1, prod(column.shape)), dtype=column.dtype, device=device)
                for name, column in table.items()
            }
        else:
            self._flat = {name: _mapped(folder, column, rows + 1) for name, column in table.items()}
        self._grid = {name: flat[:rows].view(num_envs, slots, *table[name].shape) for name, flat in self._flat.items()}
        self._host: dict[str, np.ndarray] = {}
        if device.type == "cpu":
            self._host = {name: _raw(flat) for name, flat in self._flat.items()}
        self._env_base = torch.arange(num_envs, device=device) * slots

    @property
    def bin(self) -> int:
        """The row that swallows writes."""
        return self.num_envs * self.slots

    def bring(self, value: Tensor) -> Tensor:
        """``value`` on this device; towards the host it waits, since a host reader would not know that a copy is under
        way."""
        return value.to(self.device, non_blocking=self.device.type == "cuda")

    def at(self, name: str, slot: int) -> Tensor:
        """(num_envs, ...) view of one slot of one column."""
        return self._grid[name].select(1, slot)

    def put(self, name: str, slot: int, value: Tensor) -> None:
        """Store (num_envs, ...) in one slot of one column; the type must be the column's."""
        if self._host:
            raw = self._host[name]
            raw[slot : self.bin : self.slots] = _raw(self.bring(value).reshape(self.num_envs, raw.shape[1]))
        else:
            self.at(name, slot).copy_(value, non_blocking=True)

    def grid(self, name: str) -> Tensor:
        """(num_envs, slots, ...) view of one column."""
        return self._grid[name]

    def rows(self, first: int, last: int) -> Tensor:
        """(num_envs * (last - first),) flat rows of absolute steps [first, last) of every environment."""
        return span_rows(self._env_base, self.slots, first, last)

    def read(self, name: str, rows: Tensor, target: torch.device) -> Tensor:
        """(M, ...) copies of flat rows (M,), delivered on ``target``: through pinned memory from host to device."""
        flat, shape = self._flat[name], self.columns[name].shape
        if not self._host:
            return flat.index_select(0, rows).to(target).view(-1, *shape)  # waits where target is the host
        out = torch.empty((rows.shape[0], flat.shape[1]), dtype=flat.dtype, pin_memory=target.type == "cuda")
        # "clip" only because "raise" would go through a temporary; rows are in range by construction.
        np.take(self._host[name], rows.numpy(), axis=0, out=_raw(out), mode="clip")
        return out.to(target, non_blocking=True).view(-1, *shape)

    def write(self, name: str, rows: Tensor, value: Tensor, latest: Tensor | None = None) -> None:
        """Store (M, ...) over flat rows (M,); of equal rows the last one counts.

        Args:
            latest: (M,) what :func:`latest_of_equal` says of ``rows``; None promises that no two are equal.
        """
        flat = self._flat[name]
        value = self.bring(value).reshape(-1, flat.shape[1])
        if self._host:
            self._host[name][rows.numpy()] = _raw(value)  # numpy assigns in order
        else:
            flat.index_copy_(0, rows, value if latest is None else value.index_select(0, latest))


def _mapped(folder: Path, column: Column, rows: int) -> Tensor:
    """(rows, ...) zeros in a file that has no name any more: the system takes it back when the process ends."""
    numel = rows * prod(column.shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < numel * column.dtype.itemsize:
            raise OSError(errno.ENOSPC, f"{rows * column.nbytes / GIB:.2f} GiB wanted, {free / GIB:.2f} GiB free")
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".steps-") as file:
            flat = torch.from_file(file.name, shared=True, size=max(numel, 1), dtype=column.dtype)
    except OSError as error:
        raise StorageError(f"cannot keep steps in {folder}: {error.strerror}; use another disk") from error
    return flat[:numel].view(rows, prod(column.shape))


def latest_of_equal(rows: Tensor) -> Tensor:
    """(M,) to (M,): for each row number the position of its last occurrence. Giving equal rows equal values makes a
    scatter deterministic on every device.

    >>> latest_of_equal(torch.tensor([7, 5, 7]))
    tensor([2, 1, 2])
    """
    if rows.device.type == "cpu":  # not torch's searchsorted, which starts threads for 200 numbers
        order = rows.numpy().argsort(kind="stable")
        return torch.from_numpy(order[rows.numpy()[order].searchsorted(rows.numpy(), side="right") - 1])
    ordered, position = rows.sort(stable=True)
    return position[torch.searchsorted(ordered, rows, right=True) - 1]


def _raw(value: Tensor) -> np.ndarray:
    """A numpy view of a host tensor's bits: numpy knows no bfloat16, and copies do not care."""
    return value.detach().view(_BITS[value.dtype.itemsize]).numpy()
