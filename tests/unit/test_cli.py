"""The command line: what it calls, what it prints, and how it fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import worldmodel
from worldmodel import cli, listing
from worldmodel.config import Run
from worldmodel.errors import CheckpointError, DivergenceError, StorageError, UserError
from worldmodel.train.evaluate import Scores
from worldmodel.train.loop import Summary


class FakeRuns(SimpleNamespace):
    """Stands for ``worldmodel.runs`` and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__(calls=[], error=None, stored=None)

    def _answer(self, name: str, *args: Any, **kwargs: Any) -> Summary:
        self.calls.append((name, args, kwargs))
        if self.error is not None:
            raise self.error
        return Summary(
            env_steps=500, updates=40, reason="steps", seconds=3.0,
            scores={"mode": Scores(returns=[1.0, 0.5], lengths=[9, 9])},
        )

    def start(self, run: Run, run_dir: Path, **kwargs: Any) -> Summary:
        return self._answer("start", run, run_dir, **kwargs)

    def resume(self, run_dir: Path, *, change: Any, **kwargs: Any) -> Summary:
        return self._answer("resume", change(self.stored), run_dir, **kwargs)

    def evaluate(self, run_dir: Path, **kwargs: Any) -> Any:
        self._answer("evaluate", run_dir, **kwargs)
        loaded = SimpleNamespace(
            run=SimpleNamespace(env=SimpleNamespace(name="fake/env")), checkpoint=SimpleNamespace(step=123)
        )
        return Scores(returns=[1.0, 0.0], lengths=[9, 11]), loaded


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuns:
    fake = FakeRuns()
    monkeypatch.setitem(sys.modules, "worldmodel.runs", fake)
    monkeypatch.setattr(worldmodel, "runs", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


NANO = ["atari100k", "--size", "nano"]


# Help


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["eval", "--help"], ["resume", "--help"], ["list"], ["list", "--help"],
     ["doctor", "--help"], ["check", "--help"], ["--version"]],
)
def test_help_and_lists_import_no_torch(words: list[str]) -> None:
    code = f"""
import sys
from worldmodel.cli import main
code = main({words!r})
heavy = sorted({{"torch", "gymnasium", "mujoco", "dm_control", "ale_py"}} & set(sys.modules))
assert not heavy, heavy
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_command_is_in_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command}" in out for command in cli.COMMANDS)


def test_train_help_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and line in out for name, line in listing.entries("presets").items())


def test_help_of_a_preset_lists_every_override(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "atari100k", "--help"]) == 0
    out = capsys.readouterr().out
    expected = ("--task", "--size {nano,", "--run-dir", "--agent.model.core.deter", "--train.steps")
    assert all(text in out for text in expected)


# Errors


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "dmc.vison"], "unknown preset 'dmc.vison'; did you mean 'dmc.vision'"),
        ([*["train"], *NANO, "--agent.lrr", "1"], "unknown option --agent.lrr; did you mean --agent.lr?"),
        (["train", "atari100k", "--task", "boxng"], "unknown Atari game 'boxng'; did you mean 'boxing'"),
        (["train", "--size", "nano", "atari100k"], "unknown option --size"),
        (["eval"], "RUN is missing"),
        (["eval", "x", "--episods", "3"], "did you mean --episodes?"),
        (["eval", "x", "--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["resume"], "resume needs a run folder first"),
        (["list", "corse"], "invalid choice 'corse'"),
        (["info", "nope"], "unknown preset 'nope'"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    words: list[str], sentence: str, runs: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.startswith("worldmodel: ") and err.count("\n") == 1
    assert out == "" and runs.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("u"), 2), (CheckpointError("c"), 2), (StorageError("s"), 75), (DivergenceError("d"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_have_their_exit_codes(
    error: BaseException, code: int, runs: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.error = error
    assert cli.main(["train", *NANO]) == code
    assert capsys.readouterr().err == f"worldmodel: {error if str(error) else 'interrupted'}\n"


def test_a_bug_shows_its_traceback(runs: FakeRuns) -> None:
    runs.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", *NANO])


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m worldmodel train atari100k --help | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("words", ["--version", "train quickstart --help"])
def test_a_pipe_that_was_closed_before_anything_is_written_is_no_error(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "worldmodel", *words.split()]
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=buffered)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("color", [False, True])
def test_sentences_do_not_depend_on_the_terminal(
    encoding: str, color: bool, runs: FakeRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return color

    Terminal.encoding = encoding  # type: ignore[misc, assignment]
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("FORCE_COLOR", "1") if color else monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert cli.main(["train", *NANO, "--agent.lr", "abc"]) == 2
    expected = "--agent.lr: could not convert string to float: 'abc'; see `worldmodel train atari100k --help`"
    assert capsys.readouterr().err == f"worldmodel: {expected}\n"


# Commands


def test_train_starts_the_run_that_the_words_say(runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *NANO, "--task", "pong", "--run-dir", "here", "--train.steps", "7", "--seed", "4"]) == 0
    (name, (run, folder), kwargs), = runs.calls
    assert (name, folder, run.train.steps, run.seed, run.env.task) == ("start", Path("here"), 7, 4, "pong")
    assert kwargs["preset"] == "atari100k" and kwargs["preset_args"]["task"] == "pong"
    out = capsys.readouterr().out
    assert "500 decisions, 40 updates" in out and "0.75 by mode" in out and "worldmodel eval here" in out


def test_train_names_the_folder_itself(runs: FakeRuns) -> None:
    assert cli.main(["train", *NANO]) == 0
    folder = runs.calls[0][1][1]
    assert folder.parent == Path("runs") and folder.name.startswith("atari100k-boxing-0-")


def test_a_signal_shows_in_the_exit_code(runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(env_steps=5, updates=0, reason="signal", signal=15)
    runs.start = lambda *_, **__: summary
    assert cli.main(["train", *NANO, "--run-dir", "here"]) == 143
    assert "worldmodel resume here" in capsys.readouterr().out


def test_resume_changes_the_stored_run(runs: FakeRuns) -> None:
    from worldmodel.configs.atari100k import atari100k

    runs.stored = replace(atari100k(size="nano"), seed=9)
    assert cli.main(["resume", "here", "--train.steps", "11"]) == 0
    (_, (run, folder), kwargs), = runs.calls
    assert folder == Path("here") and kwargs["allow"] == []
    assert run == replace(runs.stored, train=replace(runs.stored.train, steps=11))


def test_resume_allows_the_modules_it_is_told(
    runs: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worldmodel.configs.atari100k import atari100k

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_own_model.py").write_text("X = 1\n")
    runs.stored = atari100k(size="nano")
    assert cli.main(["resume", "here", "--train.steps", "11", "--allow", "./my_own_model.py:run"]) == 0
    assert runs.calls[0][2]["allow"] == ["my_own_model"]


def test_eval_reports_for_people_and_machines(runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "here", "--episodes", "2", "--sampled"]) == 0
    assert "fake/env at 123 decisions: return 0.5 +- 0.5 sampled" in capsys.readouterr().out.replace("by ", "")
    assert runs.calls[0][2]["explore"] is True and runs.calls[0][2]["episodes"] == 2
    assert cli.main(["eval", "here", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert runs.calls[1][2]["explore"] is False and runs.calls[1][2]["episodes"] == 100
    assert document["return"] == 0.5 and document["returns"] == [1.0, 0.0] and document["step"] == 123


def test_info_counts_parameters_memory_and_updates(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["info", "atari100k", "--size", "1m", "--replay.capacity", "1000", "--train.train-ratio", "64", "--json"]
    assert cli.main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["preset_args"]["size"] == "1m"
    assert facts["changed"] == ["replay.capacity: 110000 -> 1000", "train.train_ratio: 128 -> 64"]
    assert facts["parameters"]["total"] == sum(facts["parameters"]["modules"].values())
    assert {"model.core", "model.encoder", "actor", "value"} <= facts["parameters"]["modules"].keys()
    replay = facts["replay"]
    assert replay["bytes_now"] == 0 and replay["bytes_at_capacity"] == 1000 * replay["bytes_per_step"]
    assert replay["bytes_per_step"] > 64 * 64 * 3
    assert facts["updates"]["per_decision"] == 64 / (16 * 64)
    assert facts["updates"]["per_million_frames"] == 64 / (16 * 64) * 1e6 / 4
    assert "82.1 for boxing" in facts["published"] and facts["config"]["env"]["task"] == "boxing"


def test_info_gives_the_published_parameter_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "dmc.proprio", "--task", "walker_walk", "--size", "1m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["total"] == 640_867


def test_info_of_an_offline_run_counts_updates_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["offline.state", "--env", "Pendulum-v1", "--version", "td3bc", "--agent.recent", "1000"]
    assert cli.main(["info", *words, "--train.steps", "500"]) == 0
    said = capsys.readouterr().out
    assert "500, offline" in said and "data/Pendulum-v1-medium" in said and "decisions" not in said


def test_info_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", *NANO]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("parameters", "model.core", "at capacity", "per decision", "answers to"))


@pytest.mark.parametrize("kind", listing.KINDS)
def test_list_prints_a_line_each(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == kind
    assert len(lines) == 1 + len(listing.entries(kind)) > 1
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines[1:])


def test_list_as_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(found) == listing.KINDS
    assert {"atari", "dmc", "gym"} <= found["envs"].keys() and "rssm" in found["cores"]
    assert {"reconstruction", "barlow", "infonce"} <= found["objectives"].keys()
