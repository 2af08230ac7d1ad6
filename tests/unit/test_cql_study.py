"""The study that tells a critic's fault from a policy's, at a tiny size, and that its greedy agent is the critic's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tool import load_tool
from worldmodel.envs.pool import make_pool
from worldmodel.types import Transitions

tool = load_tool("cql_study")


def test_greedy_follows_the_critic_whatever_the_policy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(tool.ENV, 1, kind="serial")
    agent = tool.build(weight=5.0).build(pool.spec, seed=0)
    zero = torch.zeros(8)
    agent.seen.add(still(zero))
    taken: list[float] = []

    def value(x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return -(action[..., 0] - 0.4).square()

    def played(who: Any, pool: Any, *, explore: bool, **rest: Any) -> Any:
        action, _ = who.act(who.initial(1, seed=0), pool.reset(0), explore=explore)
        taken.append(float(action))
        return tool.SimpleNamespace(mean=0.0)

    monkeypatch.setattr(agent.value, "value", value)
    monkeypatch.setattr(tool, "evaluate", played)
    found = tool.look(agent, pool, 1)
    assert taken[2] == pytest.approx(0.4) and abs(taken[0]) < 0.1  # the policy has learned nothing
    assert found["q_data"] == pytest.approx(-0.16) and found["q_spread"] == pytest.approx(1.96)
    pool.close()


def still(zero: torch.Tensor) -> Transitions:
    x, action = torch.zeros(8, 3), torch.zeros(8, 1)
    return Transitions(x=x, action=action, reward=zero, next_x=x, terminal=zero, edge=zero)


def test_both_halves_of_every_run_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads = tmp_path / "study.json", torch.get_num_threads()
    words = ["--updates", "4", "--episodes", "1", "--data", "8", "--out", str(out), "--variants", "term", "none"]
    tool.main(words)
    torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert set(found["runs"]) == {"term", "none"} and found["runs"]["term"]["weight"] == 5.0
    points = found["runs"]["none"]["seeds"]["0"]
    assert [point["updates"] for point in points] == [2, 4] and points[0]["alpha"] == pytest.approx(1.0, abs=1e-2)
    assert all(-2000 < point[name] < 0 for point in points for name in ("mode", "sampled", "greedy"))
