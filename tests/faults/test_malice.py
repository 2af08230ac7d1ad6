"""F15: a run folder made by an enemy. Whatever it holds, nothing of it runs, and the refusal is a sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tiny import resume, train
from tests.unit.test_checkpoint import MALICE, Canary, forge, listed
from worldmodel import cli
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.manifest import Manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert train(run_dir, "--train.eval-every", "0", "--train.steps", "16") == 0
    return run_dir


def files(path: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, or add one, under a manifest that agrees."""
    held = [entry for entry in json.loads((path / "manifest.json").read_text())["files"] if entry["name"] != name]
    forge(path, files=[*held, listed(path, name, content)])
    Manifest.read(path / "manifest.json")


def document(path: Path, name: str, **changes: Any) -> None:
    files(path, name, json.dumps(json.loads((path / name).read_text()) | changes).encode())


def pickled(name: str) -> Callable[[Path, Path, Path], None]:
    return lambda run, path, canary: files(path, name, pickle.dumps(Canary(canary)))


def tensors(kind: str) -> Callable[[Path, Path, Path], None]:
    return lambda run, path, canary: files(path, "agent_model.safetensors", MALICE[kind])


def escaping(name: str) -> Callable[[Path, Path, Path], None]:
    def attack(run: Path, path: Path, canary: Path) -> None:
        held = json.loads((path / "manifest.json").read_text())["files"]
        forge(path, files=[*held, {"name": name, "bytes": 0, "sha256": "0" * 64}])

    return attack


def config(**changes: Any) -> Callable[[Path, Path, Path], None]:
    def attack(run: Path, path: Path, canary: Path) -> None:
        held = json.loads((run / "config.json").read_text())
        told = json.loads(json.dumps(changes).replace("CANARY", str(canary)))
        (run / "config.json").write_text(json.dumps(held | {"run": held["run"] | told}))

    return attack


def module(run: Path, path: Path, canary: Path) -> None:
    """A class in a module that would act when it is imported, and that can be found."""
    (run.parent / "hostile_module.py").write_text(f"open({str(canary)!r}, 'w')\n")
    config(env={"type": "hostile_module:Env"})(run, path, canary)


def replay_path(run: Path, path: Path, canary: Path) -> None:
    """replay.json that names a file outside of its folder."""
    saved = json.loads((path / "replay" / "replay.json").read_text())
    saved["steps"][0]["file"] = "../../../../secret.safetensors"
    shutil.copy(path / "agent_model.safetensors", run.parent / "secret.safetensors")
    files(path, "replay/replay.json", json.dumps(saved).encode())


ATTACKS: dict[str, Callable[[Path, Path, Path], None]] = {
    "pickled weights": pickled("agent_model.safetensors"),
    "pickled trainer": pickled("trainer.json"),
    "pickled environments": pickled("envs.json"),
    "pickled replay": pickled("replay/replay.json"),
    **{f"tensors: {kind}": tensors(kind) for kind in MALICE},
    "manifest: ../": escaping("../../../canary"),
    "manifest: absolute": escaping("/etc/passwd"),
    "config: _target_": config(env={"_target_": "pathlib.Path.touch", "self": "CANARY"}),
    "config: os.system": config(agent={"type": "os:system", "command": "touch CANARY"}),
    "config: module": module,
    "replay: ../": replay_path,
    "trainer: other keys": lambda run, path, canary: files(path, "trainer.json", b'{"_target_": "os.system"}'),
    "trainer: a list": lambda run, path, canary: files(path, "trainer.json", b"[]"),
    "envs: object array": lambda run, path, canary: files(
        path, "envs.json", b'[{"__ndarray__": "AAAA", "dtype": "O", "shape": [1]}]'
    ),
    "envs: other keys": lambda run, path, canary: files(path, "envs.json", b'[{"_target_": "os.system"}, {}]'),
    "replay: other keys": lambda run, path, canary: document(path, "replay/replay.json", counters={}),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_run_folder_runs_nothing(
    attack: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, canary = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "canary"
    monkeypatch.syspath_prepend(tmp_path)
    (path,) = Checkpoints(run_dir / "checkpoints").candidates()
    ATTACKS[attack](run_dir, path, canary)
    assert resume(run_dir, "--train.steps", "18") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("worldmodel: ")
    if "config" in attack or "weights" in attack:
        assert cli.main(["eval", str(run_dir), "--episodes", "1"]) == 2
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
