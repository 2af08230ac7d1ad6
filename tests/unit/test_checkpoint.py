"""Fault tests of checkpoints: kills, full disks, damage and malice."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from worldmodel.errors import CheckpointError, StorageError
from worldmodel.train import checkpoint as checkpoint_module
from worldmodel.train.checkpoint import Checkpoints, open_checkpoint
from worldmodel.train.codec import DTYPES, decode, encode, tensor_chunks
from worldmodel.train.manifest import Manifest

# The children only write files and leave by os._exit, which threads of the parent cannot disturb.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"w": torch.randn(64, 33, generator=generator), "b": torch.zeros(())},
        "optim": {"step": torch.tensor(step), "m": torch.randn(10, generator=generator).bfloat16()},
    }


def documents_of(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step).bit_generator.state
    return {"loop": {"updates": 4 * step, "rng": rng}, "envs": [{"t": step}]}


def replay_writer(step: int) -> Callable[[Path, Path | None], None]:
    """Three sealed segments, the older ones hard-linked, and one that changes."""

    def write(folder: Path, previous: Path | None) -> None:
        for i in range(2):
            target = folder / f"segment-{i}"
            if previous is not None:
                target.hardlink_to(previous / f"segment-{i}")
            else:
                target.write_bytes(bytes([i]) * 5000)
        (folder / "index").mkdir()
        (folder / "index" / "active").write_bytes(b"%d" % step * 100)

    return write


def save(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.save(
        step,
        tensors=tensors_of(step),
        documents=documents_of(step),
        writers={"replay": replay_writer(step)},
        meta={"seed": 3, "ratio": 1e-05},
    )


def assert_is(found: Any, step: int) -> None:
    """Everything in the checkpoint is what was saved at ``step``."""
    assert found.step == step
    for group, expected in tensors_of(step).items():
        actual = found.tensors(group)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor)
    assert {name: found.document(name) for name in documents_of(step)} == documents_of(step)
    assert (found.folder("replay") / "index" / "active").read_bytes() == b"%d" % step * 100
    assert (found.folder("replay") / "segment-1").read_bytes() == b"\1" * 5000


def no_skip(sentence: str) -> None:
    raise AssertionError(sentence)


# --- save and load


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints")
    path = save(checkpoints, 120)
    assert path.name == "000000000120"
    found = Checkpoints(tmp_path / "deep" / "checkpoints").latest(on_skip=no_skip)
    assert_is(found, 120)
    assert found.meta["seed"] == 3 and found.meta["versions"]["torch"] == torch.__version__
    assert found.meta["wall_time"] > 1.7e9


def test_every_file_is_listed_with_size_and_digest(tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path), 1)
    listed = {f["name"]: f for f in json.loads((path / "manifest.json").read_text())["files"]}
    held = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {"manifest.json"}
    assert listed.keys() == held
    for name, entry in listed.items():
        content = (path / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_only_the_newest_are_kept_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "000000000000").symlink_to(outside)
    (folder / ".tmp-link").symlink_to(outside)
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
    assert [p.name for p in checkpoints.candidates()] == ["000000000004", "000000000003"]
    assert checkpoints.cleanup() == []
    assert (outside / "precious").exists()


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    (save(checkpoints, 2) / "loop.json").unlink()
    save(checkpoints, 3)
    assert {1, 3} <= {int(p.name) for p in checkpoints.candidates()}
    save(checkpoints, 4)
    assert [int(p.name) for p in checkpoints.candidates()] == [4, 3]


def test_a_second_checkpoint_of_one_step_is_the_newer(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for version in (1, 2, 3):
        checkpoints.save(7, tensors={}, documents={"v": version}, meta={})
    assert checkpoints.latest(on_skip=no_skip).document("v") == 3
    assert [p.name for p in checkpoints.candidates()] == ["000000000007-2", "000000000007-1", "000000000007"]


def test_unchanged_replay_files_are_linked_and_not_hashed_again(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoints = Checkpoints(tmp_path)
    first = save(checkpoints, 1)
    hashed: list[str] = []
    original = checkpoint_module.sha256_of
    monkeypatch.setattr(checkpoint_module, "sha256_of", lambda p: (hashed.append(p.name), original(p))[1])
    second = save(checkpoints, 2)
    assert hashed == ["active"]
    assert (first / "replay/segment-0").stat().st_ino == (second / "replay/segment-0").stat().st_ino
    assert_is(Checkpoints(tmp_path).latest(on_skip=no_skip), 2)


def test_a_file_that_only_looks_unchanged_is_hashed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)

    def write(content: bytes) -> Callable[[Path, Path | None], None]:
        def fill(folder: Path, previous: Path | None) -> None:
            (folder / "a").write_bytes(content)

        return fill

    for step, content in enumerate((b"one", b"two")):
        checkpoints.save(step, tensors={}, documents={}, writers={"replay": write(content)}, meta={})
    assert (Checkpoints(tmp_path).latest(on_skip=no_skip).folder("replay") / "a").read_bytes() == b"two"


def test_unknown_parts_are_named_with_what_exists(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)
    found = Checkpoints(tmp_path).latest(on_skip=no_skip)
    with pytest.raises(CheckpointError, match=r"modell.*did you mean 'model'"):
        found.tensors("modell")
    with pytest.raises(CheckpointError, match="envs, loop"):
        found.document("../../etc/passwd")
    with pytest.raises(CheckpointError, match="unknown folder"):
        found.folder("..")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "manifest"])
def test_names_of_parts_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="distinct names"):
        Checkpoints(tmp_path).save(1, tensors={}, documents={name: 1}, meta={})


def test_an_object_in_a_document_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"envs\[0\]\.state holds a torch\.Tensor"):
        Checkpoints(tmp_path / "c").save(1, tensors={}, documents={"envs": [{"state": torch.zeros(1)}]}, meta={})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("fault", ["raises", "link", "pipe"])
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, fault: str) -> None:
    def write(folder: Path, previous: Path | None) -> None:
        if fault == "raises":
            raise KeyError("replay broke")
        (folder / "x").symlink_to("/etc") if fault == "link" else os.mkfifo(folder / "x")

    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    with pytest.raises(KeyError if fault == "raises" else ValueError):
        checkpoints.save(2, tensors={}, documents={}, writers={"replay": write}, meta={})
    assert [p.name for p in tmp_path.iterdir()] == ["000000000001"]


# --- F1: kill


def run_child(work: Callable[[], None]) -> int:
    """Run in a forked child that never returns here; the status is that of ``waitpid``."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def kill_at(k: int, counter: list[int]) -> None:
    """From now on the k-th call (from 0) that changes the disk is the process's last; k < 0 only counts."""

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if counter[0] == k:
                os.kill(os.getpid(), signal.SIGKILL)
            counter[0] += 1
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    for name in ("write", "fsync", "rename", "link", "mkdir", "unlink", "rmdir", "open"):
        wrap(os, name)


def count_calls(folder: Path) -> int:
    read_end, write_end = os.pipe()

    def work() -> None:
        checkpoints, counter, pipe_write = Checkpoints(folder, keep=2), [0], os.write
        kill_at(-1, counter)
        save(checkpoints, 3)
        pipe_write(write_end, b"%d" % counter[0])

    assert run_child(work) == 0
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        return int(pipe.read())


def test_a_kill_at_any_moment_of_a_save_costs_at_most_that_save(tmp_path: Path) -> None:
    for step in (1, 2):
        save(Checkpoints(tmp_path / "origin", keep=2), step)
    shutil.copytree(tmp_path / "origin", tmp_path / "count")
    total = count_calls(tmp_path / "count")
    # Files (5 + manifest), folders, renames, the removal of the oldest: all phases of a save are among these calls.
    assert total > 40
    outcomes: list[int] = []
    for k in range(total):
        folder = tmp_path / f"kill-{k}"
        shutil.copytree(tmp_path / "origin", folder)

        def work(k: int = k, folder: Path = folder) -> None:
            checkpoints = Checkpoints(folder, keep=2)
            kill_at(k, [0])
            save(checkpoints, 3)

        status = run_child(work)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"call {k} of {total}"
        after = Checkpoints(folder, keep=2)
        after.cleanup()
        assert all(p.name.isdigit() for p in folder.iterdir()), f"call {k} left something behind"
        found = after.latest(on_skip=no_skip)
        assert_is(found, found.step)
        outcomes.append(found.step)
        save(after, 4)
        assert_is(after.latest(on_skip=no_skip), 4)
        shutil.rmtree(folder)
    # First the older checkpoint is the newest one, from the rename on the new one; never neither.
    assert set(outcomes) == {2, 3} and outcomes == sorted(outcomes)


# --- F4, F5: damage


def flip(offset: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(offset * (len(content) - 1))] ^= 0x20
        path.write_bytes(content)

    return damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def zero_tail(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first bit": flip(0),
    "middle bit": flip(0.5),
    "last bit": flip(1),
    "truncated": truncate,
    "zero tail": zero_tail,
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": Path.unlink,
}
FILES = ["model.safetensors", "optim.safetensors", "loop.json", "envs.json", "replay/index/active", "manifest.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    target = save(checkpoints, 2) / name
    DAMAGES[damage](target)
    told: list[str] = []
    assert_is(Checkpoints(tmp_path).latest(on_skip=told.append), 1)
    assert len(told) == 1 and Path(name).name in told[0] and "000000000002" in told[0]
    if damage == "missing":
        assert "missing" in told[0] or "no manifest.json" in told[0]
    shutil.rmtree(tmp_path / "000000000001")
    with pytest.raises(CheckpointError, match=f"none of the 1 checkpoints.*{Path(name).name}"):
        Checkpoints(tmp_path).latest(on_skip=told.append)


def test_every_single_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(1, tensors={}, documents={"a": 1.5}, meta={"lr": 1e-05, "text": "é"})
    content = (path / "manifest.json").read_bytes()
    generator = random.Random(0)
    for bit in generator.sample(range(8 * len(content)), 1500):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        (path / "manifest.json").write_bytes(broken)
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    (path / "manifest.json").write_bytes(content)
    assert open_checkpoint(path).meta["text"] == "é"


def test_without_verification_sizes_are_still_checked(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = save(checkpoints, 1)
    flip(1)(path / "model.safetensors")
    assert checkpoints.latest(verify=False, on_skip=no_skip).step == 1
    truncate(path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"bytes, the manifest says"):
        checkpoints.latest(verify=False, on_skip=lambda _: None)


def test_no_checkpoint_at_all_is_a_clean_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Checkpoints(tmp_path / "absent").latest(on_skip=no_skip)
    assert Checkpoints(tmp_path / "absent").cleanup() == []


# --- F5, F15: foreign and malicious


def forge(path: Path, **changes: Any) -> None:
    """Rewrite a manifest, digest and all: what somebody with bad intentions can do."""
    body = json.loads((path / "manifest.json").read_text())
    body.pop("digest")
    body.update(changes)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**body, "digest": digest}, indent=1) + "\n")


def listed(path: Path, name: str, content: bytes) -> dict[str, Any]:
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(content)
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_an_unknown_format_version_is_refused(tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path), 1)
    forge(path, version=2)
    with pytest.raises(CheckpointError, match="format version is 2, this code reads 1"):
        open_checkpoint(path)


FOREIGN = ["{}", "[]", "null", "{", '{"format": "orbax"}', "[" * 100_000, "9" * 5000, "\udcff"]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "000000000001"
    path.mkdir()
    (path / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be trusted"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "1"}, {"step": -1}, {"step": True}, {"files": 3}, {"files": [{}]}, {"files": [{"name": 1}]},
        {"meta": []}, {"folders": ["../.."]}, {"folders": [1]}, {"folders": ["absent"]},
        {"meta": {"__ndarray__": 1}},
        {"meta": {"a": {"__ndarray__": "AAAA", "dtype": "O", "shape": [1]}}},
    ],
)  # fmt: skip
def test_a_manifest_with_nonsense_in_it_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save(Checkpoints(tmp_path), 1)
    forge(path, **changes)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../../x", "a//b", "./a", "a\\b", "", ".", "a\0b", "c:x"])
def test_listed_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    path = save(Checkpoints(tmp_path), 1)
    forge(path, files=[{"name": name, "bytes": 0, "sha256": "0" * 64}])
    with pytest.raises(CheckpointError, match="leads out of the checkpoint or is not plain"):
        open_checkpoint(path)


def test_links_and_unlisted_files_are_refused(tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path), 1)
    secret = tmp_path / "secret"
    secret.write_bytes((path / "loop.json").read_bytes())
    (path / "loop.json").unlink()
    (path / "loop.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"loop\.json is damaged: it is not a plain file"):
        open_checkpoint(path)
    path = save(Checkpoints(tmp_path), 2)
    (path / "replay" / "extra").write_text("from the future")
    with pytest.raises(CheckpointError, match=r"extra is not listed"):
        open_checkpoint(path)
    path = save(Checkpoints(tmp_path), 3)
    (path / "replay").rename(tmp_path / "elsewhere")
    (path / "replay").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link"):
        open_checkpoint(path)


def header(body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    return struct.pack("<Q", len(text)) + text


def entry(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


MALICE = {
    "1 GB header": struct.pack("<Q", 1 << 30) + b"{}",
    "2^63 header": struct.pack("<Q", 1 << 63) + b"{}",
    "header past the end": struct.pack("<Q", 100) + b"{}",
    "overlap": header({"a": entry(0, 8), "b": entry(4, 12)}) + bytes(12),
    "past the end": header({"a": entry(0, 1 << 40, shape=(1 << 38,))}) + bytes(8),
    "hole": header({"a": entry(8, 16)}) + bytes(16),
    "overflow": header({"a": entry(0, 8, shape=(1 << 62, 1 << 62))}) + bytes(8),
    "unknown type": header({"a": entry(0, 8, dtype="O")}) + bytes(8),
    "not JSON": struct.pack("<Q", 8) + b"\x80\x04cos\nsy",
    "empty": b"",
}


@pytest.mark.parametrize("name", MALICE)
def test_a_malicious_tensor_file_with_a_forged_manifest_is_refused(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    path = save(checkpoints, 2)
    forge(path, files=[listed(path, "model.safetensors", MALICE[name])], folders=[])
    told: list[str] = []
    assert Checkpoints(tmp_path).latest(on_skip=told.append).step == 1
    assert "model.safetensors is damaged" in told[0]


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_ever_unpickled(tmp_path: Path) -> None:
    import pickle

    canary = tmp_path / "canary"
    pickled = pickle.dumps(Canary(canary))
    path = save(Checkpoints(tmp_path / "c"), 1)
    target = {"_target_": "pathlib.Path.touch", "__reduce__": str(canary), "__class__": "os.system"}
    files = [
        listed(path, "model.safetensors", pickled),
        listed(path, "loop.json", pickled),
        listed(path, "envs.json", json.dumps(target).encode()),
    ]
    forge(path, files=files[1:], folders=[])
    found = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read as a document"):
        found.document("loop")
    assert found.document("envs") == target
    forge(path, files=files, folders=[])
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(path)
    assert not canary.exists()
    pickle.loads(pickled)
    assert canary.exists(), "the canary itself must work"


# --- F6, F7: disks


def test_a_file_size_limit_in_mid_save_is_reported_as_a_full_disk(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
        with pytest.raises(StorageError, match=r"disk full: .* of step 2 needs .* MB .*, .* MB free at .*intact"):
            save(Checkpoints(tmp_path), 2)

    assert run_child(work) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["000000000001"]
    assert_is(Checkpoints(tmp_path).latest(on_skip=no_skip), 1)


def test_a_full_disk_under_the_safetensors_library_is_a_full_disk_too(tmp_path: Path) -> None:
    def write(folder: Path, previous: Path | None) -> None:
        save_file({"a": torch.zeros(10_000)}, folder / "a.safetensors")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        with pytest.raises(StorageError, match="disk full"):
            Checkpoints(tmp_path).save(1, tensors={}, documents={}, writers={"replay": write}, meta={})

    assert run_child(work) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_a_failing_disk_leaves_the_older_checkpoints(tmp_path: Path, monkeypatch: Any, call: str, code: int) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    calls = [0]
    original = getattr(os, call)

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == {"write": 3, "fsync": 4, "rename": 1, "mkdir": 2}[call]:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        expected = "disk full" if code in (errno.ENOSPC, errno.EDQUOT) else "cannot write the checkpoint of step 2"
        with pytest.raises(StorageError, match=expected):
            save(checkpoints, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["000000000001"]
    save(checkpoints, 2)
    assert_is(checkpoints.latest(on_skip=no_skip), 2)


def test_free_space_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"disk full: .* needs 0\.\d MB .*, 0\.0 MB free at"):
        save(Checkpoints(tmp_path), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_returns_something_else_is_found_out(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    publish = Checkpoints._publish

    def corrupt(self: Checkpoints, temporary: Path, step: int) -> Path:
        flip(0.5)(temporary / "model.safetensors")
        return publish(self, temporary, step)

    monkeypatch.setattr(Checkpoints, "_publish", corrupt)
    with pytest.raises(StorageError, match=r"does not read back .*model\.safetensors"):
        save(checkpoints, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["000000000001"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        save(Checkpoints(tmp_path / "file" / "checkpoints"), 1)
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        save(Checkpoints(Path("/proc/nowhere")), 1)


# --- formats


def test_tensor_files_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    tensors = {f"t/{name}": torch.arange(6).reshape(2, 3).to(dtype) for dtype, name in DTYPES.items()}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.5), "slice": torch.arange(10.0)[::3]}
    tensors |= {"ü": torch.ones(1)}
    tensors |= {"conj": torch.tensor([1 + 2j], dtype=torch.complex64).conj(), "grad": torch.ones(2, requires_grad=True)}
    tensors["tied"] = tensors["t/F32"]
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(bytes(chunk) for chunk in tensor_chunks(tensors)))
    back = load_file(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape, name
        same = back[name].view(torch.uint8) if "F8" in name else back[name]
        assert torch.equal(same, tensor.view(torch.uint8) if "F8" in name else tensor.detach().resolve_conj()), name


@pytest.mark.parametrize("value", [3.0, torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.complex128)])
def test_what_safetensors_cannot_hold_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match="'x' must be a dense tensor"):
        list(tensor_chunks({"x": value}))


def same(a: Any, b: Any) -> bool:
    """Equal in type and content, NaN included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items()))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (a != a and b != b)
    return bool(a == b)


arrays = hnp.arrays(
    st.one_of(
        hnp.integer_dtypes(endianness="?"), hnp.floating_dtypes(), hnp.boolean_dtypes(), hnp.unicode_string_dtypes()
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), arrays)
keys = st.one_of(st.text(), st.integers(), st.sampled_from(["__bytes__", "__dict__", "__ndarray__"]))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner)),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(values)
def test_documents_round_trip_exactly(value: Any) -> None:
    assert same(decode(json.loads(json.dumps(encode(value), allow_nan=False))), value)


def test_states_of_random_generators_round_trip() -> None:
    for name in ("PCG64", "MT19937", "Philox", "SFC64"):
        generator = np.random.Generator(getattr(np.random, name)(5))
        generator.normal(size=3)
        state = decode(json.loads(json.dumps(encode(generator.bit_generator.state))))
        fresh = np.random.Generator(getattr(np.random, name)(9))
        fresh.bit_generator.state = state
        np.testing.assert_array_equal(fresh.normal(size=10), generator.normal(size=10))
    python = random.Random(5)
    again = random.Random(6)
    again.setstate(decode(json.loads(json.dumps(encode(python.getstate())))))
    assert again.random() == python.random()
    scalar = decode(json.loads(json.dumps(encode(np.float32(0.1)))))
    assert type(scalar) is np.float32 and scalar == np.float32(0.1)


@pytest.mark.parametrize(
    "value",
    [
        {"__int__": 3}, {"__int__": "zz"}, {"__bytes__": "!"}, {"__bytes__": 1}, {"__tuple__": 4}, {"__dict__": [1]},
        {"__ndarray__": ""}, {"__ndarray__": "AAAA", "dtype": "O", "shape": [1]},
        {"__ndarray__": "AAAA", "dtype": "<f4,O", "shape": [1]}, {"__ndarray__": "AAAA", "dtype": "|u1", "shape": [9]},
        {"__ndarray__": "AAAA", "dtype": "|u1", "shape": [2]}, {"__ndarray__": "AAAA", "dtype": "|u1", "shape": [-3]},
        {"__ndarray__": "AAAA", "dtype": "|u1", "shape": [1 << 62, 1 << 62]}, {"__dict__": [[[], 1]]},
    ],
)  # fmt: skip
def test_nonsense_in_a_document_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):
        decode(value)


def test_a_manifest_survives_its_own_round_trip(tmp_path: Path) -> None:
    manifest = Manifest(step=5, files=(), folders=("a",), meta={"x": np.arange(3), "big": 1 << 80})
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    again = Manifest.read(tmp_path / "manifest.json")
    assert again.step == 5 and again.folders == ("a",) and again.meta["big"] == 1 << 80
    np.testing.assert_array_equal(again.meta["x"], np.arange(3))
