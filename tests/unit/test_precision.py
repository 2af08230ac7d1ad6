"""Mixed precision, and the promise that an update never waits for the device."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.configs.sizes import OBJECTIVES
from worldmodel.rng import Stream


def test_auto_precision_is_float32_on_a_cpu():
    assert make_agent().precision == "float32"
    assert make_agent(precision="bfloat16").precision == "bfloat16"


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_bfloat16_learns_with_float32_losses_and_parameters(objective, kind):
    spec = make_spec(kind, vector=True)
    agent = make_agent(spec, objective=objective, precision="bfloat16")
    batch = make_batch(spec)
    for _ in range(3):
        update = agent.learn(batch)
    assert all(torch.isfinite(x) and x.dtype == torch.float32 for x in update.metrics.values())
    losses, _, states = agent.losses(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {x.dtype for x in tree.leaves(states)} == {torch.float32}
    assert {p.dtype for p in agent.modules.parameters()} == {torch.float32}


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_bfloat16_leaves_no_parameter_without_gradient(gradient):
    """Autocast reuses the first cast of a weight: one made without gradient must not serve a later use with it."""
    spec = make_spec("continuous", vector=True)
    config = make_agent(spec, precision="bfloat16").config
    agent = dataclasses.replace(config, actor=dataclasses.replace(config.actor, gradient=gradient)).build(spec)
    batch = make_batch(spec)
    for _ in range(3):  # zero-initialised heads pass no gradient on
        agent.learn(batch)
    agent.optimizer.zero_grad()
    agent.total(agent.losses(batch)[0]).backward()
    assert [n for n, p in agent.modules.named_parameters() if p.requires_grad and p.grad.abs().sum() == 0] == []


def test_bfloat16_losses_are_close_to_float32():
    spec = make_spec("continuous", vector=True)
    batch = make_batch(spec)
    means = {}
    for precision in ("float32", "bfloat16"):
        agent = make_agent(spec, precision=precision)
        with Stream(seed=3):
            means[precision] = {name: loss.mean().item() for name, loss in agent.losses(batch)[0].items()}
    for name in ("reconstruction", "reward", "continue"):
        assert means["bfloat16"][name] == pytest.approx(means["float32"][name], rel=0.03), name
    assert means["bfloat16"] != means["float32"], "bfloat16 was not used at all"


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_an_update_reads_no_tensor_on_the_host(objective, kind):
    """Tensors of the meta device have no content: whatever would wait for a GPU's result fails here."""
    meta = torch.zeros(2, device="meta")
    with pytest.raises(RuntimeError):
        meta.sum().item()
    spec = make_spec(kind, vector=True, size=2)
    agent = make_agent(spec, objective=objective).config.build(spec, device="meta")
    update = agent.learn(tree.to(make_batch(spec), "meta"))
    assert {x.device.type for x in tree.leaves((update.metrics, update.memory, update.priority))} == {"meta"}


def test_a_random_state_of_another_kind_of_device_becomes_a_seed():
    foreign = torch.arange(16, dtype=torch.uint8)

    def draw(state: torch.Tensor) -> torch.Tensor:
        with Stream(state=state):
            return torch.rand(4)

    assert torch.equal(draw(foreign), draw(foreign.clone())) and not torch.equal(draw(foreign), draw(foreign + 1))
    own = Stream(seed=5).state
    assert torch.equal(Stream(state=own).state, own)


def test_an_agent_saved_on_a_gpu_loads_on_a_cpu_and_learns_on():
    spec = make_spec()
    agent, batch = make_agent(spec), make_batch(spec)
    saved = {name: x.clone() for name, x in agent.state_dict().items()}
    saved |= {name: torch.arange(16, dtype=torch.uint8) for name in saved if name.startswith("rng/")}
    agent.load_state_dict(saved)
    assert torch.isfinite(agent.learn(batch).metrics["loss/total"])
