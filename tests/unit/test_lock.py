"""F11: two trainers in one folder."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from worldmodel.errors import StorageError, UserError
from worldmodel.train import lock as lock_module
from worldmodel.train.lock import Holder, RunLock

HOLD = """
import pathlib, sys
from worldmodel.train.lock import RunLock
with RunLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another trainer, which holds the folder until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def finish(child: subprocess.Popen[str]) -> None:
    for stream in (child.stdin, child.stdout):
        assert stream is not None
        stream.close()
    child.wait(timeout=20)


def write(folder: Path, **changes: object) -> None:
    (folder / "lock").write_text(json.dumps({**asdict(Holder.this_process()), **changes}))


def test_the_lock_is_gone_after_the_run(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_second_trainer_is_refused_with_process_and_host(tmp_path: Path) -> None:
    child = hold(tmp_path)
    with pytest.raises(UserError, match=rf"being trained by process {child.pid} on {platform.node()} \(since 20"):
        RunLock(tmp_path).acquire()
    finish(child)
    with RunLock(tmp_path):
        pass


def test_a_second_lock_in_the_same_process_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(UserError, match=str(os.getpid())), RunLock(tmp_path):
            pass
        assert (tmp_path / "lock").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_lock_of_a_killed_trainer_is_taken_over_even_while_it_is_a_zombie(tmp_path: Path) -> None:
    child = hold(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    told: list[str] = []
    with RunLock(tmp_path, warn=told.append):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert len(told) == 1 and str(child.pid) in told[0]
    finish(child)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_reused_process_id_does_not_count_as_the_holder(tmp_path: Path) -> None:
    write(tmp_path, process_start="1")
    with RunLock(tmp_path):
        pass


def test_a_holder_on_another_machine_is_believed_while_it_shows_signs_of_life(tmp_path: Path) -> None:
    write(tmp_path, host="node17", machine="other", pid=4_000_000)
    with pytest.raises(UserError, match=r"process 4000000 on node17 .* try again in 1\d\d seconds"):
        RunLock(tmp_path).acquire()
    silent = (tmp_path / "lock").stat().st_mtime - lock_module.SILENCE - 1
    os.utime(tmp_path / "lock", (silent, silent))
    with RunLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.01)
    with RunLock(tmp_path) as held:
        os.utime(tmp_path / "lock", (0, 0))
        for _ in range(500):
            if (tmp_path / "lock").stat().st_mtime > 0:
                break
            held._stop.wait(0.01)
        assert (tmp_path / "lock").stat().st_mtime > 0


@pytest.mark.parametrize("content", [b"", b'{"pid": 3', b"[]", b'{"pid": 3}'])
def test_a_torn_lock_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    with RunLock(tmp_path):
        pass


def test_a_lock_that_was_taken_over_is_not_removed_by_its_old_holder(tmp_path: Path) -> None:
    old = RunLock(tmp_path)
    old.acquire()
    other = replace(Holder.this_process(), token="somebody else's")
    (tmp_path / "lock").write_text(json.dumps(asdict(other)))
    old.release()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "somebody else's"


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        RunLock(tmp_path / "absent").acquire()
    with pytest.raises(StorageError, match="/proc/self"):
        RunLock(Path("/proc/self")).acquire()


def test_of_many_that_take_over_a_dead_lock_at_once_one_wins(tmp_path: Path) -> None:
    write(tmp_path, pid=4_000_000, process_start="1")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(5)
    ]  # fmt: skip
    assert all(child.stdout is not None and child.stdin is not None for child in children)
    lines = [child.stdout.readline() for child in children if child.stdout is not None]
    assert sorted(lines) == ["", "", "", "", "held\n"]
    errors = [child.communicate()[1] for child in children]
    assert sum("is being trained by process" in error for error in errors) == 4
