"""TD-MPC2 captured as CUDA graphs learns and plans as it does eagerly, and draws new noise in every replay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.models import make_batch
from tests.unit.test_implicit import vectors
from tests.unit.test_tdmpc2 import SMALL, now
from worldmodel import tree
from worldmodel.agents.tdmpc2.agent import TDMPC2
from worldmodel.train.compile import accelerate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda")


def pair() -> tuple[TDMPC2, TDMPC2]:
    """The same agent twice, float32: eager and captured."""
    config = replace(SMALL, precision="float32")
    eager, fast = (config.build(vectors(5, 2), device=DEVICE) for _ in range(2))
    assert accelerate(fast, "cudagraph", DEVICE) == "cudagraph"
    return eager, fast


def test_captured_updates_equal_eager_ones() -> None:
    eager, fast = pair()
    for seed in range(5):
        batch = tree.to(make_batch(eager.spec, 6, 4, seed=seed, firsts=((1, 2),)), DEVICE)
        for agent in (eager, fast):
            agent.learn(batch)
        theirs = fast.state_dict()
        for name, mine in eager.state_dict().items():
            torch.testing.assert_close(theirs[name].float(), mine.float(), rtol=1e-3, atol=1e-5, msg=name)


def test_a_captured_plan_equals_an_eager_one_and_its_noise_goes_on() -> None:
    eager, fast = pair()
    carries = [agent.initial(2, seed=3) for agent in (eager, fast)]
    for agent in (eager, fast):
        agent.learn(tree.to(make_batch(agent.spec, 6, 4, firsts=()), DEVICE))
    seen = []
    for i in range(3):
        step = now(eager, first=i == 0)
        actions = []
        for at, agent in enumerate((eager, fast)):
            action, carries[at] = agent.act(carries[at], step, explore=True)
            actions.append(action)
        torch.testing.assert_close(actions[1], actions[0], rtol=1e-3, atol=1e-4)
        seen.append(actions[1].clone())
    assert not torch.equal(seen[1], seen[2])
