"""``worldmodel bench reach``: what its experiments are made of, what it says, and, reduced, that the problem is there
and that the cure works."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from worldmodel import cli
from worldmodel.bench import reach
from worldmodel.configs.reach import arm, pendulum, plateau, reduced, studies
from worldmodel.models.analytic import Point
from worldmodel.models.arm import Arm
from worldmodel.models.plateau import Plateau


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_edge_of_reach_kills_and_knowing_it_cures() -> None:
    """The plateau, at a third of the updates and with one seed: what the whole bench shows, in half a minute."""
    study = plateau()
    base, ours = (study.run(name, seed=0, updates=2400) for name in ("base", "reach"))
    assert max(base["curve"]["value/mean"]) > 1.15 * max(ours["curve"]["value/mean"])
    assert base["return"] < 0.0 < 0.7 < ours["return"]
    assert ours["value/mean"] < 20.0
    # by construction known: how often dreams stand where no dream may leave from
    assert base["curve"]["reach/beyond_share"][-1] > 2 * ours["curve"]["reach/beyond_share"][-1]


def test_the_best_return_is_that_of_walking_outwards() -> None:
    study = plateau()
    start = torch.tensor([[0.5, -0.25]])
    state, total = Point(x=start), 0.0
    for _ in range(30):
        action = (torch.tensor([[3.5, 0.0]]) - state.x).clamp(-1, 1)
        arrived = study.truth.step(state, action)
        total += float(study.truth.predict(state, action, arrived).reward)
        state = arrived
    assert study.best is not None and float(study.best(start)) == pytest.approx(total)


def test_the_controller_swings_up_and_its_data_is_of_medium_quality() -> None:
    study = pendulum()
    data = study.data(torch.Generator().manual_seed(0))
    assert data.reward.shape == (20, 201)
    return_ = float(data.reward.sum(1).mean())
    assert -700 < return_ < -120
    upright = data.obs["vector"][:, -50:, 0]
    assert float((upright > 0.9).float().mean()) > 0.7


def test_the_arm_is_gymnasiums_and_its_controller_reaches() -> None:
    pytest.importorskip("mujoco")
    env, truth = gymnasium.make("Reacher-v5"), Arm()
    rng = np.random.default_rng(0)
    x, _ = env.reset(seed=1)
    for _ in range(10):
        action = rng.uniform(-1, 1, 2)
        after, reward, *_ = env.step(action)
        before = Point(x=torch.tensor(x, dtype=torch.float32)[None])
        taken = torch.tensor(action, dtype=torch.float32)[None]
        arrived = truth.step(before, taken)
        assert torch.allclose(arrived.x[0], torch.tensor(after, dtype=torch.float32), atol=1e-5)
        assert float(truth.predict(before, taken, arrived).reward) == pytest.approx(reward, abs=1e-5)
        x = after
    study = arm()
    data = study.data(torch.Generator().manual_seed(0))
    # random actions get -43, the best about -4
    assert data.reward.shape == (40, 51) and -25 < float(data.reward.sum(1).mean()) < -8
    found = replace(study, steps=5, discount=0.5).run("reach", seed=0, updates=3)
    assert math.isfinite(found["bias"]) and found["return"] < 0


def test_data_lies_where_reach_is_counted_from() -> None:
    for name in ("plateau", "dreamer"):
        data = studies()[name].data(torch.Generator().manual_seed(0))
        assert float(Plateau.rho(data.obs["vector"][:, 0]).max()) <= 1


def test_verdicts_are_of_every_seed_or_of_their_mean() -> None:
    study = plateau()
    runs = {"0": {"value/mean": 19.0, "return": -0.5}, "1": {"value/mean": 25.0, "return": -0.1}}
    verdicts = study.verdicts({"base": {"seeds": runs}})
    assert [v["passed"] for v in verdicts] == [False, True]
    runs = {"0": {"bias": 300, "return": -1300}, "1": {"bias": 600, "return": -1200}}
    means = pendulum().verdicts({"base": {"seeds": runs}})
    assert [v["found"] for v in means] == [[450.0], [-1250.0]] and all(v["passed"] for v in means)


def test_a_quick_look_has_all_that_verdicts_are_about() -> None:
    for study in studies().values():
        quick = reduced(study)
        assert {variant for variant, *_ in study.accept} == set(quick.variants)
        assert all(variant.seeds == 1 for variant in quick.variants.values())


def test_the_command_writes_tables_and_figures_and_keeps_what_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, words = tmp_path / "reach.json", ["bench", "reach", "--updates", "20", "--seeds", "1", "--parallel", "1"]
    words += ["--json", str(out), "--figures", str(tmp_path), "--markdown", str(tmp_path / "a.md"), "--variants"]
    for extra in (["base", "plateau"], ["base", "dreamer"], ["reach", "plateau"]):
        name, experiment = extra
        code = cli.main([*words[:2], experiment, *words[2:], name])
        assert code == 1  # nothing is learned in 20 updates, so no verdict holds
    found = json.loads(out.read_text())
    assert set(found["experiments"]["plateau"]["variants"]) == {"base", "reach"} and "dreamer" in found["experiments"]
    assert "FAILS" in capsys.readouterr().out
    for name in ("value", "edge", "bias"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "a.md").read_text()
    assert "### Plateau" in text and "| base | min of 2 critics | 1 |" in text
    assert reach.passed({"experiments": {}}) and not reach.passed(found)


@pytest.mark.parametrize(("words", "said"), [
    (["platau"], "unknown experiment 'platau'; did you mean 'plateau'"),
    (["plateau", "--variants", "bass"], "unknown variant of plateau 'bass'; did you mean 'base'"),
    (["--seeds", "0"], "--seeds and --parallel must be at least 1"),
])
def test_mistakes_are_sentences(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "reach", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_was_run_is_kept_when_the_next_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "reach.json", reach._job

    def job(task: tuple[str, str, int, int]) -> dict[str, Any]:
        if task[1] == "reach":
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(reach, "_job", job)
    words = ["--updates", "20", "--seeds", "1", "--parallel", "1", "--json", str(out), "--variants", "base", "reach"]
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        cli.main(["bench", "reach", "plateau", *words])
    assert set(json.loads(out.read_text())["experiments"]["plateau"]["variants"]) == {"base"}


def test_seeds_of_an_earlier_call_stay_until_they_are_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"return": 0.0, "bias": 0.0, "value/mean": 0.0, "seconds": 0.0}
    monkeypatch.setattr(reach, "_job", lambda task: found)
    seeds = {str(seed): found | {"return": 1.0} for seed in range(3)}
    earlier = {"experiments": {"plateau": {"variants": {"base": {"said": "", "seeds": seeds}}}}}
    kept: list[dict[str, Any]] = []
    reach.document(
        ["plateau"], seeds=2, variants=["base"], updates=1, quick=False, parallel=1, said={}, say=lambda text: None,
        earlier=earlier, keep=lambda so_far: kept.append(json.loads(json.dumps(so_far))),
    )
    returns = [
        [run["return"] for run in so_far["experiments"]["plateau"]["variants"]["base"]["seeds"].values()]
        for so_far in kept
    ]
    assert returns == [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
