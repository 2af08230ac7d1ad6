"""Exported programs: equal to the agent, alone in the world, and described well enough to be called."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import worldmodel
from tests.unit.tiny import tiny_run, train
from worldmodel import cli, export, options
from worldmodel.agents.random.agent import RandomConfig
from worldmodel.arguments import ExportOptions
from worldmodel.config import Run
from worldmodel.errors import UserError
from worldmodel.export import export_run
from worldmodel.rng import Stream
from worldmodel.trained import Trained
from worldmodel.types import Step

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "use_a_trained_agent.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)

Values = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's commands were given: runs/first and exported/first, from pixels and discrete."""
    root = tmp_path_factory.mktemp("page")
    train(root / "runs" / "first", tiny_run())
    words = ["export", str(root / "runs" / "first"), "--out", str(root / "exported" / "first"), "--onnx"]
    assert cli.main(words) == 0
    return root


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of vectors and continuous actions, without ONNX."""
    root = tmp_path_factory.mktemp("pendulum")
    train(root / "runs" / "first", tiny_run("gym", env="Pendulum-v1", size="nano"))
    export_run(root / "runs" / "first", root / "exported" / "first")
    return root


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "exported/first/manifest.json").read_text())


@functools.cache
def program(folder: Path, name: str) -> Callable[[Values], Values]:
    return torch.export.load(folder / f"exported/first/{name}.pt2").module()


def sequence(agent: Trained, batch: int, time: int) -> list[Step]:
    """Random observations; each row begins anew at a step of its own."""
    g = torch.Generator().manual_seed(batch)
    steps = []
    for t in range(time):
        obs = {
            key: torch.randint(256, (batch, *x.shape), generator=g, dtype=torch.uint8) if x.is_image
            else torch.randn(batch, *x.shape, generator=g)
            for key, x in agent.spec.obs.items()
        }
        is_first = (torch.arange(batch) + 2 == t) | (t == 0)
        false = torch.zeros(batch, dtype=torch.bool)
        steps.append(Step(obs=obs, reward=torch.zeros(batch), is_first=is_first, is_last=false, is_terminal=false))
    return steps


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("which", ["folder", "pendulum"])
def test_act_equals_the_agent_over_a_sequence_with_resets(
    which: str, batch: int, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(which)
    agent = worldmodel.load(root / "runs" / "first", device="cpu")
    act, encode = program(root, "act"), program(root, "encode")
    carry = agent.initial(batch, seed=7)
    described = manifest(root)["programs"]["act"]["inputs"]
    # the first call forgets all of this
    values = {x["name"]: torch.ones(batch, *x["shape"][1:], dtype=getattr(torch, x["dtype"])) for x in described}
    for step in sequence(agent, batch, 6):
        with Stream(state=carry.rng):
            values["noise.0"] = torch.rand(values["noise.0"].shape)
        values |= {f"obs.{key}": x for key, x in step.obs.items()} | {"is_first": step.is_first}
        filtered, result = encode(values), act(values)
        action, carry = agent.act(carry, step)
        torch.testing.assert_close(result["action"], action)
        torch.testing.assert_close(result["state.deter"], carry.state.deter)
        assert torch.equal(result["state.stoch"], carry.state.stoch)
        torch.testing.assert_close(filtered["state.deter"], carry.state.deter)
        torch.testing.assert_close(filtered["features"], agent.agent.model.features(carry.state))  # type: ignore[attr-defined]
        values |= {k: x for k, x in result.items() if k.startswith("state.")} | {"prev_action": result["action"]}
    assert not torch.equal(act(values)["state.deter"], act(values | {"is_first": ~values["is_first"]})["state.deter"])


@pytest.mark.parametrize("which", ["folder", "pendulum"])
def test_step_equals_the_model(which: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(which)
    agent = worldmodel.load(root / "runs" / "first", device="cpu")
    model: Any = agent.agent.model  # type: ignore[attr-defined]
    before = agent.act(agent.initial(5), sequence(agent, 5, 1)[0])[1].state
    action = torch.eye(agent.spec.action.size)[torch.arange(5) % agent.spec.action.size]
    noise = torch.rand(5, before.stoch.shape[1], generator=torch.Generator().manual_seed(0))
    got = program(root, "step")(
        {"state.deter": before.deter, "state.stoch": before.stoch, "action": action, "noise.0": noise}
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), Stream(state=generator.get_state()):
        after = model.step(before, action)
        said = model.predict(before, action, after)
    torch.testing.assert_close(got["state.deter"], after.deter)
    assert torch.equal(got["state.stoch"], after.stoch)
    torch.testing.assert_close(got["reward"], said.reward)
    torch.testing.assert_close(got["continues"], said.continues)


def test_the_manifest_says_what_the_files_are(folder: Path) -> None:
    said = manifest(folder)
    assert said["env"] == "toy/catch" and said["step"] == 16 and said["action"] == {"kind": "discrete", "size": 3}
    assert list(said["programs"]) == ["encode", "step", "act"]
    for name, entry in said["programs"].items():
        for kind in ("pt2", "onnx"):
            path = folder / "exported/first" / entry[kind]["file"]
            assert path.name == f"{name}.{kind}" and entry[kind]["sha256"] == export.sha256_of(path)
            assert entry[kind]["difference"] < 1e-5
    act = {x["name"]: x for x in said["programs"]["act"]["inputs"]}
    assert act["obs.image"] == {"name": "obs.image", "shape": ["batch", 32, 32, 3], "dtype": "uint8"}
    assert act["noise.0"] == {"name": "noise.0", "shape": ["batch", 1, 16], "dtype": "float32", "noise": "uniform"}
    assert [x["name"] for x in said["programs"]["step"]["outputs"]] == [
        "state.deter", "state.stoch", "reward", "continues"
    ]


def test_onnx_acts_as_the_agent(folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    agent = worldmodel.load(folder / "runs" / "first", device="cpu")
    session = onnxruntime.InferenceSession(folder / "exported/first/act.onnx")
    names = manifest(folder)["programs"]["act"]["onnx"]["outputs"]
    assert [x.name for x in session.get_outputs()] == names == ["action", "next.state.deter", "next.state.stoch"]
    carry, step = agent.initial(3), sequence(agent, 3, 1)[0]
    with Stream(state=carry.rng):
        noise = torch.rand(3, 1, 16)
    values = {
        "obs.image": step.obs["image"], "state.deter": torch.ones(3, 128), "state.stoch": torch.ones(3, 16, 8),
        "prev_action": torch.ones(3, 3), "is_first": step.is_first, "noise.0": noise,
    }
    action = session.run(["action"], {name: x.numpy() for name, x in values.items()})[0]
    assert action.tolist() == agent.act(carry, step)[0].tolist()


def test_programs_run_where_worldmodel_is_not_imported(folder: Path) -> None:
    code = [text for kind, text in BLOCKS if kind == "python"][-1]
    assert "worldmodel" not in code
    code += "import sys\nassert not any(x.startswith('worldmodel') for x in sys.modules)\n"
    code += "print(result['action'].tolist())"
    words = [sys.executable, "-I", "-c", code]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    actions = json.loads(done.stdout)
    assert len(actions) == 2 and all(sorted(row) == [0, 0, 1] for row in actions)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_the_page_runs_as_printed(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(text, str(PAGE), "exec"), {})


def test_the_pages_commands_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
    assert lines == ["$ worldmodel export runs/first --out exported/first --onnx"]
    asked = options.parse(ExportOptions, lines[0].split()[3:], prog="worldmodel export")
    assert (asked.run, asked.out, asked.onnx) == (Path("runs/first"), Path("exported/first"), True)


def test_our_commands_never_read_a_program() -> None:
    sources = [path for room in ("worldmodel", "agents", "configs", "tools") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 50
    reads = re.compile(r"export\.load\(|torch\.load\((?!.*weights_only=True)|jit\.load")
    assert [str(path) for path in sources if reads.search(path.read_text())] == []


class Drawing(torch.nn.Module):
    """A program that draws in a way that is asked for."""

    def __init__(self, draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, inputs: Values) -> Values:
        with export._Noise([x for name, x in inputs.items() if name.startswith("noise.")]):
            return {"y": self.draw(inputs["x"])}


def given(batch: int) -> Values:
    return {"x": torch.arange(1.0, batch + 1).unsqueeze(1)}


def test_normal_noise_is_an_input_too(tmp_path: Path) -> None:
    made: Any = export._program("f", Drawing(lambda x: x + torch.randn_like(x) * torch.rand(x.shape)), given)  # type: ignore[arg-type]
    assert made.noise == {"noise.0": "normal", "noise.1": "uniform"}
    entry = export._write(made, tmp_path, onnx=False, say=print)
    f = torch.export.load(tmp_path / "f.pt2").module()
    noise = {"noise.0": torch.tensor([[2.0], [3.0]]), "noise.1": torch.tensor([[0.5], [0.25]])}
    assert f(given(2) | noise)["y"].tolist() == [[2.0], [2.75]]
    assert entry["inputs"][1]["noise"] == "normal"


def test_noise_that_cannot_be_an_input_is_refused(tmp_path: Path) -> None:
    exponential: Any = Drawing(lambda x: x + torch.empty_like(x).exponential_())
    with pytest.raises(UserError, match=r"f draws random numbers by aten\.exponential"):
        export._write(export._program("f", exponential, given), tmp_path, onnx=False, say=print)
    shared: Any = Drawing(lambda x: x + torch.rand(7).sum())
    with pytest.raises(UserError, match=r"noise of shape \(7,\) without a batch axis"):
        export._program("f", shared, given)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_onnx_lacks_is_named_and_the_program_stays(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    said: list[str] = []
    made = export._program("f", Drawing(lambda x: torch.special.bessel_j0(x)), given)  # type: ignore[arg-type]
    entry = export._write(made, tmp_path, onnx=True, say=said.append)
    assert "bessel_j0" in entry["onnx"]["missing"] and "f has no ONNX form" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["f.pt2"]


def test_mistakes_are_sentences(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="exists and is not empty"):
        export_run(folder / "runs/first", folder / "exported/first")
    base = tiny_run()
    blind = Run(env=base.env, agent=RandomConfig(), replay=base.replay, train=base.train, device="cpu")
    with pytest.raises(UserError, match="a RandomAgent has no world model"):
        export_run(train(tmp_path / "random", blind), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'worldmodel\[export\]'"):
        export_run(folder / "runs/first", tmp_path / "out", onnx=True)


def test_help_takes_no_torch() -> None:
    code = (
        "import sys; from worldmodel.cli import main; assert main(['export', '--help']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_dropout_that_drops_nothing_draws_nothing() -> None:
    graph, aten = torch.fx.Graph(), torch.ops.aten
    x = graph.placeholder("x")
    attention = aten.scaled_dot_product_attention.default
    draws = {
        graph.call_function(aten.dropout.default, (x, 0.1, False)): False,
        graph.call_function(aten.dropout.default, (x, 0.0, True)): False,
        graph.call_function(aten.dropout.default, (x, 0.1, True)): True,
        graph.call_function(attention, (x, x, x, x)): False,
        graph.call_function(attention, (x, x, x), {"dropout_p": 0.1}): True,
        graph.call_function(attention, (x, x, x, None, 0.1)): True,
        graph.call_function(aten.rand_like.default, (x,)): True,
        graph.call_function(aten.relu.default, (x,)): False,
    }
    assert {node: export._draws(node) for node in draws} == draws
