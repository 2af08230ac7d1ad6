"""The instrument that asks a world model what it remembers, tried on one that remembers and one that does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tool import load_tool

tool = load_tool("memory")


class Model:
    """Knows the four discs. Its state is the number of the disc that it saw ``age`` steps ago."""

    def __init__(self, discs: Tensor, age: int) -> None:
        self.discs, self.age = discs, age

    def initial(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size)

    def observe(self, state: Tensor, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> Tensor:
        image = obs["image"].float() / 255
        off = (image.unsqueeze(2) - self.discs).square().flatten(3).sum(-1)
        return off.argmin(-1).roll(self.age, 1)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return state

    def predict(self, state: Tensor, action: Tensor, after: Tensor) -> Any:
        return SimpleNamespace(reward=action.gather(1, after.unsqueeze(1)).squeeze(1))

    def decode(self, state: Tensor) -> dict[str, Tensor]:
        return {"image": self.discs[state]}


@pytest.fixture(scope="module")
def episodes() -> Any:
    return tool.Episodes(delay=2, seed=0)


def test_random_play_is_paid_for_the_disc_of_its_episode(episodes: Any) -> None:
    data = episodes.data
    assert episodes.span == 5 and data["is_first"][:, 0].all() and data["is_last"][:, 4].all()
    assert data["is_first"].sum() == data["is_last"].sum() == 64 and data["prev_action"][:, 0].eq(0).all()
    torch.testing.assert_close(data["reward"][:, 4], (data["prev_action"][:, 4].argmax(1) == episodes.cue).float())


def test_who_remembers_is_right_and_who_forgot_is_not(episodes: Any) -> None:
    # the last step that is seen is the question; the disc was three before
    assert tool.ask(Model(episodes.discs, 3), episodes) == {"remembered": 1.0, "right": 1.0}
    forgot = tool.ask(Model(episodes.discs, 1), episodes)
    assert forgot["right"] == forgot["remembered"] < 0.6
