"""The GPU suite on a CPU: commands parse, steps run for seconds, and a call goes on where the last one stopped."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tool import load_tool
from worldmodel import presets
from worldmodel.arguments import BenchOptions, TrainOptions

ROOT = Path(__file__).resolve().parents[2]
tool = load_tool("gpu_suite")


def suite(folder: Path, **changes: Any) -> Any:
    given = {
        "minutes": 9.0, "out": folder / "out", "carry": folder / "carry", "peer": None, "peer_python": sys.executable,
        "only": "", "device": "cpu", "tiny": True, "fresh": False,
    }
    return tool.Suite(argparse.Namespace(**(given | changes)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_cuda_it_says_so_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "lern"], "no step begins with 'lern'; see --dry-run"),
        (["--device", "cpu", "--peer", "/no/where"], "--peer /no/where: there is no such folder"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(words) == 2
    assert sentence in capsys.readouterr().out


def test_the_dry_run_lists_every_step_with_its_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [step.name for step in tool.steps()]
    assert tuple(names[: len(tool.FIRST)]) == tool.FIRST
    assert sum(step.minutes for step in tool.steps() if step.name in tool.FIRST) <= 15
    assert [line.split()[2] for line in lines[:-1]] == names and len(set(names)) == len(names)
    assert float(lines[-1].split()[0]) == sum(step.minutes for step in tool.steps())


@pytest.mark.parametrize(
    "step", [step for step in tool.steps() if step.kind in ("bench", "beside", "learn")], ids=lambda step: step.name
)
def test_the_commands_of_a_step_parse(step: Any) -> None:
    part, *words = step.words if step.kind != "learn" else ("train", *step.words)
    extra = TrainOptions() if part == "train" else BenchOptions()
    run, _, _ = presets.parse(presets.find_preset(words[0]), words[1:], extra, prog=part)
    if step.name.startswith("act"):
        assert run.train.num_envs
    if "barlow" in step.name:
        assert not run.agent.model.probe and type(run.agent.model.objective).__name__ == "BarlowConfig"


def test_every_kind_of_step_runs_and_is_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["update/12m-pixels", "act/12m-pixels", "learn/boxing"]
    for name in only:
        step = next(step for step in tool.steps() if step.name == name)
        one = suite(tmp_path, only=name, minutes=60.0)
        one.chosen = lambda step=step: [step]
        assert one.run(), capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "gpu_suite.json").read_text())
    assert document == json.loads((tmp_path / "carry" / "gpu_suite.json").read_text())
    found = document["steps"]
    assert list(found) == only and all(row["state"] == "done" for row in found.values())
    assert found["update/12m-pixels"]["result"]["rows"]["learn"]["median_ms"] > 0
    assert found["learn/boxing"]["result"]["curve"]["eval_mode"]
    again = suite(tmp_path)
    assert [again.is_done(step) for step in again.chosen() if step.name in only] == [True] * 3


@pytest.mark.slow
def test_the_other_kinds_of_steps_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = suite(tmp_path, minutes=60.0)
    rest.chosen = lambda: [step for step in tool.steps() if step.name in ("tests", "replay")]
    assert rest.run(), capsys.readouterr().out


class Script:
    """A suite whose steps are decided by the test."""

    def __new__(cls, folder: Path, outcome: dict[str, str], **changes: Any) -> Any:
        made = suite(folder, **changes)
        made.ran = []

        def act(step: Any) -> tuple[str, dict[str, Any]]:
            made.ran.append(step.name)
            return outcome.get(step.name, "done"), {"failed": "boom"} if outcome.get(step.name) == "failed" else {}

        for kind in ("tests", "bench", "beside", "kernel", "learn"):
            setattr(made, f"_{kind}", act)
        return made


def test_a_failed_step_is_tried_again_once_and_stops_nothing(tmp_path: Path) -> None:
    first = Script(tmp_path, {"tests": "failed"})
    assert not first.run() and "learn/boxing" in first.ran
    second = Script(tmp_path, {"tests": "failed"})
    assert second.run() and second.ran == ["tests"]
    assert Script(tmp_path, {}).run()
    assert json.loads((tmp_path / "out" / "gpu_suite.json").read_text())["steps"]["tests"]["tries"] == 2


def test_a_learning_run_goes_on_until_it_is_done(tmp_path: Path) -> None:
    for state, is_done in (("going on", False), ("going on", False), ("done", True)):
        one = Script(tmp_path, {"learn/walker_stand": state}, only="learn/walker_stand")
        assert one.run() is is_done and one.ran == ["learn/walker_stand"]


def test_another_commit_measures_again_and_learns_on(tmp_path: Path) -> None:
    assert Script(tmp_path, {}).run()
    later = Script(tmp_path, {})
    later.here = later.here | {"commit": "another"}
    later.run()
    assert "update/12m-pixels" in later.ran and "learn/walker_stand" not in later.ran


def test_no_time_means_no_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = Script(tmp_path, {}, minutes=0.0)
    assert not late.run() and late.ran == []
    assert "no time left" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_a_step_that_never_fits_gets_a_call_of_its_own(tmp_path: Path) -> None:
    short = Script(tmp_path, {}, minutes=0.5)
    short.run()
    assert short.ran == ["tests"]


def test_without_a_peer_nothing_is_compared(tmp_path: Path) -> None:
    assert not [step for step in suite(tmp_path).chosen() if step.kind == "beside"]
    assert [step for step in suite(tmp_path, peer=tmp_path).chosen() if step.kind == "beside"]


def test_a_run_is_begun_once_and_then_resumed(tmp_path: Path) -> None:
    step = next(step for step in tool.steps() if step.name == "learn/walker_stand")
    one = suite(tmp_path, tiny=False)
    assert one._learn_command(step, tmp_path)[3:6] == ["train", "dmc.vision", "--env.render"]
    (tmp_path / "config.json").touch()
    assert one._learn_command(step, tmp_path)[3:] == ["resume", str(tmp_path)]


class FakeProcess:
    """A process that ends at the ``ends``-th wait."""

    def __init__(self, ends: int) -> None:
        self.ends, self.heard = ends, []

    def __call__(self, command: list[str], **kwargs: Any) -> FakeProcess:
        return self

    def wait(self, timeout: float | None = None) -> int:
        self.heard.append("wait")
        if self.heard.count("wait") < self.ends:
            raise subprocess.TimeoutExpired("x", timeout or 0.0)
        return 130

    def poll(self) -> int | None:
        return 130 if self.heard.count("wait") >= self.ends else None

    def send_signal(self, number: int) -> None:
        self.heard.append(signal.Signals(number).name)

    def kill(self) -> None:
        self.heard.append("kill")


@pytest.mark.parametrize(
    ("ends", "heard", "code"),
    [
        (1, ["wait", "wait"], 130),
        (2, ["wait", "SIGINT", "wait"], 130),
        (3, ["wait", "SIGINT", "wait", "kill", "wait"], 124),
    ],
    ids=["ends by itself", "asked to stop", "killed"],
)
def test_a_process_may_tidy_up_before_it_is_killed(
    ends: int, heard: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeProcess(ends)
    monkeypatch.setattr(tool.subprocess, "Popen", fake)
    found, _, errors = suite(tmp_path)._call(["x"], stop_after=1.0)
    assert (found, fake.heard) == (code, heard)
    assert ("no time left" in errors) is (code == 124)
