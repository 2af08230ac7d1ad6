"""Captured as CUDA graphs an agent learns and acts as it does eagerly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.agents.dreamer.agent import Carry, Dreamer
from worldmodel.configs.sizes import OBJECTIVES
from worldmodel.train.compile import Captured, Mode, accelerate
from worldmodel.types import Step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda")


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pair(kind: str = "discrete", *, mode: Mode = "cudagraph", **changes: Any) -> tuple[Dreamer, Dreamer]:
    """The same agent twice, float32: eager and accelerated."""
    spec = make_spec(kind, vector=True)
    config = make_agent(spec, precision="float32", warmup=2, lr=1e-3, **changes).config
    eager, fast = (config.build(spec, device=DEVICE) for _ in range(2))
    assert accelerate(fast, mode, DEVICE) == mode
    return eager, fast


def batch_of(agent: Dreamer, seed: int) -> Any:
    return tree.to(make_batch(agent.spec, seed=seed), DEVICE)


def assert_same_state(eager: Dreamer, fast: Dreamer, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Weights, slow critic, moments, step count, return scale, counters; random streams to the bit."""
    theirs = fast.state_dict()
    for name, mine in eager.state_dict().items():
        if name.startswith(("rng/", "count/")) or name == "optim/count":
            assert torch.equal(mine, theirs[name]), name
        else:
            def explain(text: str, name: str = name) -> str:
                return f"{name}: {text}"

            torch.testing.assert_close(theirs[name], mine, rtol=rtol, atol=atol, msg=explain)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_captured_updates_equal_eager_ones(kind: str, objective: str) -> None:
    eager, fast = pair(kind, objective=objective)
    for seed in range(5):
        one, two = eager.learn(batch_of(eager, seed)), fast.learn(batch_of(fast, seed))
        for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True):
            torch.testing.assert_close(b.float(), a.float(), rtol=1e-2, atol=1e-3)
        # the first call captures: its warm-up must leave no trace
        assert_same_state(eager, fast)
    assert isinstance(fast.steps["learn"], Captured) and len(fast.steps["learn"].graphs) == 1
    assert not torch.equal(fast.optimizer.mu, torch.zeros_like(fast.optimizer.mu)), "something was learned"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_and_captured_updates_equal_eager_ones() -> None:
    eager, fast = pair("continuous", mode="compile+cudagraph")
    for seed in range(4):
        eager.learn(batch_of(eager, seed))
        fast.learn(batch_of(fast, seed))
    assert_same_state(eager, fast, rtol=1e-3, atol=1e-4)


def test_each_replay_draws_new_random_numbers() -> None:
    _, fast = pair()
    batch = batch_of(fast, 0)
    drawn = [fast.learn(batch).memory["stoch"].clone() for _ in range(3)]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_replayed_update_never_waits_for_the_device() -> None:
    _, fast = pair()
    batch = batch_of(fast, 0)
    fast.learn(batch)
    with no_waiting():
        fast.learn(batch)


def test_an_update_that_is_not_finite_is_skipped_inside_the_graph() -> None:
    eager, fast = pair()
    poison = [1.0, float("nan"), float("nan"), 1.0]
    for seed, factor in enumerate(poison):
        for agent in (eager, fast):
            batch = batch_of(agent, seed)
            batch.reward.mul_(factor)
            agent.learn(batch)
    assert fast.skipped.total.item() == 2 and fast.skipped.streak.item() == 0
    assert_same_state(eager, fast)


def steps_of(agent: Dreamer, count: int, length: int) -> list[Step]:
    batch = make_batch(agent.spec, count, length, firsts=tuple((row, 0) for row in range(count)))
    fields = ("reward", "is_first", "is_last", "is_terminal")
    return [
        Step(obs={k: v[:, t] for k, v in batch.obs.items()}, **{name: getattr(batch, name)[:, t] for name in fields})
        for t in range(length)
    ]


def act(agent: Dreamer, carry: Carry, steps: list[Step], *, explore: bool = True) -> tuple[torch.Tensor, Carry]:
    chosen = []
    for step in steps:
        action, carry = agent.act(carry, step, explore=explore)
        chosen.append(action)
    return torch.stack(chosen), carry


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("explore", [True, False])
def test_captured_acting_equals_eager_acting(kind: str, explore: bool) -> None:
    eager, fast = pair(kind)
    steps = steps_of(eager, 2, 6)
    (one, left), (two, right) = (act(a, a.initial(2, seed=5), steps, explore=explore) for a in (eager, fast))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    assert torch.equal(left.rng, right.rng)
    for a, b in zip(tree.leaves(left.state), tree.leaves(right.state), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_carries_of_one_agent_do_not_overwrite_each_other() -> None:
    _, fast = pair()
    steps = steps_of(fast, 2, 4)
    alone, kept = act(fast, fast.initial(2, seed=1), steps)
    before = [x.clone() for x in tree.leaves(kept)]
    # another carry of the same size, and one of another size, as an evaluation has them
    act(fast, fast.initial(2, seed=2), steps)
    act(fast, fast.initial(3, seed=3), steps_of(fast, 3, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, tree.leaves(kept)))
    again, _ = act(fast, fast.initial(2, seed=1), steps)
    assert torch.equal(alone, again)
    assert isinstance(fast.steps["act"], Captured) and len(fast.steps["act"].graphs) == 2


def test_acting_follows_what_was_learned_after_the_capture() -> None:
    eager, fast = pair()
    steps = steps_of(eager, 2, 3)
    for agent in (eager, fast):
        act(agent, agent.initial(2), steps)
        for seed in range(4):
            agent.learn(batch_of(agent, seed))
    (one, _), (two, _) = (act(a, a.initial(2, seed=5), steps, explore=False) for a in (eager, fast))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


def test_weights_loaded_after_the_capture_are_what_the_graph_learns_on() -> None:
    eager, fast = pair()
    for seed in range(2):
        eager.learn(batch_of(eager, seed))
        fast.learn(batch_of(fast, 7 + seed))
    places = [x.data_ptr() for x in fast.state_dict().values() if x.is_cuda]
    fast.load_state_dict({name: x.clone() for name, x in eager.state_dict().items()})
    assert places == [x.data_ptr() for x in fast.state_dict().values() if x.is_cuda]
    assert_same_state(eager, fast, rtol=0, atol=0)
    for seed in range(2, 5):
        eager.learn(batch_of(eager, seed))
        fast.learn(batch_of(fast, seed))
    assert_same_state(eager, fast)


def test_a_tensor_on_the_host_is_refused() -> None:
    captured = Captured(lambda x: x + 1, dict, DEVICE)
    with pytest.raises(TypeError, match="takes tensors on cuda, got one on cpu"):
        captured(torch.zeros(2))
    first = captured(torch.zeros(2, device=DEVICE)).tolist()
    assert first == [1.0, 1.0] and captured(torch.ones(2, device=DEVICE)).tolist() == [2.0, 2.0]
