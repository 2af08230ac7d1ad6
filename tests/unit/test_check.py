"""``worldmodel check``: our own parts keep every promise, and a broken one is told which it breaks."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit import broken_parts as broken
from worldmodel import check, cli
from worldmodel.check import core, samples, target, world_model
from worldmodel.check import env as envs
from worldmodel.check.still import NORMAL, UNIFORM, Still
from worldmodel.configs.sizes import dreamer
from worldmodel.envs.atari import AtariConfig
from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.toys import ToyConfig
from worldmodel.errors import UserError
from worldmodel.planning.categorical import CategoricalCEM
from worldmodel.planning.cem import CEM
from worldmodel.planning.gradcem import GradCEM
from worldmodel.planning.gumbel import GumbelMuZero
from worldmodel.planning.icem import ICEM
from worldmodel.planning.muzero import MuZero
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.planning.population import blank

ROOT = Path(__file__).parent.parent.parent
TINY = {
    "deter": 32, "hidden": 16, "stoch": 4, "classes": 5, "blocks": 4, "units": 16, "layers": 1, "width": 16,
    "d_model": 32, "headdim": 16, "d_state": 8,
}
"""Sizes of whatever has fields of these names: what is added tomorrow is checked, too."""


def configs(folder: str) -> list[Any]:
    """Every config with a ``build`` in a folder of parts, made small."""
    found = []
    for path in sorted((ROOT / folder).glob("*.py")):
        if path.stem not in ("__init__", "base"):
            room = folder if folder.startswith("worldmodel") else f"worldmodel/{folder}"
            module = importlib.import_module(f"{room.replace('/', '.')}.{path.stem}")
            for name, kind in inspect.getmembers(module, inspect.isclass):
                if name.endswith("Config") and kind.__module__ == module.__name__ and hasattr(kind, "build"):
                    fields = {f.name for f in dataclasses.fields(kind) if not isinstance(f.default, tuple)}
                    found.append(kind(**{name: size for name, size in TINY.items() if name in fields}))
    return found


def named(config: Any) -> str:
    return getattr(config, "name", type(config).__name__)


# What we ship


@pytest.mark.parametrize("config", configs("worldmodel/models/cores"), ids=named)
def test_our_cores_conform(config: Any) -> None:
    assert target.kind_of(config) == "core"
    check.check_core(config).require()


@pytest.mark.parametrize("config", configs("worldmodel/models/objectives"), ids=named)
def test_our_objectives_conform(config: Any) -> None:
    assert target.kind_of(config) == "objective"
    check.check_objective(config).require()


# beside these, critics of states with actions and detectors live there, which are parts of their agents
VALUES = [x for x in configs("agents/values") if type(x).__name__.endswith("ValueConfig")]


@pytest.mark.parametrize("config", VALUES, ids=named)
def test_our_value_learners_conform(config: Any) -> None:
    assert target.kind_of(config) == "value"
    check.check_value_learner(config).require()


@pytest.mark.parametrize("objective, seen, action", [
    ("reconstruction", "image", "discrete"), ("barlow", "both", "continuous"), ("infonce", "vector", "continuous"),
])
def test_our_world_models_conform(objective: Any, seen: Any, action: Any, request: pytest.FixtureRequest) -> None:
    if objective != "reconstruction":  # one is traced for all
        request.getfixturevalue("quickly")
    model = dreamer("nano", objective=objective).model
    assert target.kind_of(model) == "world-model"
    spec = check.make_spec(seen, action=action)
    report = check.check_world_model(model, spec=spec).require()
    skipped = {finding.check for finding in report.findings if finding.status == "skip"}
    assert skipped == {"is uncertain", "forks"} | ({"decodes"} if seen == "vector" else set())


@pytest.mark.parametrize("core, lacks", [("mamba", {"forks"}), ("transformer", set())])
def test_a_world_model_that_keeps_nothing_in_replay_conforms(core: Any, lacks: set[str], quickly: None) -> None:
    report = check.check_world_model(dreamer("nano", core=core).model, spec=check.make_spec("image")).require()
    skipped = {finding.check for finding in report.findings if finding.status == "skip"}
    assert skipped - {"is traced"} == {"remembers", "is uncertain"} | lacks


@pytest.mark.parametrize("config", [
    ToyConfig(task="catch"), ToyConfig(task="glide", distractor="moving"), ToyConfig(task="recall"),
    GymConfig(id="CartPole-v1"), GymConfig(id="Pendulum-v1", repeat=2), GymConfig(id="worldmodel/Catch-v0"),
    AtariConfig(), DMCConfig(task="cartpole_swingup", obs="proprio", max_frames=60),
], ids=named)
def test_our_environments_conform(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert target.kind_of(config) == "env"
    monkeypatch.setattr(envs, "PATIENCE", 0.5)
    check.check_env(config).require()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_our_parts_conform_on_a_gpu() -> None:
    model = dreamer("nano").model
    check.check_world_model(model, device="cuda").require()
    check.check_core(model.core, device="cuda").require()
    check.check_objective(model.objective, device="cuda").require()
    check.check_value_learner(dreamer("nano").value, device="cuda").require()


# World models that break a promise


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tracing and timing, which take longer than all the rest."""
    for kind in (core, world_model):
        kept = [c for c in kind.CHECKS if c.title not in ("one graph without a break", "speed")]
        monkeypatch.setattr(kind, "CHECKS", tuple(kept))


def failures(config: Any) -> dict[str, str]:
    report = check.check_world_model(config, spec=check.make_spec(pixels=8))
    return {finding.check: finding.said for finding in report.failures}


@pytest.mark.usefixtures("quickly")
def test_the_model_that_the_broken_ones_derive_from_conforms() -> None:
    assert failures(broken.SoundConfig()) == {}


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("config, title, said", [
    (broken.LeakyConfig(), "reset forgets the past",
     r"observe does not forget where is_first is set.*memory differs by"),
    (broken.ZeroedConfig(), "reset forgets the past", r"observe begins an episode .* otherwise than from initial"),
    (broken.InPlaceConfig(), "observe and step leave their inputs",
     r"step changes its input in place \(state\.memory\)"),
    (broken.WideConfig(), "features have feature_dim",
     r"features returns \(3, 8, 12\) for states \(3, 8\), but feature_dim is 13.*set feature_dim"),
    (broken.MisnamedConfig(), "losses are (B, T) and have scales",
     r"loss returns prior without a scale and loss_scales has Prior, which loss does not return"),
    (broken.ForesightConfig(), "T = 1 equals a slice of T = 8",
     r"observe with T = 1, call after call, departs from one call with T = 8 at step 0 \(memory differs by"),
    (broken.IdleConfig(), "gradients reach every parameter",
     r"loss: no gradient reaches idle\.weight, idle\.bias; let a loss depend on them"),
    (broken.CrowdConfig(), "rows are independent", r"observe lets one row of the batch change another"),
    (broken.HiddenConfig(), "same seed, same result", r"called twice with the same inputs.*keep nothing in self"),
    (broken.UnsavedConfig(), "saves and loads", r"after load_state_dict into another instance .*register_buffer"),
    (broken.LogitConfig(), "predict over any leading axes", r"predict: continues lies between .*put a sigmoid"),
    (broken.TrailingConfig(), "losses are (B, T) and have scales",
     r"loss: 'prior' has shape \(3, 8, 1\), expected \(B, T\) = \(3, 8\)"),
    (broken.BrightConfig(), "decodes", r"decode: 'image' lies between .* expected \[0, 1\]"),
    (broken.ForgetfulConfig(), "remembers", r"unpack\(pack\(state\)\) has other features, \d+% off"),
    (broken.MistypedConfig(), "remembers", r"memory_spec asks for .*float16.*make memory_spec say what pack returns"),
    (broken.UnsureConfig(), "is uncertain", r"disagreement is \(3, 1\) torch.float32, expected floats \(3,\)"),
    (broken.ForkConfig(), "forks", r"fork\(state, 4\) followed by step departs .*row b \* 4 \+ i"),
    (broken.HalfConfig(), "bfloat16 is finite", r"loss and predict under bfloat16 autocast: reward is torch.bfloat16"),
    (broken.WritesConfig(), "loss leaves its inputs", r"loss changes its input in place \(batch\.reward\)"),
], ids=lambda x: type(x).__name__ if dataclasses.is_dataclass(x) else "")
def test_a_broken_promise_is_named_with_its_fix(config: Any, title: str, said: str) -> None:
    found = failures(config)
    assert title in found, found
    assert_says(found[title], said)


@pytest.mark.usefixtures("quickly")
def test_each_variant_breaks_one_promise_alone() -> None:
    for config in (broken.InPlaceConfig(), broken.WideConfig(), broken.MisnamedConfig(), broken.IdleConfig()):
        assert len(failures(config)) == 1, failures(config)


@pytest.mark.usefixtures("quickly")
def test_abilities_that_keep_their_promise_pass() -> None:
    report = check.check_world_model(broken.AbleConfig(), spec=check.make_spec(pixels=8)).require()
    assert {finding.status for finding in report.findings} == {"pass"}


def test_a_branch_on_a_tensor_is_no_graph_and_is_placed() -> None:
    said = failures(broken.BranchConfig())["one graph without a break"]
    assert_says(said, r"step is not one graph: step \(broken_parts\.py, line \d+\): Data-dependent")


def test_what_stands_in_the_way_of_all_else_is_told_once() -> None:
    report = check.check_world_model(broken.ListConfig(), spec=check.make_spec(pixels=8))
    assert [f.said for f in report.failures] == [
        "initial: 0 is a int; make the state a dataclass under @worldmodel.tree.struct whose fields are tensors"
    ]
    assert report.findings[-1].said == "not reached: needs 'initial is a tree of tensors'"
    report = check.check_world_model(broken.CrashConfig(), spec=check.make_spec(pixels=8))
    assert_says(report.failures[0].said, r"__init__ \(broken_parts.py, line \d+\) raised ZeroDivisionError: div")
    report = check.check_world_model(broken.LackingConfig(), spec=check.make_spec(pixels=8))
    assert report.failures[0].said == (
        "Lacking has no predict; a world model needs predict(previous, action, state) -> Prediction"
    )


@pytest.mark.usefixtures("quickly")
def test_a_config_must_be_data() -> None:
    said = failures(broken.ThawedConfig())["config is data"]
    assert_says(said, "class ThawedConfig must be a frozen dataclass; write @dataclass")
    said = failures(broken.HoldsConfig())["config is data"]
    assert_says(said, "field net holds a Linear; a configuration holds numbers, text")


@pytest.mark.usefixtures("quickly")
def test_require_raises_every_sentence() -> None:
    said = r"WideConfig is no conforming world model:\n- features have feature_dim: features returns"
    with pytest.raises(check.ConformanceError, match=said):
        check.check_world_model(broken.WideConfig(), spec=check.make_spec(pixels=8)).require()


def assert_says(said: str, pattern: str) -> None:
    assert re.search(pattern, said), said


# Other parts that break a promise


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("report, title, said", [
    (lambda: check.check_core(broken.FlatCoreConfig()), "posterior and prior are logits of groups",
     r"expected logits \(B, T, Z, K\)"),
    (lambda: check.check_core(broken.LeakyCoreConfig()), "reset forgets the past", "observe does not forget"),
    (lambda: check.check_objective(broken.MuteObjectiveConfig()), "features get a gradient",
     "no gradient reaches features"),
    (lambda: check.check_objective(broken.ScalarObjectiveConfig()), "losses are (B, T) and have scales",
     r"expanded: x\.expand"),
    (lambda: check.check_value_learner(broken.EagerValueConfig()), "track moves slow copies alone",
     r"track\(False\) moves slow"),
    (lambda: check.check_value_learner(broken.GreedyValueConfig()), "the return is a constant", r"return_\.detach\(\)"),
    (lambda: check.check_value_learner(broken.TallValueConfig()), "shapes over any leading axes",
     "value has shape .* no trailing 1"),
])
def test_a_broken_part_is_told_what_it_breaks(report: Any, title: str, said: str) -> None:
    found = {finding.check: finding.said for finding in report().failures}
    assert title in found, found
    assert_says(found[title], said)


# Environments that break a promise


@pytest.mark.parametrize("config, title, said", [
    (broken.WalkConfig(flaw="chance"), "same seed, same course", r"reset\(5\) and the same actions give two courses"),
    (broken.WalkConfig(flaw="shared"), "arrays are the caller's", r"obs\['x'\] of a step changes with the next step"),
    (broken.WalkConfig(flaw="endless"), "episodes end, and end once",
     r"spec\.max_steps is 10, but step 10 is not is_last"),
    (broken.WalkConfig(flaw="goes on"), "episodes end, and end once", r"step after is_last goes on, expected an error"),
    (broken.WalkConfig(flaw="name"), "build gives an environment",
     r"the config's name is 'walk', but spec.name is 'crawl'"),
    (broken.WalkConfig(flaw="dtype"), "observations, rewards and flags as spec says",
     r"obs\['x'\] must be float32 \(2,\)"),
    (broken.WalkConfig(flaw="clone"), "clones", r"set_state in another environment does not go on"),
    (broken.WalkConfig(flaw="drawing"), "drawing changes nothing", r"render changes what follows"),
], ids=lambda x: getattr(x, "flaw", ""))
def test_a_broken_environment_is_told_what_it_breaks(config: Any, title: str, said: str) -> None:
    found = {finding.check: finding.said for finding in check.check_env(config).failures}
    assert set(found) == {title}, found
    assert_says(found[title], said)


def test_a_sound_environment_of_ones_own_passes() -> None:
    check.check_env(broken.WalkConfig()).require()


def test_gymnasiums_own_check_is_asked() -> None:
    report = check.check_env("tests.unit.broken_parts:Outside")
    found = {finding.check: finding.said for finding in report.failures}
    assert_says(found["Gymnasium's check_env"], r"check_env raises AssertionError: .* not within the observation space")


# Still noise


def test_still_noise_is_the_same_for_every_shape() -> None:
    with Still():
        assert torch.equal(torch.rand(2, 3), torch.full((2, 3), UNIFORM))
        assert torch.equal(torch.randn_like(torch.zeros(4)), torch.full((4,), NORMAL))
        torch.testing.assert_close(torch.zeros(2).uniform_(-1, 1), torch.full((2,), 2 * UNIFORM - 1))
        torch.testing.assert_close(torch.zeros(2).normal_(3, 2), torch.full((2,), 3 + 2 * NORMAL))
        torch.testing.assert_close(torch.normal(torch.ones(2), 2 * torch.ones(2)), torch.full((2,), 1 + 2 * NORMAL))
        assert torch.equal(torch.bernoulli(torch.tensor([0.3, 0.9])), torch.tensor([0.0, 1.0]))
        assert torch.equal(torch.multinomial(torch.tensor([[0.1, 0.6, 0.3]]), 2), torch.tensor([[1, 2]]))
        again = torch.multinomial(torch.tensor([[0.1, 0.9]]), 3, replacement=True)
        assert torch.equal(again, torch.tensor([[1, 1, 1]]))
        assert torch.equal(torch.zeros(2).bernoulli_(0.9), torch.ones(2))
        assert torch.equal(torch.zeros(2).exponential_(2.0), torch.full((2,), 0.5))
        assert torch.equal(torch.randint(3, 9, (2,)), torch.tensor([3, 3]))
        assert torch.equal(torch.randperm(3), torch.arange(3))
        assert torch.equal(torch.nn.functional.dropout(torch.ones(4), 0.2), torch.full((4,), 1.25))
    assert not torch.equal(torch.rand(3), torch.full((3,), UNIFORM))


def test_a_difference_names_the_leaf_and_its_size() -> None:
    a = {"x": torch.ones(2), "y": torch.zeros(3)}
    assert samples.difference(a, {"x": torch.ones(2), "y": torch.full((3,), 1e-6)}) == ""
    assert samples.difference(a, {"x": torch.ones(2), "y": torch.full((3,), 0.25)}) == "y differs by 0.25"
    assert samples.difference(a, {"x": torch.ones(2), "y": torch.full((3,), torch.nan)}) == "y differs by nan"
    assert "has shape (2,) and (1,)" in samples.difference(a, a | {"x": torch.ones(1)})


# Command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    (tmp_path / "own_parts.py").write_text(
        "from worldmodel.agents.values.twohot import TwoHotValueConfig\n"
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "small = TwoHotValueConfig(units=8, layers=1, bins=15)\n"
        "def made(): return small\n"
        "def pole(): return CartPoleEnv()\n"
        "class Pole(CartPoleEnv): pass\n"
        "class Odd:\n"
        "    def build(self, width): return width\n"
        "class Needy:\n"
        "    def __init__(self, size): pass\n"
        "    def build(self, spec): return None\n"
    )
    yield tmp_path


@pytest.mark.usefixtures("quickly")
def test_the_command_line_passes_fails_and_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "own_parts.py:small"]) == 0
    assert "value learner: TwoHotValueConfig" in capsys.readouterr().out
    assert cli.main(["check", "own_parts:made", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] and document["kind"] == "value learner" and len(document["checks"]) == 11
    assert cli.main(["check", "tests.unit.broken_parts:WideConfig", "--pixels", "8", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [c["check"] for c in document["checks"] if c["status"] == "fail"] == ["features have feature_dim"]


@pytest.mark.parametrize("words, said", [
    (["own_parts.py"], "names nothing inside; write own_parts.py:MyConfig"),
    (["own_parts.py:smal"], "unknown name 'smal'; did you mean"),
    (["own_parts.py:Odd"], r"cannot tell what Odd builds from build\(width\); say --kind"),
    (["own_parts.py:Needy"], "cannot be made without arguments .* give everything a default"),
    (["own_parts.py:gymnasium"], "is a module without build"),
    (["own_parts.py:small", "--kind", "agent"],
     "unknown kind 'agent'.* agents, encoders .* no conformance test yet"),
    (["CartPoll-v1"], "unknown Gymnasium id 'CartPoll-v1'; did you mean 'CartPole-v1'"),
    (["nowhere.py:X"], "there is no file nowhere.py"),
    (["own_parts.py:small", "--pixels", "0"], "--pixels must be at least 1"),
    ([], "FILE:NAME is missing"),
])
def test_bad_input_is_a_sentence(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *words]) == 2
    assert_says(capsys.readouterr().err.replace("\n", " "), said)


@pytest.mark.parametrize("words, name", [
    ("CartPole-v1", "CartPole-v1"), ("own_parts:Pole", "own_parts:Pole"), ("own_parts.py:pole", "own_parts:pole"),
    ("gymnasium:CartPole-v1", "gymnasium:CartPole-v1"),
])
def test_an_environment_is_named_as_gymnasium_does_or_by_its_class(folder: Path, words: str, name: str) -> None:
    config = target.find(words)
    assert isinstance(config, GymConfig) and config.id == name
    assert target.kind_of(config) == "env"


def test_an_agent_is_no_world_model() -> None:
    with pytest.raises(UserError, match="cannot tell what DreamerConfig builds"):
        target.kind_of(dreamer("nano"))


def test_samples_have_resets_where_they_are_asked_for() -> None:
    batch = samples.make_batch(check.make_spec("both", action="continuous"), 2, 5, firsts=((0, 0), (1, 3)))
    assert batch.obs["image"].dtype == torch.uint8 and batch.obs["vector"].shape == (2, 5, 4)
    assert batch.is_first.nonzero().tolist() == [[0, 0], [1, 3]] and batch.is_last.nonzero().tolist() == [[1, 2]]
    assert not batch.prev_action[batch.is_first].any() and not batch.action[batch.is_last].any()
    np.testing.assert_array_equal(batch.prev_action[0, 1:], batch.action[0, :-1])


# Planners


@dataclass(frozen=True, kw_only=True)
class Careless:
    """Keeps every promise but three."""

    def initial(self, batch_size: int, action_size: int) -> Any:
        return blank(batch_size, 2, action_size)

    def __call__(self, objective: Any, state: Any, plan: Any, first: torch.Tensor) -> Any:
        mean = plan.mean * ~first[:, None, None] + state.x.mean(0)
        score = objective.score(state, mean.unsqueeze(1))
        return replace(plan, action=mean[:, 0], mean=mean), {"value": score[:, 0], "evaluations": torch.ones(())}


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("planner", [
    CEM(horizon=3, samples=8, elites=2), ICEM(horizon=3), GradCEM(horizon=3), CategoricalCEM(horizon=3, samples=50),
    PolicyMPPI(samples=16, policy_samples=2, elites=4), MuZero(simulations=4), GumbelMuZero(simulations=4),
], ids=lambda p: type(p).__name__)
def test_our_planners_conform(planner: Any) -> None:
    assert target.kind_of(planner) == "planner"
    check.check_planner(planner).require()


@pytest.mark.usefixtures("quickly")
def test_a_careless_planner_is_told_what_is_wrong() -> None:
    failed = {finding.check: finding.said for finding in check.check_planner(Careless()).failures}
    assert set(failed) == {"actions stay inside", "first forgets, row by row", "a batch is its rows"}
    assert "clamp to [-1, 1]" in failed["actions stay inside"]
    assert "torch.where(first" in failed["first forgets, row by row"]


def test_a_planner_is_found_by_its_class() -> None:
    assert target.find("worldmodel.planning.cem:CEM") == CEM()
