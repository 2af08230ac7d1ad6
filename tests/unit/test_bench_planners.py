"""``worldmodel bench planners``: scores worked out by hand, known problems, and every layer at its smallest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.tiny import tiny_run, train
from worldmodel import cli
from worldmodel.bench.planners import analytic, document, latency, learned, score, truth
from worldmodel.bench.planners.contest import Contest, Nothing, contestant, play
from worldmodel.bench.timing import Plan
from worldmodel.configs import planners, problems
from worldmodel.envs.toys import ToyConfig
from worldmodel.models.analytic import Pendulum, Point
from worldmodel.models.courses import Course
from worldmodel.planning.icem import ICEM
from worldmodel.planning.shooting import RandomShooting

MINE = """
import torch

from worldmodel.configs.problems import bound
from worldmodel.planning.shooting import RandomShooting


def thrifty(trajectories: int = 9) -> RandomShooting:
    return RandomShooting(horizon=2, samples=trajectories)


def mine():
    return bound()
"""


def contest(**changes: Any) -> Contest:
    return Contest(**({"seeds": 2, "episodes": 2, "budgets": (20,)} | changes))


# Scores


def row(planner: str, returns: list[list[float]], **more: Any) -> dict[str, Any]:
    facts = {
        "layer": "analytic", "problem": "p", "planner": planner, "budget": 100, "optimum": None, "returns": returns,
        "evaluations": 100.0, "ms": 2.0, "clamped": 0.5, "lost": 0.0, "not_finite": 0.0, "largest_action": 1.0,
        "alive": 1.0,
    }
    return facts | more


def test_a_score_is_0_for_random_actions_and_1_for_the_best() -> None:
    rows = [row("random", [[0.0], [2.0]], budget=0), row("cem", [[2.0], [4.0]]), row("icem", [[5.0], [5.0]])]
    done = {x["planner"]: x for x in score.scored(rows)}
    assert done["random"]["score"] == [-0.25, 0.25]  # (0 - 1) / (5 - 1), (2 - 1) / 4
    assert done["cem"]["score"] == [0.25, 0.75] and done["icem"]["score"] == [1.0, 1.0]
    assert "regret" not in done["icem"] and done["cem"]["mean"] == 3.0
    known = {x["planner"]: x for x in score.scored([x | {"optimum": 9.0} for x in rows])}
    assert known["icem"]["score"] == [0.5, 0.5] and known["icem"]["regret"] == pytest.approx(4 / 9, abs=1e-6)


def test_a_summary_compares_with_the_rival_at_the_same_budget() -> None:
    rows = [row("random", [[0.0], [0.0]], budget=0), row("cem", [[1.0], [3.0]]), row("icem", [[2.0], [4.0]], ms=8.0)]
    two = [*rows, *[x | {"problem": "q", "ms": 2.0} for x in rows]]
    by = {x["planner"]: x for x in score.summary(score.scored(two))}
    assert by["icem"]["rival"] == "cem" and by["icem"]["beats"] == 0.75 and by["icem"]["problems"] == 2
    assert by["icem"]["ms"] == pytest.approx(4.0), "the geometric mean of 8 and 2"
    assert "beats" not in by["cem"] and "beats" not in by["random"]


def test_what_has_to_hold_is_said_with_its_number() -> None:
    rows = [
        row("random", [[-4.0]], budget=0), row("cem", [[-2.0]], optimum=-1.0, allowed=0.05),
        row("icem", [[-1.01]], optimum=-1.0, allowed=0.05, largest_action=1.5),
        row("cem", [[0.0]], problem="cliff", budget=500, alive=0.5), row("mppi", [[0.0]], error="no"),
    ]
    found = {x["what"]: (x["holds"], x["number"]) for x in score.checks(score.scored(rows))}
    assert found["cem is within 5% of the optimum of p"] == (False, 1.0)
    assert found["icem is within 5% of the optimum of p"][0]
    assert found["no action leaves [-1, 1]"] == (False, 1.5)
    assert found["with 100 trajectories iCEM is no worse than CEM (IQM of analytic scores)"][0]
    assert found["cem with 500 trajectories stays out of the pit"] == (False, 0.5)


# Layer A


def test_lqr_is_solved_within_5_percent_and_bounds_are_reached_and_kept() -> None:
    rows = analytic.measure(contest(planners=("cem", "icem", "mppi")), ("lqr4", "bound"))
    told = score.checks(score.scored(rows))
    assert len(told) == 8 and all(check["holds"] for check in told), told
    assert all(x["evaluations"] > 0 and x["ms"] > 0 for x in rows if x["planner"] != "random")


def test_with_100_trajectories_icem_is_no_worse_than_cem() -> None:
    asked = contest(planners=("cem", "icem"), budgets=(100,))
    told = score.checks(score.scored(analytic.measure(asked, ("dimensions_8", "needle"))))
    assert next(check for check in told if "iCEM" in check["what"])["holds"]


def test_planners_that_believe_in_ends_stay_out_of_the_pit_and_others_fall() -> None:
    problem = problems.course("cliff", goals=[(1.0, 0.0, 0.3)], pits=[(0.5, 0.0, 0.2)])
    alive = {}
    for continuation in ("product", "ignored"):
        system = analytic.System(replace(problem, continuation=continuation), 1, 3)
        played = play(contestant("icem", 200, 12), system.problem.objective(), system, steps=30, seeds=1)
        alive[continuation] = played["alive"]
    assert alive == {"product": 1.0, "ignored": 0.0}


def test_every_seed_and_planner_begins_in_the_same_states() -> None:
    one = analytic.System(problems.pendulum(), 3, 2)
    assert torch.equal(one.first.x[:2], one.first.x[2:4])
    assert torch.equal(one.first.x, analytic.System(problems.pendulum(), 3, 2).first.x)
    returns = np.array(play(Nothing(), one.problem.objective(), one, steps=5, seeds=3)["returns"])
    assert returns.shape == (3, 2) and len(np.unique(returns)) == 6, "noise differs by row"


def test_optima_are_not_beaten_and_are_what_their_policies_get() -> None:
    """The Riccati policy lives through an LQR problem and gets what `optimum` says; so does the bang of `bound`."""
    for problem in (problems.lqr(4), problems.dimensions(8), problems.bound()):
        system = analytic.System(problem, 1, 4)
        state, total = system.start(), np.zeros(4)
        for _ in range(problem.steps):
            action = -state.x.sign()
            if problem.value is not None:
                action = -state.x @ problem.model.optimum()[1].mT
            state, reward, _ = system.live(state, action)
            total += reward
        assert problem.optimum is not None
        np.testing.assert_allclose(total, problem.optimum(system.first).numpy(), rtol=1e-4)


def test_courses_pay_on_goals_cost_in_walls_and_end_in_pits() -> None:
    course = Course(goals=[(1.0, 0.0, 0.5)], walls=[(0.0, 1.0, 0.1)], pits=[(0.0, -1.0, 0.1)])
    places = torch.tensor([[1.0, 0.0], [1.5, 0.0], [0.0, 1.0], [0.0, -1.0]])
    state = Point(x=torch.cat([places, torch.zeros(4, 2)], 1))
    said = course.predict(state, torch.zeros(4, 2), state)
    far = float(np.exp(-0.5 * 2 / 0.25))
    expected = [1.0, float(np.exp(-0.5)), far - 1, far]
    torch.testing.assert_close(said.reward, torch.tensor(expected))
    assert said.continues.tolist() == [1, 1, 1, 0]
    moved = course.step(state, torch.tensor([[1.0, -9.0]] * 4))
    torch.testing.assert_close(moved.x[0], torch.tensor([1.05, -0.05, 0.05, -0.05]))
    assert isinstance(problems.pendulum().model, Pendulum)


# Layers B, C and D


def test_the_truth_is_planned_in() -> None:
    asked = contest(seeds=1, budgets=(10,), planners=("icem", "categorical", "gradient"))
    rows = truth.measure(asked, ("cartpole_swingup", "catch"), frames=8)
    done = {(x["problem"], x["planner"]): x for x in rows}
    assert [x["planner"] for x in rows] == ["random", "icem", "random", "categorical"], "no gradients through MuJoCo"
    assert np.array(done["toy/catch", "categorical"]["returns"]).shape == (1, 2)
    assert done["dmc/cartpole_swingup/proprio", "icem"]["decisions"] == 4


@pytest.fixture(scope="module")
def dreamer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("dreamer") / "run", tiny_run("quickstart", task="glide"))


def test_checkpoints_are_planned_in_beside_the_policy(dreamer: Path) -> None:
    asked = contest(planners=("policy_mppi", "gumbel", "shooting"), budgets=(6,), seeds=1)
    rows = {x["planner"]: x for x in learned.measure(asked, [dreamer])}
    assert rows.keys() == {"random", "policy", "policy_mppi", "shooting", "shooting, truth"}
    for name in ("policy", "policy_mppi", "shooting"):
        x = rows[name]
        assert x["gap"] == pytest.approx(x["predicted"] - x["realised"], abs=1e-4) and len(x["manifest"]) == 16
    assert rows["policy"]["evaluations"] == 0 and rows["shooting, truth"]["evaluations"] == 6 * learned.AHEAD


class Still:
    """An agent that does nothing, promises 2, and whose critic says 10 everywhere."""

    spec = ToyConfig(task="glide").build().spec

    def __init__(self) -> None:
        self.watched = learned.Watched(self)
        self.watched.told = {"value": torch.full((2,), 2.0), "evaluations": torch.zeros(())}
        self.objective = SimpleNamespace(discount=0.5, value=lambda features: torch.full(features.shape[:1], 10.0))
        self.model = SimpleNamespace(features=lambda state: state)

    def initial(self, rows: int, size: int = 0, *, seed: int = 0) -> Any:
        return SimpleNamespace(state=torch.zeros(rows, 1)) if not size else learned.Follow().initial(rows, size)

    def act(self, carry: Any, step: Any, *, explore: bool) -> Any:
        return torch.zeros(len(step.reward), 2), carry

    def __call__(self, objective: Any, state: Any, plan: Any, first: Any) -> Any:
        return plan, {"value": torch.zeros(1), "evaluations": torch.zeros(())}


def test_the_gap_is_what_was_promised_less_what_came() -> None:
    """Truncated episodes go on to be worth what the critic says: G = r + G' / 2, and 10 after the last step."""
    agent = Still()
    found = learned.live(agent, agent.watched, ToyConfig(task="glide"), contest(seeds=1, episodes=2))
    gains = []
    for i in range(2):
        env, rewards = ToyConfig(task="glide").build(i), []
        env.reset(seed=1000 + i)
        while len(rewards) < 50:
            rewards.append(env.step(np.zeros(2, np.float32)).reward)
        after = 10.0
        for reward in reversed(rewards):
            after = reward + 0.5 * after
            gains.append(after)
        assert found["returns"][0][i] == pytest.approx(sum(rewards), abs=1e-4)
    assert found["realised"] == pytest.approx(np.mean(gains), abs=1e-4)
    assert found["predicted"] == 2.0 and found["gap"] == pytest.approx(2 - np.mean(gains), abs=1e-4)


def test_latency_is_told_by_planner_and_number_of_environments() -> None:
    rows = latency.measure(
        contest(planners=("categorical",), budgets=(8,)), ["quickstart"], Plan(blocks=1, seconds=0, warmup=1),
        batches=(1, 2), device="cpu",
    )
    assert [(x["planner"], x["mode"]) for x in rows] == [("policy", "eager"), ("categorical", "eager")]
    assert rows[1]["batches"]["2"]["median_ms"] > 0 and rows[1]["batches"].keys() == {"1", "2"}
    assert latency.modes(torch.device("cuda", 0)) == ("eager", "compile", "cudagraph", "compile+cudagraph")


# The command


def test_a_planner_and_a_problem_of_ones_own_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "of_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    words = ["bench", "planners", "analytic", "--problems", "of_mine.py:mine"]
    words += ["--planners", "of_mine.py:thrifty", "cem"]
    assert cli.main([*words, "--budgets", "12", "--seeds", "2", "--episodes", "1", "--out", "found"]) == 0
    assert "of_mine.py:thrifty" in capsys.readouterr().out
    found = json.loads((tmp_path / "found" / "planners.json").read_text())
    mine = next(x for x in found["rows"] if x["planner"] == "of_mine.py:thrifty")
    assert mine["problem"] == "bound" and mine["evaluations"] == 24 and found["provenance"]
    page = (tmp_path / "found" / "planners.html").read_text()
    assert "data:image/png;base64," in page and "src=\"http" not in page and "of_mine.py:thrifty" in page
    assert (tmp_path / "found" / "analytic_ms.png").read_bytes()[:4] == b"\x89PNG"
    assert "| of_mine.py:thrifty | 12 |" in document.markdown(found)


@pytest.mark.parametrize("words, said", [
    ([], "name what to measure"), (["analitic"], "analitic"), (["runs"], "give their folders, --runs"),
    (["analytic", "--problems", "lqr5"], "unknown problem 'lqr5'; did you mean 'lqr4'"),
    (["analytic", "--problems", "bound", "--planners", "icme"], "unknown planner 'icme'"),
    (["analytic", "--budgets", "2"], "--budgets must be at least 4"),
    (["analytic", "--seeds", "0"], "--seeds must be at least 1, got 0"),
])
def test_bad_input_is_a_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "planners", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_planner_that_does_not_fit_is_a_sentence_in_its_row() -> None:
    rows = analytic.measure(contest(planners=("worldmodel.planning.categorical:CategoricalCEM",)), ("bound",))
    assert "CategoricalCEM plans discrete actions" in rows[-1]["error"]
    assert "error" not in score.scored(rows)[0] and score.scored(rows)[-1] == rows[-1]


class Broken(RandomShooting):
    def __call__(self, *args: Any) -> Any:
        raise ZeroDivisionError("in the middle")


def test_a_planner_that_breaks_costs_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("from tests.unit.test_bench_planners import Broken\n")
    monkeypatch.chdir(tmp_path)
    words = ["--problems", "bound", "--planners", "broken.py:Broken", "shooting", "--budgets", "8", "--seeds", "1"]
    assert cli.main(["bench", "planners", "analytic", *words, "--episodes", "1", "--out", "out"]) == 1
    found = json.loads((tmp_path / "out" / "planners.json").read_text())["rows"]
    rows = {row["planner"]: row for row in found}
    assert rows["broken.py:Broken"]["error"] == "ZeroDivisionError: in the middle" and "returns" in rows["shooting"]
    assert "in the middle" in capsys.readouterr().err


def test_climbing_a_return_made_of_steps_is_a_sentence_in_its_row() -> None:
    contest = Contest(planners=("gradient", "gradcem", "icem"), budgets=(30,), seeds=1, episodes=1)
    rows = {row["planner"]: row.get("error", "") for row in analytic.measure(contest, ("needle",))}
    assert not rows["icem"] and all("here it has none" in rows[name] for name in ("gradient", "gradcem"))


def test_a_budget_is_about_what_planners_look_at() -> None:
    """Model evaluations over trajectories x horizon, for all but trees, which look at less."""
    problem = problems.bound()
    system = analytic.System(problem, 1, 1)
    for budget in (100, 500, 4000):
        for name in ("shooting", "predictive", "mppi", "cem", "icem", "policy_mppi", "gradient", "gradcem"):
            planner = contestant(name, budget, 4)
            if name == "policy_mppi":
                planner = replace(planner, policy_samples=0)
            if budget < 4000:
                played = play(planner, problem.objective(), system, steps=1, seeds=1)
                assert 0.85 <= played["evaluations"] / (4 * budget) <= 1.15, (name, budget)
    assert ICEM is type(planners.icem(100)) and planners.cem(100).samples == 33  # type: ignore[attr-defined]
