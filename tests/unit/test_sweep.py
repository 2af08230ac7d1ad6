"""Sweeps: which runs they consist of, that finished ones are skipped and others gone on with, what a search does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worldmodel import cli
from worldmodel.errors import UserError
from worldmodel.sweep import engines, run, search
from worldmodel.sweep.plan import Job, find_state, make_jobs, parse_grid, parse_seeds

ROOT = Path(__file__).parents[2]


def evaluate(job: Job, steps: int, return_: float) -> None:
    """Leave in a job's folder what a run leaves there, ``steps`` decisions in."""
    (job.folder / "checkpoints" / f"{steps:012d}").mkdir(parents=True)
    (job.folder / "config.json").write_text(json.dumps({"run": job.document}))
    row = {"step": steps, "kind": "eval_mode", "frames": steps, "return": return_}
    (job.folder / "scores.jsonl").write_text(json.dumps(row) + "\n")


class Pretend:
    """An engine that trains nothing: it leaves the result that ``value`` gives for a job, or the exit code."""

    def __init__(self, value: Callable[[Job], float | int]) -> None:
        self.value, self.ran = value, list[str]()

    def run(self, jobs: Sequence[Job], done: engines.Done) -> int:
        for job in jobs:
            self.ran.append(job.name)
            value = self.value(job)
            if isinstance(value, float):
                evaluate(job, job.document["train"]["steps"], value)
            done(job, 0 if isinstance(value, float) else value)
        return 0


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretend]:
    def install(value: Callable[[Job], float | int]) -> Pretend:
        engine = Pretend(value)
        monkeypatch.setattr(run, "Local", lambda parallel: engine)
        return engine

    return install


def sweep(tmp_path: Path, *words: str) -> int:
    return cli.main(["sweep", "quickstart", "--out", str(tmp_path / "out"), *words])


@pytest.mark.parametrize("text", ["", "4..0", "a", "0,,1", "1,0..2", "-1"])
def test_seeds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("given", [["agent.lr"], ["=1"], ["a=1,"], ["a=1", "a=2"]])
def test_grids_that_make_no_sense_are_refused(given: list[str]) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_grid(given)


@pytest.mark.parametrize("text", ["agent.lr", "agent.lr=2..1", "agent.lr=0..1:log", "=1..2", "a=1..2:lin", "a=,"])
def test_spaces_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--search"):
        search.parse_space(text)


def test_a_job_for_every_setting_and_seed(tmp_path: Path) -> None:
    grid = parse_grid(["agent.lr=1e-4,3e-4", "task=catch,glide"])
    jobs = make_jobs("quickstart", ["--train.steps", "100"], grid, [0, 1], tmp_path)
    assert len(jobs) == 8 and len({job.folder for job in jobs}) == 8
    job = next(job for job in jobs if job.name == "agent.lr=3e-4_task=glide_seed=1")
    assert (job.document["agent"]["lr"], job.document["env"]["task"], job.document["seed"]) == (3e-4, "glide", 1)
    assert job.document["train"]["steps"] == 100
    assert job.command()[3:] == ["train", "quickstart", *job.words, "--run-dir", str(job.folder)]


def test_a_wrong_option_is_said_before_anything_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, "--set", "agent.lrr=1,2") == 2
    assert "did you mean --agent.lr" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert sweep(tmp_path, "--seeds", "x") == 2
    assert cli.main(["sweep", "quickstart"]) == 2
    assert "--out" in capsys.readouterr().err


def test_states_follow_from_the_folder(tmp_path: Path) -> None:
    job, other = make_jobs("quickstart", [], [{}], [0, 1], tmp_path)
    assert find_state(job) == "new"
    evaluate(job, 4_000, 1.0)
    assert find_state(job) == "unfinished" and job.command()[3:] == ["resume", str(job.folder)]
    evaluate(job, 16_000, 2.0)
    assert find_state(job) == "finished"
    (job.folder / "checkpoints/000000016000").rmdir()  # killed after its last evaluation, before it was saved
    assert find_state(job) == "unfinished"
    other.folder.mkdir()
    (other.folder / "config.json").write_text((job.folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"another run \(seed 0 there, 1 asked"):
        find_state(other)


def test_finished_runs_are_skipped_and_the_table_has_all(
    tmp_path: Path, pretend: Callable[..., Pretend], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seeds", "0..1", "--set", "agent.lr=1e-3,1e-4"]
    first = pretend(lambda job: 70 if job.name == "agent.lr=1e-4_seed=1" else 3.0 + job.seed)
    assert sweep(tmp_path, *words) == 1
    assert len(first.ran) == 4
    assert "| 1e-4 | 3 | 3 | 3 | 2 | seed 1: failed (70) |" in (tmp_path / "out/sweep.md").read_text()
    second = pretend(lambda job: 1.0)
    assert sweep(tmp_path, *words) == 0
    assert second.ran == ["agent.lr=1e-4_seed=1"]
    lines = (tmp_path / "out/sweep.md").read_text().splitlines()
    assert lines[2:] == ["| 1e-3 | 3.5 | 3 | 4 | 2 | - |", "| 1e-4 | 2 | 1 | 3 | 2 | - |"]
    rows = json.loads((tmp_path / "out/sweep.json").read_text())["rows"]
    assert rows[0]["returns"] == {"0": 3.0, "1": 4.0}
    assert sweep(tmp_path, *words, "--dry-run") == 0
    assert capsys.readouterr().err.count("finished   ") == 4


def test_processes_run_side_by_side_and_say_everything_to_their_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # each waits for the other's file: one after the other would never end
    script = (
        "import pathlib, sys\nmine, other = map(pathlib.Path, sys.argv[1:])\nmine.touch()\n"
        "while not other.exists(): pass\nprint('met'); sys.exit(3)"
    )
    names = {"seed=0": ("a", "b"), "seed=1": ("b", "a")}
    monkeypatch.setattr(
        Job, "command", lambda job: [sys.executable, "-c", script, *(str(tmp_path / x) for x in names[job.name])]
    )
    ended: dict[str, int] = {}
    jobs = make_jobs("quickstart", [], [{}], [0, 1], tmp_path / "out")
    assert engines.Local(parallel=2).run(jobs, lambda job, code: ended.update({job.name: code})) == 0
    assert ended == {"seed=0": 3, "seed=1": 3} and jobs[0].log.read_text() == "met\n"


def test_a_signal_reaches_the_runs_and_no_more_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first job asks the sweep to stop, as a scheduler does, and ends when it is asked itself
    script = (
        "import os, signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\nwhile True: signal.pause()"
    )
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, "-c", script])
    ended: dict[str, int] = {}
    jobs = make_jobs("quickstart", [], [{}], [0, 1], tmp_path / "out")
    assert engines.Local().run(jobs, lambda job, code: ended.update({job.name: code})) == 143
    assert ended == {"seed=0": 143}


def fake_ray(lost: str = "") -> Any:
    """Ray's functions that are used, in this process; the task of the job called ``lost`` is lost."""

    class RayError(Exception):
        pass

    made: dict[str, Any] = {}

    def get(reference: Any) -> int:
        function, job, cwd = reference
        if job.name == lost:
            raise RayError
        return function(job, cwd)

    class Reference(tuple):
        __hash__ = object.__hash__

    return SimpleNamespace(
        init=lambda **_: None,
        remote=lambda **resources: lambda function: SimpleNamespace(
            remote=lambda *given: made.update(resources=resources) or Reference((function, *given))
        ),
        wait=lambda references, timeout: (references[:1], references[1:]),
        get=get, made=made, exceptions=SimpleNamespace(RayError=RayError), cancel=lambda reference: None,
    )


def test_ray_runs_the_same_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_ray(lost="seed=1")
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, "-c", "import sys; print('here'); sys.exit(5)"])
    ended: dict[str, int] = {}
    jobs = make_jobs("quickstart", [], [{}], [0, 1], tmp_path / "out")
    assert engines.Ray(gpus=0.5).run(jobs, lambda job, code: ended.update({job.name: code})) == 0
    assert ended == {"seed=0": 5, "seed=1": 1} and jobs[0].log.read_text() == "here\n"
    assert fake.made["resources"] == {"num_cpus": 1.0, "num_gpus": 0.5, "max_retries": 3}


@pytest.mark.parametrize(("words", "package"), [(["--on", "ray"], "ray"), (["--search", "agent.lr=1..2"], "optuna")])
def test_a_missing_package_names_the_extra(
    words: list[str], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert sweep(tmp_path, *words) == 2
    assert "pip install 'worldmodel[" in capsys.readouterr().err


def test_a_search_finds_the_better_settings_and_goes_on_where_it_was(
    tmp_path: Path, pretend: Callable[..., Pretend]
) -> None:
    pytest.importorskip("optuna")
    words = ["--seeds", "0,1", "--search", "agent.lr=1e-5..1e-2:log", "--search", "task=catch,glide"]

    def value(job: Job) -> float:
        return -abs(float(job.settings["agent.lr"]) - 1e-3) * 1e3 - (job.settings["task"] == "glide")

    first = pretend(value)
    assert sweep(tmp_path, *words, "--trials", "3") == 0
    assert len(first.ran) == 6
    second = pretend(value)
    assert sweep(tmp_path, *words, "--trials", "5") == 0
    assert len(second.ran) == 4 and not set(first.ran) & set(second.ran)
    trials = json.loads((tmp_path / "out/trials.json").read_text())
    best = max(trials, key=lambda trial: trial["value"])
    table = (tmp_path / "out/sweep.md").read_text().splitlines()
    assert len(trials) == 5 and table[2].startswith(f"| {best['settings']['agent.lr']} | {best['settings']['task']} |")
    assert sweep(tmp_path, "--search", "agent.lr=1..2", "--trials", "5") == 2


def test_a_search_that_was_interrupted_finishes_what_it_chose(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    spaces = dict([search.parse_space("agent.imagination=5..20")])
    chosen: list[str] = []

    def stop(trials: Sequence[search.Trial]) -> None:
        chosen.append(trials[0].settings["agent.imagination"])

    def fail_or_score(trials: Sequence[search.Trial]) -> None:
        stop(trials)
        trials[0].failed = len(chosen) > 2
        trials[0].value = None if trials[0].failed else 1.0

    given: dict[str, Any] = {"out": tmp_path, "trials": 3, "together": 1, "sampler": "random"}
    assert len(search.maximise(spaces, score=stop, **given)) == 1
    tried = search.maximise(spaces, score=fail_or_score, **given)
    assert chosen[0] == chosen[1] and [trial.value for trial in tried] == [1.0, None, None]
    assert 5 <= int(chosen[-1]) <= 20


@pytest.mark.slow
def test_a_sweep_on_ray_saves_itself_when_it_is_asked_to_end_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    tiny = ["--train.steps", "3000", "--train.train-ratio", "4", "--train.eval-episodes", "1", "--train.eval-every"]
    tiny += ["0", "--train.threads", "1", "--train.checkpoint-steps", "200", "--agent.imagination", "2"]
    command = [sys.executable, "-m", "worldmodel", "sweep", "quickstart", "--on", "ray", "--out", "out", *tiny]
    # at the niceness that Ray gives its workers, a busy machine would never come to them
    where: dict[str, Any] = {
        "cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT,
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"},
    }
    first = subprocess.Popen(command, **where)
    saved = tmp_path / "out/seed=0/checkpoints/000000000200"
    while not saved.exists():
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(timeout=0.5)
    first.terminate()
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 143 and "seed=0: no evaluation yet; exit code 143" in said, said
    second = subprocess.run(command, timeout=240, **where)
    log = (tmp_path / "out/seed=0.log").read_text()
    assert second.returncode == 0 and "3,000 decisions, " in log and "resumed" in log, second.stdout + log


@pytest.mark.slow
def test_a_sweep_trains_and_its_folder_can_be_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    tiny = ["--train.steps", "16", "--train.train-ratio", "0", "--train.eval-episodes", "1", "--train.eval-every", "0"]
    assert cli.main(["sweep", "quickstart", "--out", "out", *tiny]) == 0, Path("out/seed=0.log").read_text()
    capsys.readouterr()
    assert cli.main(["sweep", "quickstart", "--out", "out", *tiny]) == 0
    assert "1 runs, 1 finished already" in capsys.readouterr().err
    assert cli.main(["report", *(str(path) for path in Path("out").iterdir()), "--out", "report"]) == 0
