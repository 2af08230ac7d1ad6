"""The number of CPU threads is measured, and measuring teaches the agent nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.unit.models import make_agent, make_spec
from worldmodel.train.threads import tune_threads
from worldmodel.types import Batch, Update


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Timed:
    """An agent whose updates take as long as a table says; also the clock."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.agent, self.seconds, self.now, self.tried = make_agent(), seconds, 0.0, []
        self.memory_spec, self.state_dict, self.load_state_dict = (
            self.agent.memory_spec, self.agent.state_dict, self.agent.load_state_dict
        )

    def learn(self, batch: Batch) -> Update:
        threads = torch.get_num_threads()
        self.now += self.seconds[threads]
        self.tried.append(threads)
        return Update(metrics={}, memory={})

    def tune(self, cores: int) -> int:
        return tune_threads(
            self, make_spec(), batch_size=2, length=3, cores=cores, clock=lambda: self.now  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("seconds", "best", "tried"),
    [
        ({4: 0.4, 2: 0.3, 1: 0.2}, 1, {4, 2, 1}),
        ({4: 0.4, 2: 0.3, 1: 0.5}, 2, {4, 2, 1}),
        ({4: 0.1, 2: 0.3, 1: 0.05}, 4, {4, 2}),
        ({4: 9.0, 2: 1.0, 1: 1.0}, 4, {4}),
    ],
    ids=["one", "some", "all", "large"],
)
def test_the_fastest_number_of_threads_is_kept(seconds: dict[int, float], best: int, tried: set[int]) -> None:
    agent = Timed(seconds)
    assert agent.tune(4) == best == torch.get_num_threads() and set(agent.tried) == tried


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_the_agent_is_afterwards_as_it_was(kind: str) -> None:
    spec = make_spec(kind, vector=True)
    agent = make_agent(spec)
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    assert tune_threads(agent, spec, batch_size=2, length=3, cores=1) == 1
    after = agent.state_dict()
    assert [name for name, x in before.items() if not torch.equal(x, after[name])] == []
