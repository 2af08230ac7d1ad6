"""Data on a GPU: it lies there, batches come from there, and an agent holds it there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit import data_files as files
from worldmodel import presets
from worldmodel.data.formats import open_dataset
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.offline import fill_replay
from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec
from worldmodel.train.hold import hold_all
from worldmodel.types import Update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("home", ["learner", "host", "disk"])
def test_data_is_the_same_wherever_it_lies(home: str, tmp_path: Path) -> None:
    played = files.play((4, 1, 3, 6), (False, True, True, False))
    path = files.d4rl(tmp_path / "a.hdf5", played)
    spec = EnvSpec(
        name="toy", obs={"state": ArraySpec(shape=(3,), dtype="float32")}, action=ActionSpec(kind="continuous", size=2)
    )
    memory = {"latent": ArraySpec(shape=(2,), dtype="float32")}
    config = ReplayConfig(batch_size=4, length=3, capacity=100, device=home)  # type: ignore[arg-type]
    here, there = (
        fill_replay(open_dataset(path), c, spec, memory, device=torch.device(device), seed=0, scratch=tmp_path)
        for c, device in ((config, "cuda"), (replace(config, device="host"), "cpu"))
    )
    assert here.digest() == there.digest()
    one, other = here.sample(), there.sample()
    assert one.reward.is_cuda and torch.equal(one.reward.cpu(), other.reward)
    latent = torch.rand(4, 3, 2)
    for replay, batch, x in ((here, one, latent.cuda()), (there, other, latent)):
        replay.write_back(batch, Update(metrics={}, memory={"latent": x}))
    assert here.digest() == there.digest()
    run = presets.find_preset("dyna").build({"version": "td3bc"})
    agent = replace(run.agent, first=10, recent=100, batch_size=8).build(spec, device="cuda")
    hold_all(agent, here)
    held = agent.seen.at(slice(0, len(agent.seen)))
    assert held.reward.is_cuda and held.reward.tolist() == [r for each in played for r in each.reward.tolist()]
    assert torch.isfinite(agent.learn(here.sample()).metrics["loss/total"])
