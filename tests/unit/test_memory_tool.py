"""The instrument that asks a world model what it remembers, tried on one that remembers and one that does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

PATH = Path(__file__).resolve().parents[2] / "tools" / "memory.py"
_spec = importlib.util.spec_from_file_location("memory_tool", PATH)
assert _spec is not None and _spec.loader is not None
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


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
def play() -> Any:
    return tool.Play(delay=2, seed=0)


def test_random_play_is_paid_for_the_disc_of_its_episode(play: Any) -> None:
    data = play.data
    assert play.span == 5 and data["is_first"][:, ::5].all() and data["is_first"].sum() == data["is_last"].sum()
    assert data["prev_action"][data["is_first"]].eq(0).all() and data["action"][data["is_last"]].eq(0).all()
    cue = torch.from_numpy(play.cues[0])
    torch.testing.assert_close(data["reward"][:, 4], (data["prev_action"][:, 4].argmax(1) == cue).float())


def test_who_remembers_is_right_and_who_forgot_is_not(play: Any) -> None:
    batch, _, discs = play.questions()
    # the last step that is seen is the question; the disc was three before
    assert batch.reward.shape == (64, 4)
    assert tool.ask(Model(discs, 3), play) == {"remembered": 1.0, "right": 1.0}
    forgot = tool.ask(Model(discs, 1), play)
    assert forgot["right"] == forgot["remembered"] < 0.6
