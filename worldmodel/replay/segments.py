"""Replay on disk: steps in segments of fixed borders, final once full, so that checkpoints share them by hard link."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from worldmodel.errors import CheckpointError
from worldmodel.replay.samplers import Window
from worldmodel.replay.storage import Storage
from worldmodel.types import EnvSpec

FORMAT = 1
STEPS_PER_SEGMENT = 4096
"""Over all environments, about 50 MB of 64 x 64 RGB: what a save rewrites at most of the immutable columns."""


def canonical(value: Any) -> bytes:
    """JSON with one spelling per value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def fingerprint(spec: EnvSpec, storage: Storage) -> dict[str, Any]:
    """What a saved buffer must share with the one that loads it: environments, action, columns with shape and type."""
    return {
        "num_envs": storage.num_envs,
        "action": f"{spec.action.kind} {spec.action.size}",
        "columns": {name: f"{column.dtype} {list(column.shape)}" for name, column in storage.columns.items()},
    }


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What :meth:`Segments.load` found."""

    saved: dict[str, Any]
    """replay.json."""
    low: int
    """Oldest step now held."""
    lost: int
    """Steps per environment in segments that were damaged."""
    seams: list[int]
    """Steps before which some are missing, in the numbers of now."""


class Segments:
    """Writes and reads the steps of one storage.

    Segment k covers absolute steps [k*L, (k+1)*L) of every environment. Its file of unchanging columns is final once
    step (k+1)*L exists too: an abandoned episode is still marked ``is_last`` when the step after it arrives.
    """

    def __init__(self, storage: Storage, fingerprint: dict[str, Any], *, known: str = "", prefix: str = "") -> None:
        """Args: known: a digest of unchanging columns that lie elsewhere and are not written; prefix of file names."""
        self.fingerprint, self.known = fingerprint, known
        self._main, self._prefix = f"{prefix}replay.json", prefix
        self._storage = storage
        self._span = max(1, STEPS_PER_SEGMENT // storage.num_envs)
        self._final: dict[int, dict[str, Any]] = {}
        """By segment, the entry of the final file that this buffer's content was written to or read from."""

    def save(
        self,
        folder: Path,
        previous: Path | None,
        window: Window,
        per_step: Mapping[str, Tensor],
        counters: dict[str, Any],
    ) -> None:
        """Write steps [window.low, window.total), ``per_step`` beside them, and replay.json last."""
        folder.mkdir(parents=True, exist_ok=True)
        shared = _entries(previous, self._main)
        steps, memory = [], []
        fixed = [name for name in self._storage.columns if not name.startswith("memory/")]
        changing = [name for name in self._storage.columns if name.startswith("memory/")]
        for k in range(window.low // self._span, -(-window.total // self._span)):
            first, last = max(k * self._span, window.low), min((k + 1) * self._span, window.total)
            rows = self._storage.rows(first, last)
            entry = self._final.get(k)
            if not self.known:
                if entry is None or shared.get(entry["file"]) != entry or not _share(folder, previous, entry):
                    columns = {name: self._storage.read(name, rows, torch.device("cpu")) for name in fixed}
                    entry = _write(folder / f"{self._prefix}steps-{k:08d}.safetensors", columns, first, last)
                    if window.total > (k + 1) * self._span:
                        self._final[k] = entry
                steps.append(entry)
            columns = {name: self._storage.read(name, rows, torch.device("cpu")) for name in changing}
            columns |= {f"sampler/{name}": value.index_select(0, rows).cpu() for name, value in per_step.items()}
            if columns:
                memory.append(_write(folder / f"{self._prefix}memory-{k:08d}.safetensors", columns, first, last))
        self._final = {k: entry for k, entry in self._final.items() if (k + 1) * self._span > window.low}
        saved = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "known": self.known,
            "span": self._span,
            "first": window.low,
            "last": window.total,
            "counters": counters,
            "steps": steps,
            "memory": memory,
        }
        (folder / self._main).write_text(json.dumps(saved, indent=1) + "\n")

    def load(self, folder: Path, per_step: Mapping[str, Tensor], *, salvage: bool = False) -> Loaded:
        """Fill the storage and ``per_step`` from ``folder``.

        Args:
            salvage: leave damaged segments out, and move what is older towards what is newer over the gap.

        Raises:
            CheckpointError: missing, damaged, or not of this storage's fingerprint.
        """
        saved = _read_json(folder / self._main)
        if saved.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / self._main} has format {saved.get('format')!r}, but this version reads format {FORMAT}; "
                "use the version of worldmodel that wrote it"
            )
        missing = sorted({"fingerprint", "span", "first", "last", "counters", "steps", "memory"} - saved.keys())
        if missing:
            raise CheckpointError(f"{folder / self._main} is damaged: it lacks {missing}; use an older checkpoint")
        self._check(folder, saved["fingerprint"])
        if saved.get("known", "") != self.known:
            raise CheckpointError(
                f"{folder / self._main} is of a run on other data than is given here, or the data was changed; give "
                f"--data as it was"
            )
        gaps = _damaged(folder, saved) if salvage and not self.known else []
        lost = sum(last - first for first, last in gaps)
        low = max(saved["first"] + lost, saved["last"] - self._storage.slots)
        self._final = {}
        for kind in ("memory",) if self.known else ("steps", "memory"):
            covered = saved["first"]
            needed = bool(saved[kind]) or kind == "steps" or any(n.startswith("memory/") for n in self._storage.columns)
            for entry in saved[kind]:
                shift = _lost_after(gaps, entry["first"])
                if (entry["first"], entry["last"]) not in gaps:
                    moved = {**entry, "first": entry["first"] + shift, "last": entry["last"] + shift}
                    self._read(folder, moved, low, saved["last"], per_step)
                if entry["first"] > covered:
                    break
                covered = entry["last"]
                k = entry["first"] // self._span
                is_full = saved["span"] == self._span and saved["last"] > (k + 1) * self._span
                if kind == "steps" and is_full and not shift:
                    self._final[k] = entry
            if needed and covered < saved["last"]:
                path = folder / self._main
                raise CheckpointError(f"{path} lists no {kind} file for step {covered}; use an older checkpoint")
        seams = [s for s in (last + _lost_after(gaps, last) for _, last in gaps) if low < s < saved["last"]]
        # what lies behind a seam changes there, and is no longer what its file holds
        changed = {*gaps, *((e["first"], e["last"]) for e in saved["steps"] if e["first"] in seams)}
        self._final = {k: e for k, e in self._final.items() if (e["first"], e["last"]) not in changed}
        return Loaded(saved=saved, low=low, lost=lost, seams=seams)

    def _check(self, folder: Path, given: dict[str, Any]) -> None:
        def flat(source: Mapping[str, Any]) -> dict[str, Any]:
            return dict(source.get("columns", {})) | {key: source.get(key) for key in ("num_envs", "action")}

        old, new = flat(given), flat(self.fingerprint)
        differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
        if differing:
            told = "; ".join(f"{k} is {old.get(k, 'absent')} there and {new.get(k, 'absent')} here" for k in differing)
            raise CheckpointError(
                f"the replay in {folder} does not fit this run: {told}; resume with the environments, agent sizes and "
                "number of environments it was saved with"
            )

    def _read(self, folder: Path, entry: dict[str, Any], low: int, total: int, per_step: Mapping[str, Tensor]) -> None:
        """Put the steps of one file that lie in [low, total) in their places."""
        first, last = max(entry["first"], low), min(entry["last"], total)
        if first >= last:
            return
        store, count = self._storage, entry["last"] - entry["first"]
        rows = store.rows(first, last)
        for name, value in _read_tensors(folder / entry["file"], entry).items():
            if len(value) != store.num_envs * count:
                raise CheckpointError(
                    f"{folder / entry['file']} is damaged: {name} has {len(value)} rows, but replay.json says "
                    f"{store.num_envs * count}; use an older checkpoint"
                )
            kept = value.view(store.num_envs, count, *value.shape[1:])
            kept = kept[:, first - entry["first"] : last - entry["first"]]
            if name in store.columns:
                store.write(name, rows, kept.flatten(0, 1))
            elif name.removeprefix("sampler/") in per_step:
                target = per_step[name.removeprefix("sampler/")]
                target.index_copy_(0, rows, kept.flatten(0, 1).to(target.device))


def _entries(previous: Path | None, main: str) -> dict[str, dict[str, Any]]:
    """The immutable files of an earlier save, by name; none where it cannot be read, since then nothing is shared."""
    if previous is None or not (previous / main).is_file():
        return {}
    try:
        return {entry["file"]: entry for entry in _read_json(previous / main)["steps"]}
    except (CheckpointError, KeyError):
        return {}


def _damaged(folder: Path, saved: dict[str, Any]) -> list[tuple[int, int]]:
    """[first, last) of the segments that have a file missing, cut short or changed."""
    gaps: set[tuple[int, int]] = set()
    for entry in (*saved["steps"], *saved["memory"]):
        try:
            _read_tensors(folder / entry["file"], entry)
        except CheckpointError:
            gaps.add((entry["first"], entry["last"]))
    return sorted(gaps)


def _lost_after(gaps: list[tuple[int, int]], step: int) -> int:
    return sum(last - first for first, last in gaps if first >= step)


def _share(folder: Path, previous: Path | None, entry: dict[str, Any]) -> bool:
    """Link (or, across file systems, copy) a final file of the previous save; False where it is gone or cut short."""
    if previous is None:
        return False
    source, target = previous / entry["file"], folder / entry["file"]
    if not source.is_file() or source.stat().st_size != entry["bytes"]:
        return False
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(source, target)
    return True


def _write(path: Path, columns: dict[str, Tensor], first: int, last: int) -> dict[str, Any]:
    content = save({name: value.contiguous() for name, value in columns.items()})
    path.unlink(missing_ok=True)  # never write through a link into another save
    path.write_bytes(content)
    return {
        "file": path.name,
        "first": first,
        "last": last,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use an older checkpoint") from error


def _read_tensors(path: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    if Path(entry["file"]).name != entry["file"]:
        raise CheckpointError(f"{path.parent / 'replay.json'} names {entry['file']!r}, which is no plain file name")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 differs from replay.json's; use an older checkpoint")
        return load(content)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use an older checkpoint") from error
