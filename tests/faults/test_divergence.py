"""F9: NaN in a loss, a gradient, a parameter, an imagined return. It is skipped and counted, or ends the run; it is
never in a checkpoint, and what shows the cause is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.tiny import STEPS, newest, resume, rows, train
from worldmodel.agents.dreamer import agent as dreamer
from worldmodel.agents.dreamer.agent import Dreamer
from worldmodel.models.latent import LatentWorldModel
from worldmodel.train.checkpoint import Checkpoint, open_checkpoint
from worldmodel.types import Batch, Update

FAULTS = ("loss", "gradient", "imagined return", "critic", "model")
QUICK = ("--train.eval-every", "0")
PASSING = FAULTS[:3]
"""What can be over with the next update; a parameter that is NaN stays so."""


def inject(monkeypatch: pytest.MonkeyPatch, fault: str, is_due: Callable[[int], bool]) -> None:
    """From now on update number n (from 0) of a Dreamer meets ``fault`` where ``is_due(n)``."""
    learn, number = Dreamer.learn, [-1]

    def faulty(agent: Dreamer, batch: Batch) -> Update:
        number[0] += 1
        if not is_due(number[0]):
            return learn(agent, batch)
        with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
            if fault == "loss":
                total = agent.total
                patch.setattr(agent, "total", lambda losses: total(losses) * torch.nan)
            elif fault == "imagined return":
                targets = dreamer.imagined_targets
                patch.setattr(dreamer, "imagined_targets", lambda **given: [x * torch.inf for x in targets(**given)])
            elif fault == "gradient":
                stack.callback(next(agent.actor.parameters()).register_hook(lambda g: g * torch.nan).remove)
            else:
                module = {"critic": agent.value, "model": agent.model}[fault]
                next(module.parameters()).data.fill_(torch.nan)
            return learn(agent, batch)

    monkeypatch.setattr(Dreamer, "learn", faulty)


def updates(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run_dir) if "update/skipped" in row]


def assert_finite(checkpoint: Checkpoint) -> None:
    groups = {name: checkpoint.tensors(name) for name in checkpoint.groups()}
    groups |= {path.name: load_file(path) for path in checkpoint.folder("replay").glob("*.safetensors")}
    broken = [
        f"{group}/{name}" for group, held in groups.items() for name, x in held.items()
        if x.is_floating_point() and not torch.isfinite(x).all()
    ]
    assert broken == []


@pytest.mark.parametrize("fault", PASSING)
def test_one_bad_update_is_skipped_and_counted(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, fault, lambda n: n in (3, 5))
    assert train(tmp_path / "run", *QUICK) == 0
    last = updates(tmp_path / "run")[-1]
    assert last["update/skipped"] == 2 and last["update/bad_streak"] == 0 and last["updates"] > 8
    assert newest(tmp_path / "run").step == STEPS
    assert_finite(newest(tmp_path / "run"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_divergence_ends_the_run_and_is_kept_apart_from_the_checkpoints(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    inject(monkeypatch, fault, lambda n: n >= 9)
    assert train(run_dir, *QUICK, "--train.max-bad-updates", "9") == 70
    told = capsys.readouterr().err
    assert told.startswith("worldmodel: ") and told.count("\n") == 1
    (kept,) = (run_dir / "diverged").iterdir()
    assert str(kept) in told
    assert_finite(newest(run_dir))
    dump = open_checkpoint(kept)
    assert {"obs/image", "reward", "index"} <= dump.tensors("batch").keys()
    assert "learn" in dump.tensors("agent_rng")
    monkeypatch.undo()
    assert resume(run_dir) == 0, "the last good checkpoint goes on"
    assert newest(run_dir).step == STEPS


def test_latents_that_are_not_finite_do_not_get_into_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, calls = LatentWorldModel.pack, [0]

    def poisoned(model: LatentWorldModel, state: object) -> dict[str, torch.Tensor]:
        packed = pack(model, state)
        calls[0] += 1
        if calls[0] % 3 == 0 and packed["deter"].dim() == 3:  # of an update, (B, T, D)
            packed["deter"][0, 1, 2] = torch.nan
        return packed

    monkeypatch.setattr(LatentWorldModel, "pack", poisoned)
    assert train(tmp_path / "run", *QUICK) == 0
    assert updates(tmp_path / "run")[-1]["update/skipped"] == 0
    assert_finite(newest(tmp_path / "run"))
