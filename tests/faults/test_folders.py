"""F6, F7, F19: disks, folders and machines that are not what a run needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.faults.tiny import STEPS, resume, train
from worldmodel import runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert train(run_dir, "--train.eval-every", "0") == 0
    return run_dir


@pytest.mark.parametrize("name", ["file", "file/run", "link", "/proc/run", "/dev/null", "/dev/full/run"])
def test_a_folder_that_cannot_be_used_is_named_before_training_starts(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "mount")
    path = tmp_path / name
    assert train(path) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("worldmodel: ") and str(path) in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_of_somebody_else_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o000)
    user = os.geteuid()
    if user == 0:  # who is root may read everything
        os.seteuid(65534)
    try:
        codes = [train(folder), train(folder / "run"), resume(folder)]
    finally:
        os.seteuid(user)
    told = capsys.readouterr().err.splitlines()
    assert codes == [2, 2, 2] and len(told) == 3
    assert all("Permission denied" in line and "theirs" in line for line in told)


def test_a_disk_that_fails_anywhere_else_is_a_sentence_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(code: int) -> None:
        def pool(*given: object, **named: object) -> None:
            raise OSError(code, os.strerror(code), "/scratch/cache")

        monkeypatch.setattr(runs, "make_pool", pool)

    fail(28)
    assert train(tmp_path / "run") == 75
    assert capsys.readouterr().err.startswith("worldmodel: /scratch/cache: No space left on device")
    fail(9)
    with pytest.raises(OSError, match="Bad file descriptor"):
        train(tmp_path / "run")


def test_a_resume_says_what_may_round_differently(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(trained, "--train.steps", str(STEPS + 2)) == 0
    assert "resumed bit for bit" in capsys.readouterr().out
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert resume(trained, "--train.steps", str(STEPS + 4), "--train.threads", "2") == 0
    out = capsys.readouterr().out
    assert "not bit for bit" in out and "--train.threads 1 -> 2" in out and "-> 9.9.9" in out
