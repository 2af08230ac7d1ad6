"""Whatever is given wrongly is answered with a sentence and exit code 2 (a full disk: 75), and nothing is lost.

What the command line refuses while it parses is in tests/unit/test_cli.py, every way to damage a checkpoint in
tests/unit/test_checkpoint.py; here real runs meet bad environments, folders, checkpoints and disks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.e2e import broken_envs
from worldmodel import cli
from worldmodel.kernels import dispatch
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.lock import RunLock

TINY = [
    "--train.num-envs", "2", "--train.train-ratio", "2", "--train.eval-every", "0", "--train.eval-episodes", "1",
    "--train.eval-envs", "1", "--train.threads", "1", "--train.checkpoint-steps", "20", "--replay.capacity", "200",
    "--replay.batch-size", "2", "--replay.length", "4", "--replay.min-starts", "2", "--device", "cpu",
]
BROKEN = "tests.e2e.broken_envs:broken"
ROOT = Path(__file__).resolve().parents[2]

Told = Callable[[list[str]], str]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command that has to fail with exit code 2; its sentence."""

    def run(words: list[str]) -> str:
        assert cli.main(words) == 2
        err = capsys.readouterr().err.removesuffix("\n").splitlines()[-1:]
        assert len(err) == 1 and err[0].startswith("worldmodel: ") and "Traceback" not in err[0]
        return err[0]

    return run


@pytest.fixture(scope="module")
def catch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("catch") / "run", "catch")


@pytest.fixture(scope="module")
def glide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("glide") / "run", "glide")


def trained(folder: Path, task: str) -> Path:
    words = ["train", "quickstart", "--task", task, *TINY, "--train.steps", "40", "--run-dir", str(folder)]
    assert cli.main(words) == 0
    assert steps(folder) == [20, 40]
    return folder


@pytest.fixture
def run_dir(catch: Path, tmp_path: Path) -> Path:
    """A run of 40 decisions with checkpoints at 20 and 40, to be damaged."""
    shutil.copytree(catch, tmp_path / "run")
    return tmp_path / "run"


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[0]) for path in Checkpoints(folder / "checkpoints").candidates())


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:012d}"


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


# Environments that cannot be had


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("dmc.vision --size nano --task walker_wlk --render ray", "did you mean 'walker_walk'"),
        ("dmc.proprio --size nano --task walker_wlk", "did you mean 'walker_walk'"),
        ("gym --env CartPol-v1", "unknown Gymnasium id 'CartPol-v1'; did you mean 'CartPole-v1'"),
        (f"gym --env {BROKEN}/Speaks-v0", "the observation is a Text space, expected Box, Discrete"),
        (f"gym --env {BROKEN}/Juggles-v0", "MultiDiscrete"),
        ("gym --env no_such_package:Env-v0", "no_such_package"),
        ("quickstart --replay.memory-budget 1e-12", "replay"),
        ("quickstart --agent.actor.gradient dynamics", 'this task has discrete ones; use "reinforce"'),
        ("quickstart --agent.model.encoder.patch 5", "must be multiples of 5, got 32 x 32; resize"),
        ("quickstart --core mamba --agent.model.core.headdim 48", "must be a multiple of headdim=48"),
    ],
)
def test_what_cannot_be_built_is_a_sentence_and_leaves_no_folder(
    words: str, sentence: str, told: Told, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    given = ["train", *words.split(), *TINY, "--run-dir", str(folder)]
    assert sentence in told(given)
    assert not folder.exists()
    folder.mkdir()
    assert sentence in told(given), "a folder that was there and empty may be used again"
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="cgl exists on macOS")
@pytest.mark.parametrize(("backend", "sentence"), [("cgl", "apt-get install"), ("disabled", "unset MUJOCO_GL")])
def test_missing_opengl_names_the_packages_and_the_renderer_that_needs_none(
    backend: str, sentence: str, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    given = ["train", "dmc.vision", "--size", "nano", *TINY, "--run-dir", str(tmp_path / "run")]
    answer = told(given)
    assert sentence in answer and "--env.render ray" in answer
    assert not (tmp_path / "run").exists()


# Cores and kernels that cannot be had


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("quickstart --core transformer --agent.model.core.heads 3", "width must be a multiple of heads=3, got 128"),
        ("quickstart --core mamba --agent.model.core.headdim 48", "must be a multiple of headdim=48, got 256"),
        ("quickstart --agent.precision float16", "invalid choice 'float16' for argument '--agent.precision'"),
        (
            "quickstart --core transformer --agent.model.core.positions learned --agent.model.core.window 3",
            "a sequence of 4 steps is longer than the 3 learned positions; take shorter ones (replay.length)",
        ),
    ],
)
def test_what_a_core_cannot_be_or_see_is_a_sentence(words: str, sentence: str, told: Told, tmp_path: Path) -> None:
    given = ["train", *words.split(), *TINY, "--train.steps", "40", "--run-dir", str(tmp_path / "run")]
    assert sentence in told(given)


@pytest.mark.parametrize(
    ("choice", "patch", "sentence"),
    [
        ("triton", ("INTERPRETS", False), "got tensors on cpu: Triton needs a CUDA device"),
        ("triton", ("HAS_TRITON", False), "triton is not installed: pip install 'worldmodel[triton]'"),
        ("mamba_ssm", ("HAS_MAMBA_SSM", False), "mamba-ssm is not installed: docs/kernels.md says what works"),
        ("mamba_ssm", ("HAS_MAMBA_SSM", True), "got tensors on cpu: mamba-ssm needs a CUDA device"),
    ],
)
def test_a_kernel_that_cannot_run_here_is_a_sentence(
    choice: dispatch.Choice, patch: tuple[str, bool], sentence: str, told: Told, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, *patch)
    given = ["train", "quickstart", "--core", "mamba", *TINY, "--train.steps", "40", "--run-dir", str(tmp_path / "run")]
    with dispatch.using(choice):
        assert sentence in told(given)


# NaN from an environment


def poisoned(folder: Path, kwargs: str, steps: int = 60) -> list[str]:
    broken_envs.Poisoned.made = 0
    env = ["gym", "--env", f"{BROKEN}/Poisoned-v0", "--env.kwargs", *kwargs.split()]
    return ["train", *env, *TINY, "--train.pool", "serial", "--train.steps", str(steps), "--run-dir", str(folder)]


def test_nan_from_an_environment_costs_an_episode_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(poisoned(tmp_path / "run", "lives 2 healthy 10")) == 0
    out = capsys.readouterr().out
    assert "was restarted (1 of 3" in out and "is not finite: 3 of 3 values" in out
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "env/restarts" in row)
    assert last["env/restarts"] == last["env/truncated_by_fault"] == 2
    assert all(row.get("update/skipped", 0) == 0 for row in rows), "no NaN reached the learner"


def test_nan_again_and_again_ends_the_run_in_a_sentence_and_keeps_what_was_learned(told: Told, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answer = told(poisoned(folder, "healthy 8", steps=10_000))
    assert "is not finite" in answer and "limit 3" in answer
    kept = Checkpoints(folder / "checkpoints").latest(on_skip=pytest.fail)
    assert kept.step > 20 and kept.step % 20, "a checkpoint of the very end, not the last one on schedule"
    assert "is not finite" in told(["resume", str(folder)])
    assert Checkpoints(folder / "checkpoints").latest(on_skip=pytest.fail).step > kept.step


# Checkpoints


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("name", ["agent_model.safetensors", "trainer.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    how: str, name: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint(run_dir, 40) / name, how)
    assert cli.main(["resume", str(run_dir), "--train.steps", "44"]) == 0
    out, err = capsys.readouterr()
    assert "passing over a checkpoint" in out + err and f"000000000040/{name}" in out + err
    assert "000000000020: resumed bit for bit" in out
    assert Checkpoints(run_dir / "checkpoints").latest(on_skip=lambda text: None).step == 44


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("command", ["resume", "eval"])
def test_where_every_checkpoint_is_damaged_each_is_named_and_nothing_is_touched(
    how: str, command: str, run_dir: Path, told: Told
) -> None:
    for step in (20, 40):
        damage(checkpoint(run_dir, step) / "agent_model.safetensors", how)
    before = contents(run_dir / "checkpoints")
    answer = told([command, str(run_dir)])
    assert "none of the 2 checkpoints" in answer and "000000000020/agent_model" in answer and "000000000040" in answer
    assert contents(run_dir / "checkpoints") == before


def test_a_foreign_checkpoint_is_passed_over(
    run_dir: Path, glide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint(glide, 40), checkpoint(run_dir, 99))
    assert cli.main(["resume", str(run_dir), "--train.steps", "44"]) == 0
    out, err = capsys.readouterr()
    assert "000000000099 is of another run" in out + err and "000000000040: resumed bit for bit" in out
    assert checkpoint(run_dir, 99).is_dir(), "it is not ours to delete"


@pytest.mark.parametrize("command", ["resume", "eval"])
def test_foreign_checkpoints_alone_are_refused(command: str, run_dir: Path, glide: Path, told: Told) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    shutil.copytree(glide / "checkpoints", run_dir / "checkpoints")
    assert "is of another run" in told([command, str(run_dir)])
    document = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(document | {"id": ""}))
    answer = told([command, str(run_dir)])
    assert "is of another agent" in answer and "(2,) there and (3,)" in answer
    assert steps(run_dir) == [20, 40]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff\x00", b'{"run": {"type": "os:system"}}'])
@pytest.mark.parametrize("command", ["resume", "eval"])
def test_a_damaged_configuration_is_named(content: bytes, command: str, run_dir: Path, told: Told) -> None:
    (run_dir / "config.json").write_bytes(content)
    told([command, str(run_dir)])
    assert steps(run_dir) == [20, 40]


# Run folders


def test_a_folder_that_holds_a_run_is_not_trained_into(run_dir: Path, told: Told) -> None:
    before = contents(run_dir)
    answer = told(["train", "quickstart", *TINY, "--run-dir", str(run_dir)])
    assert "is not empty" in answer and f"worldmodel resume {run_dir}" in answer
    assert contents(run_dir) == before


@pytest.mark.parametrize("command", ["resume", "eval"])
def test_a_folder_without_a_run_is_named(command: str, tmp_path: Path, told: Told) -> None:
    assert "is not a run folder" in told([command, str(tmp_path)])
    assert "is not a run folder" in told([command, str(tmp_path / "nowhere")])


def test_a_folder_in_use_is_named_with_its_process(run_dir: Path, tmp_path: Path, told: Told) -> None:
    (tmp_path / "new").mkdir()
    with RunLock(run_dir), RunLock(tmp_path / "new"):
        before = contents(run_dir)
        assert "process" in told(["resume", str(run_dir), "--train.steps", "44"])
        assert contents(run_dir) == before
        assert "process" in told(["train", "quickstart", *TINY, "--run-dir", str(tmp_path / "new")])


@pytest.mark.parametrize(
    ("option", "value"), [("--agent.model.core.deter", "64"), ("--replay.length", "5"), ("--train.num-envs", "3")]
)
def test_a_resume_does_not_change_sizes(option: str, value: str, run_dir: Path, told: Told) -> None:
    before = contents(run_dir)
    answer = told(["resume", str(run_dir), option, value])
    assert f"{option.removeprefix('--').replace('-', '_')}: " in answer and f"-> {value}" in answer
    assert contents(run_dir) == before


# A full disk


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from worldmodel.cli import main
sys.exit(main(sys.argv[2:]))
"""


def limited(limit: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command for which no file may grow beyond ``limit`` bytes: writing more fails as on a full disk."""
    given = [sys.executable, "-c", LIMITED, str(limit), *map(str, words)]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done


def test_a_full_disk_stops_nothing_before_the_end_and_costs_no_older_checkpoint(run_dir: Path) -> None:
    before = contents(run_dir / "checkpoints")
    done = limited(6000, "resume", run_dir, "--train.steps", "80")
    assert done.returncode == 75, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("worldmodel: disk full: the checkpoint of step 80")
    assert "no checkpoint at 60 decisions, training goes on: disk full" in done.stdout
    assert "evaluation at 80 decisions" in done.stdout
    assert contents(run_dir / "checkpoints") == before
    assert cli.main(["resume", str(run_dir)]) == 0, "with room again, the same command goes on"
    assert Checkpoints(run_dir / "checkpoints").latest(on_skip=pytest.fail).step == 80


def test_a_disk_without_room_for_a_new_run_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    done = limited(1000, "train", "quickstart", *TINY, "--run-dir", tmp_path / "run")
    assert done.returncode == 75 and done.stderr.count("\n") == 1 and "config.json" in done.stderr
    assert not (tmp_path / "run").exists()
