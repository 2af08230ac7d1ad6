"""Layer C: frozen checkpoints. The same model, policy and critic under every planner, beside the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel import presets, runs, tree
from worldmodel.bench.planners.contest import Contest, Row, attempt, contestant, one_call, play
from worldmodel.bench.planners.truth import Lived
from worldmodel.planning.objectives import WORST, ExpectedReturn
from worldmodel.planning.population import blank
from worldmodel.protocols import Imagines, PlanningObjective
from worldmodel.specs import Simulates, evaluation_env
from worldmodel.train.restore import MANIFEST
from worldmodel.types import Plan, Step

AHEAD = 15
"""Steps that planners without a critic look ahead, in the truth and in a model."""


@dataclass(frozen=True)
class Given:
    """A config that builds an agent which is there already."""

    agent: Any

    def build(self, spec: Any, *, device: Any = "cpu", seed: int = 0) -> Any:
        return self.agent


@dataclass(frozen=True, kw_only=True)
class Follow:
    """The mode of the policy as a planner; what it promises is the critic's word."""

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return blank(batch_size, 1, action_size)

    def __call__(
        self, objective: PlanningObjective[Any], state: Any, plan: Plan, first: Tensor
    ) -> tuple[Plan, dict[str, Tensor]]:
        """No search."""
        features = objective.model.features(state)
        assert objective.policy is not None and objective.value is not None
        action = objective.policy(features).mode().clamp(-1, 1)
        told = {"value": objective.value(features).float(), "evaluations": torch.zeros(())}
        return Plan(action=action, mean=action[:, None], std=plan.std, kept=plan.kept), told


class Watched:
    """A planner, and what it told last."""

    def __init__(self, planner: Any) -> None:
        self.planner, self.told = planner, {}

    def initial(self, batch_size: int, action_size: int) -> Plan:
        return self.planner.initial(batch_size, action_size)

    def __call__(self, *args: Any) -> tuple[Plan, dict[str, Tensor]]:
        plan, self.told = self.planner(*args)
        return plan, self.told


def measure(contest: Contest, folders: Sequence[Path], *, allow: Sequence[str] = ()) -> list[Row]:
    """A row for the policy, and for each planner and budget: with the learned model and the critic, and with the truth
    in the model's place (and no critic, which knows only the model's features)."""
    return [row for folder in folders for row in _rows(contest, folder, allow)]


def _rows(contest: Contest, folder: Path, allow: Sequence[str]) -> list[Row]:
    trained = runs.load(folder, device="cpu", say=contest.say, allow=allow)
    inner = getattr(trained.agent, "agent", trained.agent)
    spec, env = trained.spec, evaluation_env(trained.run.env)
    name = f"{spec.name} at {trained.checkpoint.step:,} decisions"
    about = {
        "layer": "runs", "problem": name, "optimum": spec.reference.get("optimum"), "run": folder.name,
        "manifest": hashlib.sha256((trained.checkpoint.path / MANIFEST).read_bytes()).hexdigest()[:16],
    }
    if not isinstance(inner, Imagines):
        return [about | {"planner": "any", "budget": 0, "error": f"{type(inner).__name__} has no world model"}]
    table: Any = presets.load_module("worldmodel.configs.planners")

    def by(planner: Any) -> Row:
        watched = Watched(planner)
        agent = table.evaluated(Given(inner), watched).build(spec)
        return live(agent, watched, env, contest)

    rows = [_reference(about, spec.reference["random"], contest)] if "random" in spec.reference else []
    rows.append(attempt(about | {"planner": "policy", "budget": 0}, lambda: by(Follow())))
    for planner in contest.names(spec.action.kind, policy=True, value=True):
        for budget in contest.budgets:
            contest.say(f"{name}: {planner} {budget}")
            row = about | {"planner": planner, "budget": budget}
            rows.append(attempt(row, lambda n=planner, b=budget: by(contestant(n, b, None))))
    return rows + (_in_truth(contest, env, spec, about) if isinstance(env, Simulates) else [])


def live(agent: Any, watched: Watched, env: Any, contest: Contest) -> Row:
    """Whole episodes, the same starts for every seed, and what was promised in each state against what came."""
    count = contest.seeds * contest.episodes
    envs = [env.build(i) for i in range(count)]
    steps = [one.reset(seed=1000 + i % contest.episodes) for i, one in enumerate(envs)]
    carry, over = agent.initial(count, seed=contest.seeds), np.zeros(count, bool)
    promised, rewards, going, most, clamped, lost = [], [], [], 0.0, [], []
    is_terminal = np.zeros(count, bool)
    while not over.all():
        action, carry = agent.act(carry, _step(steps), explore=False)
        promised.append(watched.told["value"].numpy())
        lost.append(float((watched.told["value"] <= WORST).float().mean()))
        clamped.append(float(watched.told["clamped"].mean()) if "clamped" in watched.told else 0.0)
        going.append(~over)
        most = max(most, float(action.abs().max()))
        reward = np.zeros(count)
        for i in np.flatnonzero(~over):
            steps[i] = envs[i].step(action[i].numpy())
            reward[i], over[i], is_terminal[i] = steps[i].reward, steps[i].is_last, steps[i].is_terminal
        rewards.append(reward)
    # a truncated episode goes on to be worth what the critic says of its last state
    _, carry = agent.act(carry, _step(steps), explore=False)
    with torch.no_grad():
        end = agent.objective.value(agent.model.features(carry.state)).numpy()
    for one in envs:
        one.close()
    realised, after = np.zeros((len(rewards), count)), np.where(is_terminal, 0.0, end)
    for t in reversed(range(len(rewards))):
        realised[t] = np.where(going[t], rewards[t] + agent.objective.discount * after, after)
        after = realised[t]
    mask = np.stack(going)
    told = np.stack(promised)
    state = tree.index(carry.state, slice(0, 1))
    alone = one_call(watched.planner, agent.objective, state, agent.spec.action.size)
    return {
        "returns": np.sum(rewards, 0).reshape(contest.seeds, -1).round(6).tolist(),
        "predicted": round(float(told[mask].mean()), 5), "realised": round(float(realised[mask].mean()), 5),
        "gap": round(float((told - realised)[mask].mean()), 5),
        "evaluations": float(watched.told["evaluations"]), "ms": round(alone, 4), "rows": count,
        "clamped": round(float(np.mean(clamped)), 4), "lost": round(float(np.mean(lost)), 6), "not_finite": 0.0,
        "largest_action": round(most, 6), "alive": 1.0, "horizon": getattr(watched.planner, "horizon", 0),
    }


def _in_truth(contest: Contest, env: Any, spec: Any, about: Row) -> list[Row]:
    simulator: Any = presets.load_module("worldmodel.models.simulator")
    model = simulator.Simulator(env)
    objective = ExpectedReturn(model=model, action=spec.action, discount=0.99)
    world, rows = Lived(env, model, contest.seeds, contest.episodes), []
    for name in contest.names(spec.action.kind, gradient=False):
        for budget in contest.budgets:
            row = about | {"planner": f"{name}, truth", "budget": budget, "horizon": AHEAD}
            contest.say(f"{about['problem']}: {name} {budget} in the truth")

            def run(name: str = name, budget: int = budget) -> Row:
                planner = contestant(name, budget, AHEAD)
                return play(planner, objective, world, steps=int(spec.max_steps or 1000), seeds=contest.seeds)

            rows.append(attempt(row, run))
    world.close()
    return rows


def _reference(about: Row, value: float, contest: Contest) -> Row:
    """What is known of random actions."""
    return about | {
        "planner": "random", "budget": 0, "returns": [[value]] * contest.seeds, "evaluations": 0.0, "ms": 0.0,
        "rows": 0, "clamped": 0.0, "lost": 0.0, "not_finite": 0.0, "largest_action": 1.0, "alive": 1.0,
    }


def _step(steps: Sequence[Any]) -> Step:
    obs = {key: torch.from_numpy(np.stack([step.obs[key] for step in steps])) for key in steps[0].obs}
    flags = {
        name: torch.tensor([bool(getattr(step, name)) for step in steps])
        for name in ("is_first", "is_last", "is_terminal")
    }
    return Step(obs=obs, reward=torch.tensor([float(step.reward) for step in steps]), **flags)

