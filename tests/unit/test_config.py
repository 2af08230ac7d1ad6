"""Presets, overrides and the JSON of a run."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel import options, presets
from worldmodel.config import RESUMABLE, Run, config_hash, diff, from_json, to_json, validate_resume
from worldmodel.configs.quickstart import quickstart
from worldmodel.errors import CheckpointError, UserError
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig

HERE = __name__


@dataclass(frozen=True, kw_only=True)
class Core:
    width: int = 8
    """Width."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class OtherCore:
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class FakeAgent:
    core: Any = field(default_factory=Core)
    """Anything that builds."""
    lr: float = 1e-3
    probe: bool = True
    limit: float | None = None
    kind: Literal["small", "large"] = "small"
    widths: tuple[int, ...] = (1, 2)
    pairs: tuple[tuple[str, bool | int | float | str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class FakeEnv:
    task: str = "walk"

    @property
    def name(self) -> str:
        return f"fake/{self.task}"


@dataclass(kw_only=True)
class Thawed:
    x: int = 1


@dataclass(frozen=True, kw_only=True)
class Extra:
    run_dir: str = ""


def preset_run(task: str = "walk", size: Literal["s", "l"] = "s") -> Run:
    """A fake preset.

    With two paragraphs.
    """
    return Run(env=FakeEnv(task=task), agent=FakeAgent(core=Core(width=8 if size == "s" else 64)), published="a table")


PRESET = presets.Preset(name="fake", function=preset_run)


def parse(line: str) -> tuple[Run, dict[str, Any]]:
    return presets.parse(PRESET, line.split(), Extra(), prog="worldmodel train fake")[:2]


# Presets by name


def test_shipped_presets_are_found_without_importing_them() -> None:
    code = "from worldmodel import presets; import sys; print(*presets.shipped()); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"quickstart", "dmc.vision", "dmc.proprio", "atari100k", "atari", "gym"} <= set(out)


def test_every_shipped_preset_has_a_line_to_list() -> None:
    assert all(preset.summary for preset in presets.shipped().values())


def test_unknown_preset_names_the_closest() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'dmc.vison'; did you mean 'dmc.vision'"):
        presets.find_preset("dmc.vison")


def test_preset_by_dotted_path() -> None:
    assert presets.find_preset(f"{HERE}:preset_run").function is preset_run


def test_preset_in_a_file_appends_and_never_prepends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_preset_file.py").write_text("def run(width: int = 3): ...\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    found = presets.find_preset(f"{tmp_path}/my_preset_file.py:run")
    assert found.label == "run"
    assert found.parameters == {"width": (int, 3)}
    assert sys.path[: len(before)] == before
    assert str(tmp_path) in sys.path[len(before) :]


def test_a_file_that_an_installed_module_hides_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json.py").write_text("def run(): ...\n")
    with pytest.raises(UserError, match=r"hidden by the module 'json'.*rename"):
        presets.find_preset(f"{tmp_path}/json.py:run")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nowhere.py:run", "there is no file"),
        ("no_such_package.runs:fn", "there is no module 'no_such_package'"),
        (f"{HERE}:preset_rum", "did you mean 'preset_run'"),
        ("./my_model.py", "names no function"),
    ],
)
def test_a_preset_that_does_not_exist_is_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        presets.find_preset(name)
    assert "\n" not in str(caught.value)


def test_a_missing_dependency_of_a_preset_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "needs_much.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        presets.find_preset(f"{tmp_path}/needs_much.py:run")


# Overrides


def test_parameters_of_the_preset_come_first_and_fields_of_the_run_after() -> None:
    run, arguments = parse("--task run --size l --agent.lr 1e-4 --train.steps 2000 --seed 3")
    assert arguments == {"task": "run", "size": "l"}
    assert run == Run(
        env=FakeEnv(task="run"), agent=FakeAgent(core=Core(width=64), lr=1e-4), train=TrainConfig(steps=2000), seed=3,
        published="a table",
    )


def test_fields_behind_any_are_those_of_the_value_that_is_there() -> None:
    assert parse("--agent.core.width 5")[0].agent.core == Core(width=5)
    other = presets.Preset(name="x", function=lambda: replace(preset_run(), agent=FakeAgent(core=OtherCore())))
    run, _, _ = presets.parse(other, ["--agent.core.depth", "9"], Extra(), prog="p")
    assert run.agent.core == OtherCore(depth=9)


def test_every_kind_of_value_can_be_given() -> None:
    run, _ = parse("--agent.probe False --agent.limit 2.5 --agent.kind large --agent.widths 3 4 5 --agent.lr=-1e-3")
    assert run.agent == FakeAgent(probe=False, limit=2.5, kind="large", widths=(3, 4, 5), lr=-1e-3)
    assert parse("--agent.limit None")[0].agent.limit is None


def test_options_of_the_command_stand_among_them() -> None:
    _, _, extra = presets.parse(PRESET, ["--seed", "2", "--run-dir", "here"], Extra(), prog="p")
    assert extra == Extra(run_dir="here")


def test_without_options_the_preset_comes_as_it_is() -> None:
    assert parse("")[0] == preset_run()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--agent.lrr 1", "unknown option --agent.lrr; did you mean --agent.lr?"),
        ("--lr 1", "did you mean --agent.lr?"),
        ("--tsk run", "did you mean --task?"),
        ("--train.stpes=5", "did you mean --train.steps"),
        ("--zzzzzz 1", "unknown option --zzzzzz; `worldmodel train fake --help`"),
        ("--agent.lr fast", "--agent.lr: could not convert string to float: 'fast'"),
        ("--size xl", r"invalid choice 'xl' for argument '--size'"),
        ("--agent.core.width 0", "width must be at least 1, got 0"),
        ("--train.steps 0", "train: steps must be at least 1, got 0"),
        ("--seed -1", "seed must not be negative, got -1"),
        ("--agent.lr", "Missing value for argument '--agent.lr'"),
        ("stray", "unexpected word 'stray'"),
        ("--published mine", "unknown option --published"),
    ],
)
def test_bad_options_are_one_sentence(line: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(line)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value) and "│" not in str(caught.value)


def test_a_preset_parameter_must_not_hide_an_option_of_every_run() -> None:
    def mine(seed: int = 0) -> Run:
        return preset_run()

    with pytest.raises(UserError, match="parameter 'seed', which every run has already"):
        presets.parse(presets.Preset(name="mine", function=mine), [], Extra(), prog="p")


def test_a_preset_must_return_a_run() -> None:
    def mine() -> Any:
        return 3

    with pytest.raises(UserError, match=r"must return a worldmodel\.config\.Run, got int"):
        presets.parse(presets.Preset(name="mine", function=mine), [], Extra(), prog="p")


def test_an_objection_of_a_preset_is_a_sentence() -> None:
    def mine(n: int = 0) -> Run:
        raise ValueError("n must be odd, got 0")

    with pytest.raises(UserError, match="preset mine: n must be odd, got 0"):
        presets.parse(presets.Preset(name="mine", function=mine), [], Extra(), prog="p")


def test_help_shows_docstring_parameters_overrides_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--task run --help")
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for expected in ("A fake preset.", "With two paragraphs.", "--task", "--agent.core.width INT", "--train.steps"):
        assert expected in out
    assert "a table" in out and "--published" not in out


def test_names_lists_what_can_be_given() -> None:
    found = options.names(preset_run())
    assert {"--agent.core.width", "--train.steps", "--env.task", "--seed"} <= set(found)


def test_default_folder_names_preset_task_and_seed() -> None:
    folder = presets.default_folder(PRESET, {"task": "a/b"}, replace(preset_run(), seed=7))
    assert folder.parent == Path("runs") and folder.name.startswith("fake-a_b-7-2")


# JSON


def roundtrip(run: Any) -> Any:
    return from_json(json.loads(json.dumps(to_json(run))), allow=[HERE])


def test_round_trip_keeps_tuples_literals_none_and_classes() -> None:
    agent = FakeAgent(core=OtherCore(depth=3), kind="large", widths=(), pairs=(("a", 1), ("b", "x"), ("c", 1.5)))
    run = Run(env=FakeEnv(), agent=agent, train=TrainConfig(stop_at_return=2.0), device="cpu")
    again = roundtrip(run)
    assert again == run
    assert again.agent.pairs == (("a", 1), ("b", "x"), ("c", 1.5))
    assert again.train.stop_at_return == 2.0 and again.agent.limit is None


@settings(max_examples=200, deadline=None)
@given(
    lr=st.floats(allow_nan=False), limit=st.none() | st.floats(allow_nan=False),
    widths=st.lists(st.integers()).map(tuple), task=st.text(), probe=st.booleans(),
    seed=st.integers(min_value=0), width=st.integers(min_value=1),
)
def test_any_values_round_trip(
    lr: float, limit: float | None, widths: tuple[int, ...], task: str, probe: bool, seed: int, width: int
) -> None:
    agent = FakeAgent(core=Core(width=width), lr=lr, limit=limit, widths=widths, probe=probe)
    run = Run(env=FakeEnv(task=task), agent=agent, seed=seed)
    assert roundtrip(run) == run


def test_mutable_and_foreign_values_are_not_written() -> None:
    for bad in ([1], {"a": 1}, Thawed(), object(), print):
        with pytest.raises(TypeError, match="core is a"):
            to_json(Run(env=FakeEnv(), agent=FakeAgent(core=bad)))


def changed(**fields: Any) -> dict[str, Any]:
    return {**to_json(preset_run()), **fields}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (changed(agent={"type": "os:system"}), "not part of worldmodel"),
        (changed(agent={"type": "subprocess:Popen", "args": "true"}), "not part of worldmodel"),
        (changed(agent={"type": "worldmodel.config:from_json"}), "no frozen dataclass of that name"),
        (changed(agent={"type": "worldmodel.config:json.loads"}), 'needs a "type"'),
        (changed(agent={"type": "worldmodel.config:Path"}), "no frozen dataclass of that name"),
        (changed(agent={"type": "worldmodel.train.log:Logger"}), "no frozen dataclass of that name"),
        (changed(agent={"type": "worldmodel.__main__:main"}), "not part of worldmodel"),
        (changed(agent={"type": "worldmodel.no_such:X"}), "no module 'worldmodel.no_such'"),
        (changed(agent={"type": f"{HERE}:Thawed"}), "no frozen dataclass of that name"),
        (changed(agent={"lr": 1}), 'needs a "type"'),
        (changed(agent={"type": 3}), 'needs a "type"'),
        (changed(surprise=1), "unknown field of Run 'surprise'"),
        (changed(seed="many"), "run.seed must be int, got 'many'"),
        (changed(seed=True), "run.seed must be int"),
        (changed(device="tpu"), "run.device must be Literal"),
        (changed(replay=3), "run.replay must be ReplayConfig"),
        (changed(replay={"type": f"{HERE}:Core"}), "run.replay must be ReplayConfig"),
        (changed(train={"type": "worldmodel.train.config:TrainConfig", "steps": 0}), "steps must be at least 1"),
        ({"type": "worldmodel.config:Run"}, "no valid Run"),
        ([], None),
    ],
)
def test_a_changed_document_is_refused_with_a_sentence(document: Any, sentence: str | None) -> None:
    if sentence is None:
        assert from_json(document) == ()
        return
    with pytest.raises(CheckpointError) as caught:
        from_json(document, allow=[HERE])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_field_that_is_gone_is_read_where_it_meant_nothing() -> None:
    document = to_json(quickstart())
    for value in (0.0, 1.0):
        document["agent"]["model"]["foresight_scale"] = value
        if not value:
            assert from_json(document) == quickstart()
            continue
        with pytest.raises(CheckpointError, match="unknown field of LatentModelConfig 'foresight_scale'"):
            from_json(document)


def test_reading_imports_nothing_that_was_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for tag in ("evil_module:X", "worldmodel_evil:X", "evil_module.x:Y"):
        with pytest.raises(CheckpointError, match="--allow"):
            from_json(changed(agent={"type": tag}))
    assert not (tmp_path / "ran").exists() and "evil_module" not in sys.modules


def test_a_foreign_module_is_read_where_it_is_allowed() -> None:
    with pytest.raises(CheckpointError, match=f"--allow {HERE}"):
        from_json(to_json(preset_run()))
    assert from_json(to_json(preset_run()), allow=[HERE]) == preset_run()


@pytest.mark.parametrize("name", sorted(presets.shipped()))
def test_shipped_presets_round_trip(name: str) -> None:
    run = presets.find_preset(name).build({})
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


# Changes


def test_diff_names_paths_and_values() -> None:
    new = replace(preset_run(), train=TrainConfig(steps=5), agent=FakeAgent(core=OtherCore()))
    assert diff(preset_run(), preset_run()) == []
    assert diff(preset_run(), new) == [
        f'agent.core.type: "{HERE}:Core" -> "{HERE}:OtherCore"',
        "agent.core.width: 8 -> (not there)",
        "train.steps: 1000000 -> 5",
        "agent.core.depth: (not there) -> 2",
    ]


def test_hash_tells_runs_apart_and_ignores_what_is_said_about_them() -> None:
    run = preset_run()
    assert config_hash(run) == config_hash(replace(run, published="another table"))
    assert config_hash(run) == config_hash(replace(run, train=TrainConfig(train_ratio=512)))
    assert config_hash(run) != config_hash(replace(run, seed=1))
    assert len(config_hash(run)) == 16


def test_resume_may_change_length_and_cadence_alone() -> None:
    old = preset_run()
    train = TrainConfig(steps=9, eval_every=1, log_steps=3, threads=1, checkpoint_steps=4, stop_at_return=1.0)
    validate_resume(old, replace(old, train=train, device="cpu"))
    train, replay = TrainConfig(num_envs=3, steps=9), ReplayConfig(batch_size=2)
    bad = replace(old, train=train, replay=replay, env=FakeEnv(task="run"))
    with pytest.raises(CheckpointError) as caught:
        validate_resume(old, bad)
    for expected in ('env.task: "walk" -> "run"', "replay.batch_size: 16 -> 2", "train.num_envs: 1 -> 3"):
        assert expected in str(caught.value)
    assert "train.steps" not in str(caught.value)


def test_what_a_resume_may_change_exists() -> None:
    run = presets.find_preset(presets.DEFAULT).build({})
    known = {path.lstrip("-").replace("-", "_") for path in options.names(run)} | {"published"}
    assert known >= RESUMABLE


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset_run().seed = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--agent.lam 2", "agent: lam must be in [0, 1], got 2"),
        ("--agent.lr -1", "agent: lr must be at least 0, got -1"),
        ("--agent.lr inf", "agent: lr must be at least 0, got inf"),
        ("--agent.lr nan", "agent: lr must be at least 0, got nan"),
        ("--agent.value.bins 4", "agent.value: bins must be an odd number of at least 3, got 4"),
        ("--agent.model.units 0", "agent.model: units must be at least 1, got 0"),
        ("--agent.model.core.stoch 0", "agent.model.core: stoch must be at least 1, got 0"),
        ("--agent.model.core.classes 1", "agent.model.core: classes must be at least 2, got 1"),
        ("--agent.model.encoder.patch 0", "agent.model.encoder: patch must be at least 1, got 0"),
        ("--replay.length 1", "replay: length must be at least 2, got 1"),
    ],
)
def test_numbers_that_nothing_can_be_built_with_are_refused_as_options(line: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        presets.parse(presets.find_preset("quickstart"), line.split(), Extra(), prog="p")
