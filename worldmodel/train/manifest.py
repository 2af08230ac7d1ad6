"""The list of what a checkpoint holds, which proves itself and everything listed."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from worldmodel.train.codec import decode, encode

FORMAT = "worldmodel-checkpoint"
VERSION = 1
_LARGEST = 1 << 26
_PACKAGES = ("worldmodel", "torch", "numpy", "safetensors", "gymnasium", "mujoco", "dm-control", "ale-py")
_ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout, where this is one."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint."""

    name: str
    """Path below the checkpoint's folder, with forward slashes."""
    bytes: int
    """How long it is."""
    sha256: str
    """Hexadecimal digest of the content."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.bytes, int) or not isinstance(self.sha256, str):
            raise ValueError("a file is listed without name, bytes and sha256")
        parts = PurePosixPath(self.name)
        plain = self.name and not parts.is_absolute() and str(parts) == self.name and ".." not in parts.parts
        if not plain or any(char in self.name for char in "\\:\0") or self.name == ".":
            raise ValueError(f"a listed file name leads out of the checkpoint or is not plain: {self.name!r}")
        if len(self.sha256) != 64 or self.bytes < 0:
            raise ValueError(f"{self.name} is listed with an impossible size or digest")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` says."""

    step: int
    files: tuple[FileEntry, ...]
    folders: tuple[str, ...] = ()
    """Sub-folders that belong to the checkpoint, empty ones too."""
    meta: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's content. It ends in a digest of the rest, so a change anywhere shows."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "files": [{"name": f.name, "bytes": f.bytes, "sha256": f.sha256} for f in self.files],
            "folders": list(self.folders),
            "meta": encode(self.meta, "meta"),
        }
        return _sealed(body)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and check a manifest.

        Raises:
            ValueError: it is not one, of another version, damaged, or lists what must not be listed.
            OSError: it cannot be read.
        """
        size = path.stat().st_size
        if size > _LARGEST:
            raise ValueError(f"it is {size} bytes long, more than any manifest")
        text = path.read_bytes()
        if not text:
            raise ValueError("it is empty")
        try:
            return cls._parse(text)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error

    @classmethod
    def _parse(cls, text: bytes) -> Manifest:
        try:
            held = json.loads(text)
        except ValueError as error:
            raise ValueError(f"it is not JSON ({error})") from error
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise ValueError("it is not the manifest of a worldmodel checkpoint")
        if held.get("version") != VERSION:
            raise ValueError(
                f"its format version is {held.get('version')!r}, this code reads {VERSION}; use the version of "
                "worldmodel that wrote it"
            )
        held.pop("digest", None)
        # Byte for byte, so that even a change that means the same JSON shows.
        if _sealed(held) != text:
            raise ValueError("its content does not match its own digest")
        try:
            files = tuple(FileEntry(**entry) for entry in held["files"])
            folders = tuple(FileEntry(name=name, bytes=0, sha256="0" * 64).name for name in held["folders"])
            step, meta = held["step"], decode(held["meta"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"a field is missing or of the wrong kind ({error})") from error
        if type(step) is not int or step < 0 or not isinstance(meta, dict):
            raise ValueError(f"step and meta must be a number and a dictionary, got {step!r} and {type(meta).__name__}")
        if len({entry.name for entry in files}) != len(files):
            raise ValueError("it lists a file twice")
        return cls(step=step, files=files, folders=folders, meta=meta)


def _sealed(body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return (json.dumps({**body, "digest": digest}, indent=1, allow_nan=False) + "\n").encode()


def sha256_of(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance() -> dict[str, Any]:
    """Where and with what this process runs: package versions, commit of the code where it is a git checkout,
    Python, host, wall time, threads of torch."""
    import torch

    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "num_threads": torch.get_num_threads(),
        "wall_time": time.time(),
    }


@functools.cache
def _commit(root: Path = _ROOT) -> str:
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        # pages and results are no code: a run that follows another's result is still of this commit
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs", ":(exclude)*.md")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
