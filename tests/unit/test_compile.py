"""Compiling changes how fast an agent is, and nothing of what it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.agents.dreamer.agent import Dreamer
from worldmodel.agents.random.agent import RandomConfig
from worldmodel.configs.sizes import OBJECTIVES
from worldmodel.errors import UserError
from worldmodel.models.cores.mamba import MambaConfig
from worldmodel.models.cores.transformer import TransformerConfig
from worldmodel.protocols import Compiles
from worldmodel.train.compile import accelerate
from worldmodel.types import Step

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


def pair(kind: str, objective: str, gradient: str = "reinforce") -> tuple[Dreamer, Dreamer]:
    """The same small agent twice."""
    spec = make_spec(kind, vector=True, size=2)
    config = make_agent(spec, objective=objective, imagination=1, warmup=0).config
    config = dataclasses.replace(config, actor=dataclasses.replace(config.actor, gradient=gradient))  # type: ignore[arg-type]
    return config.build(spec), config.build(spec)


def compile_parts(agent: Dreamer, backend: str) -> list[str]:
    """Every part by ``backend``, without a break in its graph; the list fills with the parts that get compiled."""
    seen: list[str] = []
    for name, part in agent.parts.items():

        def note(module: Any, inputs: Any, name: str = name) -> Any:
            seen.append(name)
            return torch._dynamo.lookup_backend(backend)(module, inputs)

        agent.parts[name] = torch.compile(part, fullgraph=True, dynamic=False, backend=note)
    return seen


def learn_both(eager: Dreamer, fast: Dreamer, updates: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Everything that must agree after some updates on short batches: metrics, latents, weights, moments, streams."""
    pairs = []
    for i in range(updates):
        batch = make_batch(eager.spec, 2, 3, seed=i, firsts=((1, 1),))
        one, two = eager.learn(batch), fast.learn(batch)
        assert one.metrics.keys() == two.metrics.keys()
        pairs += zip(tree.leaves(one), tree.leaves(two), strict=True)
    state = fast.state_dict()
    return pairs + [(x, state[name]) for name, x in eager.state_dict().items()]


CASES = [(kind, objective, "reinforce") for kind in ("discrete", "continuous") for objective in OBJECTIVES]


@pytest.mark.parametrize(("kind", "objective", "gradient"), [*CASES, ("continuous", "reconstruction", "dynamics")])
def test_an_update_traces_without_a_break_and_learns_the_same(kind: str, objective: str, gradient: str) -> None:
    eager, traced = pair(kind, objective, gradient)
    seen = compile_parts(traced, "eager")
    pairs = learn_both(eager, traced)
    assert seen == ["losses", "optimizer"], "one graph each, and the second update needed no other"
    assert all(torch.equal(a, b) for a, b in pairs)


CORES = {
    "mamba": MambaConfig(d_model=16, layers=1, headdim=8, d_state=4, stoch=3, classes=4, dropout=0.1),
    "transformer": TransformerConfig(width=8, layers=1, heads=2, ffn=8, window=4, stoch=3, classes=4, dropout=0.1),
}


@pytest.mark.parametrize("core", CORES)
def test_an_update_of_another_core_traces_without_a_break_and_learns_the_same(core: str) -> None:
    spec = make_spec()
    starts = {"starts": "window", "windows": 3, "window": 2}
    config = make_agent(spec, imagination=1, warmup=0, model={"core": CORES[core]}, **starts).config
    eager, traced = config.build(spec), config.build(spec)
    seen = compile_parts(traced, "eager")
    pairs = learn_both(eager, traced)
    assert seen == ["losses", "optimizer"], "one graph each, and the second update needed no other"
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_forward_and_backward_are_traced_to_the_same_numbers() -> None:
    eager, traced = pair("discrete", "reconstruction")
    compile_parts(traced, "aot_eager")
    assert all(torch.equal(a, b) for a, b in learn_both(eager, traced))


@pytest.mark.parametrize(("kind", "explore"), [("discrete", True), ("continuous", True), ("continuous", False)])
def test_acting_traces_without_a_break_and_chooses_the_same(kind: str, explore: bool) -> None:
    eager, traced = pair(kind, "barlow")
    seen = compile_parts(traced, "eager")
    batch = make_batch(eager.spec, 2, 3, firsts=((0, 0), (1, 0), (1, 1)))
    carries = [agent.initial(2, seed=3) for agent in (eager, traced)]
    for t in range(3):
        step = Step(
            obs={key: x[:, t] for key, x in batch.obs.items()},
            **{name: getattr(batch, name)[:, t] for name in ("reward", "is_first", "is_last", "is_terminal")},
        )
        chosen = []
        for i, agent in enumerate((eager, traced)):
            action, carries[i] = agent.act(carries[i], step, explore=explore)
            chosen.append(action)
        assert torch.equal(*chosen)
    assert seen == ["act"] and all(torch.equal(a, b) for a, b in zip(tree.leaves(carries[0]), tree.leaves(carries[1])))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_by_inductor_an_update_agrees_with_eager_mode() -> None:
    eager, fast = pair("continuous", "reconstruction")
    assert accelerate(fast, "compile", CPU) == "compile"
    for a, b in learn_both(eager, fast):
        # LaProp divides a gradient by its own size: where that is near 0, rounding decides the step
        torch.testing.assert_close(a, b, rtol=1e-3, atol=5e-4)
    assert torch.equal(eager.streams["learn"].state, fast.streams["learn"].state), "the same random numbers"


def test_on_a_cpu_auto_is_eager() -> None:
    agent = make_agent()
    steps, parts = dict(agent.steps), dict(agent.parts)
    assert isinstance(agent, Compiles)
    assert accelerate(agent, "auto", CPU) == "eager" and (agent.steps, agent.parts) == (steps, parts)


def test_an_agent_without_parts_stays_as_it_is() -> None:
    agent = RandomConfig().build(make_spec())
    assert not isinstance(agent, Compiles) and accelerate(agent, "compile", CPU) == "eager"


def test_what_the_machine_cannot_do_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cudagraph needs a GPU, and the device is cpu; use compile, eager or auto"):
        accelerate(make_agent(), "cudagraph", CPU)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is none; install g\+\+ or use eager"):
        accelerate(make_agent(), "compile", CPU)
