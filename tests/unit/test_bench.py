"""`worldmodel bench`: the arithmetic by a clock that is wound by hand, the peers by a fake one, each part once."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tool import load_tool
from worldmodel import bench, cli
from worldmodel.bench import envs, kernels, peers, report
from worldmodel.bench.parts import Watch
from worldmodel.bench.setup import filled_replay, random_array, random_step
from worldmodel.bench.timing import Block, HostClock, Plan, alternate, percentile, ratios, run_block, summary
from worldmodel.config import to_json
from worldmodel.configs.dmc import proprio, vision
from worldmodel.configs.quickstart import quickstart
from worldmodel.errors import UserError
from worldmodel.kernels import dispatch
from worldmodel.kernels.passes import Case
from worldmodel.types import ArraySpec

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--blocks", "1", "--seconds", "0", "--warmup", "1", "--held", "70", "--train.threads", "1"]
TINY = ["--agent.imagination", "2", "--replay.batch-size", "2", "--replay.length", "4", "--train.num-envs", "2"]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets threads and how they wait."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class WoundClock(HostClock):
    """Time passes when somebody says so; the processor is busy for half of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits = 0

    def work(self, ms: float) -> None:
        self.now += ms

    def wait(self) -> None:
        self.waits += 1

    def wall(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.now / 2


# Timing


def test_a_block_times_each_call_and_waits_only_at_its_edges() -> None:
    clock, spent = WoundClock(), iter([1.0, 2.0, 6.0])
    block = run_block(lambda: clock.work(next(spent)), 3, clock)
    assert block == Block(calls_ms=[1.0, 2.0, 6.0], wall_ms=9.0, cpu_ms=4.5)
    assert clock.waits == 2


def test_blocks_of_subjects_alternate_after_warming_up() -> None:
    clock, order = WoundClock(), []

    def subject(name: str, ms: float) -> Any:
        def run(count: int) -> Block:
            order.append((name, count))
            return run_block(lambda: clock.work(ms), count, clock)

        return run

    blocks = alternate({"a": subject("a", 10.0), "b": subject("b", 1000.0)}, Plan(blocks=2, seconds=0.1, warmup=3))
    # 100 ms in 2 blocks: 5 calls of 10 ms; a call of a second is made once all the same
    assert order == [("a", 3), ("a", 1), ("b", 3), ("b", 1), ("a", 5), ("b", 1), ("a", 5), ("b", 1)]
    assert [block.wall_ms for block in blocks["a"]] == [50.0, 50.0]


def test_summary_by_hand() -> None:
    blocks = [Block(calls_ms=[1.0, 3.0], wall_ms=4.0, cpu_ms=2.0), Block(calls_ms=[5.0, 7.0], wall_ms=14.0, cpu_ms=6.0)]
    assert summary(blocks) == {
        "median_ms": 4.0, "p95_ms": 7.0, "p99_ms": 7.0, "wall_ms": 4.5, "min_ms": 2.0, "max_ms": 7.0, "cpu_ms": 2.0,
        "block_ms": [2.0, 7.0], "calls": 4, "blocks": 2,
    }


def test_percentiles_are_values_that_occurred() -> None:
    calls = [float(i) for i in range(1, 101)]
    assert [percentile(calls, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([3.0], 0.5) == 3.0


def test_ratios_below_one_mean_that_ours_is_faster() -> None:
    ours = [Block(calls_ms=[2.0], wall_ms=2.0, cpu_ms=2.0), Block(calls_ms=[4.0], wall_ms=4.0, cpu_ms=3.0)]
    theirs = [Block(calls_ms=[4.0], wall_ms=4.0, cpu_ms=4.0), Block(calls_ms=[5.0], wall_ms=5.0, cpu_ms=6.0)]
    assert ratios(ours, theirs) == {
        "ratio": round(3 / 4.5, 4), "cpu": 0.5, "paired": 0.65, "paired_min": 0.5, "paired_max": 0.8
    }


@pytest.mark.parametrize("change", [{"blocks": 0}, {"seconds": -1.0}, {"seconds": float("inf")}, {"warmup": 0}])
def test_a_plan_that_measures_nothing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(change))} must be"):
        Plan(**change)


# Parts of an update


class Inner(nn.Module):
    def __init__(self, clock: WoundClock) -> None:
        super().__init__()
        self.clock = clock
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.work(3.0)
        return x * self.weight


class Outer(nn.Module):
    def __init__(self, clock: WoundClock) -> None:
        super().__init__()
        self.clock, self.inner = clock, Inner(clock)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.work(2.0)
        return self.inner(self.inner(x))


def test_each_part_is_told_without_those_it_calls_and_nothing_stays_changed() -> None:
    clock = WoundClock()
    root = nn.ModuleDict({"model": Outer(clock)})
    before = torch.autograd.backward, torch.autograd.grad
    watch = Watch(root, clock)

    def learn() -> None:
        loss = root["model"].loss(torch.ones(()))
        clock.work(5.0)
        loss.register_hook(lambda grad: clock.work(7.0))
        loss.backward()
        clock.work(11.0)

    with watch.open():
        assert watch.phases(learn) == {"forward": 13.0, "backward": 7.0, "optimiser": 11.0}
    assert watch.parts == {"model.loss": 2.0, "model.inner.forward": 6.0}
    assert watch.calls == {"model.loss": 1, "model.inner.forward": 2}
    assert (torch.autograd.backward, torch.autograd.grad) == before
    assert "loss" not in vars(root["model"]) and "forward" not in vars(root["model"].inner)
    learn()
    assert watch.calls["model.loss"] == 1


# Random content


def test_random_content_has_the_types_of_the_spec() -> None:
    g = torch.Generator().manual_seed(0)
    image = random_array(ArraySpec(shape=(4, 4, 3), dtype="uint8"), 2, g)
    index = random_array(ArraySpec(shape=(5,), dtype="int64", classes=3), 2, g)
    flag = random_array(ArraySpec(shape=(), dtype="bool"), 64, g)
    assert image.dtype is torch.uint8 and image.shape == (2, 4, 4, 3) and int(image.max()) > 3
    assert index.dtype is torch.int64 and int(index.min()) >= 0 and int(index.max()) < 3
    assert flag.dtype is torch.bool and bool(flag.any()) and not bool(flag.all())


def test_the_replay_is_full_and_holds_episodes() -> None:
    run = quickstart()
    spec = run.env.build(0).spec
    agent = run.agent.build(spec, device=torch.device("cpu"), seed=0)
    replay = filled_replay(run.replay, spec, agent, 2, 1200, device=torch.device("cpu"), seed=0)
    assert len(replay) == 1200
    assert bool(random_step(spec, 1, 500).is_first) and bool(random_step(spec, 1, 499).is_last)
    batch = replay.sample()
    assert batch.index is not None and batch.context.keys() == agent.memory_spec.keys()


# Peers


ADAPTER = """
from serving import Refused, serve
def setup(folder, request):
    if request.get("refuse"):
        raise Refused("it has no such thing; leave it out")
    if request.get("die"):
        raise RuntimeError("boom")
    print("chatter")
    dreams = request.get("run", {}).get("agent", {}).get("imagination", 0)
    return {"folder": folder.name, "parameters": 5, "settings": f"dreams of {dreams}"}, {"learn": int, "update": int}
serve(setup)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the peer "fake", for which there is an adapter."""
    for part in bench.AGAINST:
        (tmp_path / "peers" / part).mkdir(parents=True)
        (tmp_path / "peers" / part / "fake.py").write_text(ADAPTER)
    serving = ROOT / "tools" / "peers" / "serving.py"
    (tmp_path / "peers" / "serving.py").write_text(serving.read_text())
    monkeypatch.setattr(peers, "ADAPTERS", tmp_path / "peers")
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "fake"\n')
    return folder


def test_a_peer_answers_in_a_process_of_its_own(fake: Path) -> None:
    with peers.Peer(peers.find_adapter(fake, "update"), fake, sys.executable) as peer:
        asked = {"do": "setup", "threads": 1, "device": "cpu"}
        assert peer.ask(asked) == {"folder": "checkout", "parameters": 5, "settings": "dreams of 0"}
        block = peer.subject("learn")(4)
        assert len(block.calls_ms) == 4 and block.wall_ms >= sum(block.calls_ms) > 0
        with pytest.raises(UserError, match="the peer fake: it has no such thing"):
            peer.ask(asked | {"refuse": True})
        with pytest.raises(UserError, match="the peer fake ended: RuntimeError: boom"):
            peer.ask(asked | {"die": True})


def test_a_peer_is_known_by_its_project_or_by_its_package(fake: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    (installed / "fake").mkdir(parents=True)
    (installed / "fake" / "__init__.py").touch()
    assert peers.find_adapter(fake, "update") == peers.ADAPTERS / "update" / "fake.py"
    assert peers.find_adapter(installed, "replay") == peers.ADAPTERS / "replay" / "fake.py"


def test_an_agent_that_holds_what_it_learns_from_is_measured_while_it_learns(tmp_path: Path) -> None:
    small = ["--agent.first", "64", "--agent.value.units", "8", "8", "--agent.policy.units", "8", "8"]
    words = ["--env", "Pendulum-v1", "--version", "sac", *small, "--held", "128", "--json", str(tmp_path / "x.json")]
    assert cli.main(["bench", "update", "dyna", *words, "--blocks", "2", "--seconds", "0", "--warmup", "1"]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["losses"] >= 3 and found["phases"]["backward"] > 0 and found["phases"]["optimiser"] > 0


def test_an_update_beside_a_peer(fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--against", str(fake), "--json", str(tmp_path / "x.json")]
    assert cli.main(["bench", "update", "quickstart", *QUICK, *TINY, *words]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["peer"]["parameters"] == 5 and found["parameters"] > 1000
    assert {"learn, ours", "learn, fake", "learn, ours / fake", "update, ours / fake"} <= found["rows"].keys()
    assert found["rows"]["learn, ours / fake"]["ratio"] > 1
    out = capsys.readouterr().out
    assert "fake 5 parameters" in out.replace("\n", " ") and "of processor time" in out.replace("\n", " ")
    words += ["--agent.imagination", "3", "--peer-options=--agent.imagination 7"]
    assert cli.main(["bench", "update", "quickstart", *QUICK, *TINY, *words]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["peer"]["settings"] == "dreams of 7"


def adapter(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A real adapter as a module; what it imports of its peer it imports later."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "peers"))
    return load_tool(f"peers/{name}")


def test_r2dreamer_gets_the_sizes_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = adapter("update/r2dreamer", monkeypatch)
    found = module.sizes(to_json(vision(size="50m"))["agent"])
    assert {name: found[name] for name in ("deter", "hidden", "discrete", "depth", "units")} == {
        "deter": 4096, "hidden": 512, "discrete": 32, "depth": 32, "units": 512,
    }
    assert found["rep_loss"] == "dreamer" and found["imag_horizon"] == 15
    assert module.sizes(to_json(proprio(size="1m"))["agent"])["deter"] == 512


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (vision(objective="barlow"), "it trains no probe decoder; add --agent.model.probe False"),
        (vision(version="2023", size="1m"), "add --agent.actor.gradient reinforce"),
        (quickstart(), "it has nothing like this run's 'depth'; take a preset like dmc.vision"),
    ],
    ids=["probe", "gradient", "patches"],
)
def test_r2dreamer_refuses_what_it_has_no_word_for(run: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = adapter("update/r2dreamer", monkeypatch)
    with pytest.raises(module.Refused, match=sentence):
        module.sizes(to_json(run)["agent"])


def test_every_adapter_loads_without_its_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in bench.AGAINST:
        names = [path.stem for path in (ROOT / "tools" / "peers" / part).glob("*.py")]
        assert names
        for name in names:
            assert callable(adapter(f"{part}/{name}", monkeypatch).setup)


# The command


def test_the_parts_are_those_that_can_be_measured() -> None:
    assert tuple(report.MEASURES) == bench.PARTS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["updates"], "unknown part to measure 'updates'; did you mean 'update'"),
        (["kernels", "ssd_scn"], "unknown kernel 'ssd_scn'; did you mean 'ssd_scan'"),
        (["kernels", "--blocks", "0"], "--blocks must be at least 1, got 0"),
        (["update", "dmc.vison"], "unknown preset 'dmc.vison'; did you mean 'dmc.vision'"),
        (["update", "--blocks", "0"], "--blocks must be at least 1, got 0"),
        (["update", "--held", "0"], "--held must be at least 1 step, got 0"),
        (["act", "--batches", "0", "4"], "--batches must be numbers of environments, at least 1 each, got [0, 4]"),
        (["envs", "--against", "x"], "--against goes with update, replay, act, not with envs; leave it out"),
        (["act", "--against", "."], "no known peer is there. Known: tdmpc2 for `worldmodel bench act`"),
        (["update", "--against", "/no/where"], "--against /no/where: there is no such folder"),
        (["update", "--against", "."], "is there. Known: r2dreamer, tdmpc2 for `worldmodel bench update`"),
        (["update", "--peer-options=--size 1m"], "--peer-options sizes the peer of `bench update --against PATH`"),
        (["replay", "--against", "."], "no known peer is there. Known: torchrl for `worldmodel bench replay`"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.startswith("worldmodel: ") and err.count("\n") == 1 and out == ""


def test_a_checkout_of_somebody_else_and_a_missing_interpreter(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake / "pyproject.toml").write_text('[project]\nname = "fakr"\n')
    assert cli.main(["bench", "update", "quickstart", *QUICK, "--against", str(fake)]) == 2
    assert "unknown peer 'fakr'; did you mean 'fake'?" in capsys.readouterr().err
    (fake / "pyproject.toml").write_text('[project]\nname = "fake"\n')
    words = ["--against", str(fake), "--peer-python", "/no/python"]
    assert cli.main(["bench", "update", "quickstart", *QUICK, *TINY, *words]) == 2
    assert "--peer-python /no/python cannot be started: No such file" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    words = [*QUICK, *TINY, "--batches", "1", "--json", str(tmp_path / "file" / "x.json")]
    assert cli.main(["bench", "act", "quickstart", *words]) == 75
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("part", bench.PARTS)
def test_each_part_says_what_it_measured_and_where(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    words = [part, "quickstart", *QUICK, *TINY, "--batches", "1", "3", "--json", str(path)]
    assert cli.main(["bench", *words]) == 0
    found = json.loads(path.read_text())
    assert found["part"] == part and found["command"].startswith(f"worldmodel bench {part} quickstart")
    assert found["threads"] == 1 and found["precision"] == "float32" and found["provenance"]["commit"]
    assert found["machine"]["cpu"] and {"load", "load_at_end", "started"} <= found.keys()
    assert "replay.length: 16 -> 4" in found["changed"]
    expected = {
        "update": {"sample", "learn", "write_back", "update"},
        "envs": {"toy/catch, serial", "toy/catch, process", "toy/catch, batched"},
        "replay": {"sample", "add_and_sample", "write_back", "add_1", "add_2", "sample_prioritized"},
        "act": {"1 environments", "3 environments"},
    }[part]
    assert found["rows"].keys() == expected
    assert all(row["median_ms"] > 0 and row["cpu_ms"] >= 0 for row in found["rows"].values())
    if part == "update":
        assert found["finite"] and found["parameters"] > 100_000
        assert found["phases"].keys() == {"forward", "backward", "optimiser"} and min(found["phases"].values()) > 0
        assert {"model.core.observe", "model.core.step", "model.encoder.forward"} <= found["inside"].keys()
    assert found["machine"]["cpu"] in capsys.readouterr().out.replace("\n", " ")


def test_an_environment_is_measured_with_each_of_its_renderers() -> None:
    names = [env.render for env in envs.renderings(vision(render="ray").env)]
    assert names[0] == "ray" and sorted(names) == ["gl", "gl-fast", "ray"]
    assert len(envs.renderings(proprio().env)) == 1 == len(envs.renderings(quickstart().env))


def test_a_renderer_that_does_not_work_says_so_in_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from worldmodel.errors import EnvError

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise EnvError("there is no OpenGL here; use ray")

    monkeypatch.setattr(envs, "make_pool", broken)
    assert cli.main(["bench", "envs", "quickstart", *QUICK]) == 0
    assert "there is no OpenGL here; use ray" in capsys.readouterr().out


# Kernels


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tests run elsewhere."""
    monkeypatch.setattr(kernels, "prove", lambda name, tests: "1 passed")


@pytest.mark.usefixtures("proven")
def test_kernels_are_timed_over_what_the_machine_can_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    words = ["kernels", "lambda_return", "twohot_loss", *QUICK[:6], "--device", "cpu", "--json", str(path)]
    assert cli.main(["bench", *words]) == 0
    found = json.loads(path.read_text())
    assert found["part"] == "kernels" and found["command"].startswith("worldmodel bench kernels lambda_return")
    assert list(found["kernels"]) == ["lambda_return", "twohot_loss"] and found["provenance"]["commit"]
    facts, limits = found["kernels"]["lambda_return"], found["ceilings"]
    assert facts["tests"] == "1 passed"
    # 3 inputs and a result of 256 x 15 floats; with gradients 3 x 3 and 2 x 1 of these
    assert facts["cases"]["256 x 15, forward"] == {"moved": 4 * 256 * 15 * 4, "operations": 6 * 256 * 15}
    assert facts["cases"]["256 x 15, forward and backward"]["moved"] == 11 * 256 * 15 * 4
    row = found["rows"]["lambda_return: 256 x 15, forward: reference"]
    assert row["over_copy"] == pytest.approx(row["median_ms"] * limits["copy_bytes_per_ms"] / 61_440, rel=0.01)
    assert row["over_matmul"] == pytest.approx(row["median_ms"] * limits["matmul_operations_per_ms"] / 23_040, rel=0.01)
    out = capsys.readouterr().out
    assert "lambda_return: 256 x 15, forward" in out and "x copy" in out


def test_an_implementation_that_fails_says_so_in_its_row() -> None:
    def broken() -> None:
        raise RuntimeError("no such instruction\nmore")

    def works() -> object:
        return torch.ones(1) + 1

    case = Case({"reference": works, kernels.COMPILED: works, "b": broken}, 8, 1)
    rows = kernels.measure(
        case, {"copy_bytes_per_ms": 8.0, "matmul_operations_per_ms": 1.0}, torch.device("cpu"),
        Plan(blocks=1, seconds=0, warmup=1),
    )
    assert rows["b"] == {"error": "RuntimeError: no such instruction"}
    assert rows["reference"]["over_copy"] == round(rows["reference"]["median_ms"], 3)
    assert rows[kernels.COMPILED]["over_compiled"] == 1.0 and rows["reference"]["over_compiled"] > 0


def test_a_kernel_whose_tests_fail_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "ROOT", tmp_path)
    kernels.prove.cache_clear()
    words = ["kernels", "lambda_return", *QUICK[:6], "--device", "cpu", "--json", str(tmp_path / "found.json")]
    assert cli.main(["bench", *words]) == 2
    assert "which only a checkout has" in capsys.readouterr().err
    folder = tmp_path / "tests" / "kernels"
    folder.mkdir(parents=True)
    (folder / "test_lambda_return.py").write_text("def test_it():\n    assert 1 == 2\n")
    kernels.prove.cache_clear()
    assert cli.main(["bench", *words]) == 2
    said = capsys.readouterr().err
    assert "the tests of lambda_return do not pass, so nothing is reported: FAILED tests/kernels/test_lambda" in said
    assert not (tmp_path / "found.json").exists()
    (folder / "test_lambda_return.py").write_text("def test_it():\n    pass\n")
    kernels.prove.cache_clear()
    assert kernels.prove("lambda_return", ("test_lambda_return.py",)).startswith("1 passed")
    kernels.prove.cache_clear()


def test_every_kernel_names_tests_that_exist() -> None:
    assert set(kernels.KERNELS) == set(dispatch.DEFAULTS)
    for name in kernels.KERNELS:
        tests = importlib.import_module(f"worldmodel.kernels.{name}.bench").TESTS
        assert tests and all((ROOT / "tests" / "kernels" / test).is_file() for test in tests)
