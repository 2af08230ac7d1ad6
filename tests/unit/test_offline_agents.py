"""Offline agents: every term of their losses against numbers that slow loops in numpy work out from a hand-made batch;
which networks a term may teach; that each learns, and goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.unit.test_dyna import SPEC, played
from worldmodel import tree
from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.adversary import AdversaryConfig
from worldmodel.agents.dyna.agent import BranchConfig, Dyna, DynaConfig
from worldmodel.agents.dyna.buffer import episode_returns
from worldmodel.agents.dyna.pessimism import (
    ConservatismConfig,
    Halt,
    HaltConfig,
    InconsistencyConfig,
    conservatism,
)
from worldmodel.agents.dyna.policy import PolicyConfig, SquashedNormal
from worldmodel.agents.dyna.rules.cloning import CloningConfig
from worldmodel.agents.dyna.rules.iql import IQL, IQLConfig
from worldmodel.agents.dyna.rules.leq import LEQ, LEQConfig
from worldmodel.agents.dyna.rules.soft import SoftConfig
from worldmodel.agents.dyna.rules.td3bc import TD3BC, TD3BCConfig
from worldmodel.agents.values.critics import CriticsConfig
from worldmodel.configs import dyna as presets
from worldmodel.errors import MisfitError
from worldmodel.models.ensemble import EnsembleModel, EnsembleModelConfig, Observed
from worldmodel.models.plateau import KnownConfig
from worldmodel.types import Batch, Transitions

Array = np.ndarray[Any, np.dtype[np.float64]]

DATA = Transitions(
    x=torch.tensor([[0.5, -1.0], [1.0, 0.25], [-0.75, 0.5], [0.0, 1.5]]),
    action=torch.tensor([[0.2, -0.4], [-0.9, 0.1], [0.6, 0.95], [0.0, -0.3]]),
    reward=torch.tensor([-1.0, 0.5, -3.0, -0.25]),
    next_x=torch.tensor([[0.7, -1.4], [0.1, 0.35], [-0.15, 1.45], [0.0, 1.2]]),
    terminal=torch.tensor([0.0, 1.0, 0.0, 0.0]), edge=torch.zeros(4),
)
DISCOUNT = 0.9
NET = EnsembleModelConfig(members=3, elites=2, units=(3,), decays=(0.1, 0.2))


def made(**changes: Any) -> Dyna:
    """A tiny agent all of whose weights are random, slow copies too."""
    settings: dict[str, Any] = {
        "model": None, "policy": PolicyConfig(units=(3,)), "value": CriticsConfig(units=(3,)), "batch_size": 4,
        "recent": 16, "first": 4, "discount": DISCOUNT, "branch": BranchConfig(rows=4, every=5, keep=2, length=3),
    }
    agent = DynaConfig(**(settings | changes)).build(SPEC)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in agent.modules.parameters():
            p.normal_(std=0.8, generator=generator)
        if isinstance(agent.model, EnsembleModel):
            agent.model.lower.copy_(torch.tensor([-3.0, -2.5, -2.0]).unsqueeze(1).expand(3, 3))
            agent.model.upper.copy_(torch.tensor([0.0, 0.25, 0.5]).unsqueeze(1).expand(3, 3))
            agent.model.elite.copy_(torch.tensor([2, 0]))
    return agent


class Drawn:
    """Noise that is drawn by torch, in the order it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[Array] = []
        generator = np.random.default_rng(0)
        for name, draw in (("randn_like", generator.standard_normal), ("rand_like", generator.random)):
            monkeypatch.setattr(torch, name, lambda x, draw=draw: self.keep(draw(tuple(x.shape))))
        monkeypatch.setattr(torch, "randn", lambda *shape, **_: self.keep(generator.standard_normal(shape)))

    def keep(self, x: Array) -> Tensor:
        x = x.astype(np.float32).astype(np.float64)
        self.taken.append(x)
        return torch.from_numpy(x).float()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


# Networks by loops


def numbers(x: Tensor) -> Array:
    return x.detach().double().numpy()


def dense(layers: list[tuple[Array, Array]], x: Array) -> Array:
    """Layers (out, in) of one network, ReLU between them, of one row."""
    for at, (weight, bias) in enumerate(layers):
        x = np.array([sum(w * v for w, v in zip(row, x)) + b for row, b in zip(weight, bias)])
        if at < len(layers) - 1:
            x = np.maximum(x, 0)
    return x


def actor_out(agent: Dyna, x: Array, actor: Any = None) -> Array:
    net = agent.actor if actor is None else actor
    x = (x - numbers(net.inputs.shift)) / numbers(net.inputs.scale)
    return dense([(numbers(m.weight), numbers(m.bias)) for m in [*net.layers, net.out]], x)


def mode(agent: Dyna, x: Array, actor: Any = None) -> Array:
    return np.tanh(actor_out(agent, x, actor)[:2])


def sampled(agent: Dyna, x: Array, noise: Array) -> tuple[Array, float]:
    """Action and log-probability of the squashed policy."""
    out = actor_out(agent, x)
    mean, log_std = out[:2], np.clip(out[2:], -5, 2)
    raw = mean + np.exp(log_std) * noise
    logs = [-0.5 * n**2 - s - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(r) ** 2)
            for n, s, r in zip(noise, log_std, raw)]
    return np.tanh(raw), sum(logs)


def member(net: Any, i: int, x: Array) -> Array:
    return dense([(numbers(m.weight[i]).T, numbers(m.bias[i])) for m in net.layers], x)


def q(agent: Dyna, i: int, x: Array, action: Array, *, slow: bool = False) -> float:
    x = (x - numbers(agent.value.inputs.shift)) / numbers(agent.value.inputs.scale)
    return float(member(agent.value.slow if slow else agent.value.fast, i, np.concatenate([x, action]))[0])


def least(agent: Dyna, x: Array, action: Array, *, slow: bool = False) -> float:
    return min(q(agent, i, x, action, slow=slow) for i in range(agent.value.config.members))


def gaussian(model: EnsembleModel, i: int, x: Array, action: Array) -> tuple[Array, Array]:
    """Mean of change and reward, and log-variance, of one member; SiLU between layers."""
    h = np.concatenate([x, action])
    layers = [(numbers(m.weight[i]).T, numbers(m.bias[i])) for m in model.net.layers]  # type: ignore[union-attr]
    for at, (weight, bias) in enumerate(layers):
        h = weight @ h + bias
        if at < len(layers) - 1:
            h = h / (1 + np.exp(-h))
    mean, log_var = h[:3], h[3:]
    lower, upper = numbers(model.lower)[i], numbers(model.upper)[i]
    log_var = upper - np.log1p(np.exp(upper - log_var))
    return mean, lower + np.log1p(np.exp(log_var - lower))


def rows() -> Iterator[tuple[Array, Array, float, Array, float]]:
    yield from zip(
        numbers(DATA.x), numbers(DATA.action), DATA.reward.tolist(), numbers(DATA.next_x), DATA.terminal.tolist()
    )


def said(agent: Dyna) -> dict[str, float]:
    total, metrics, _ = agent.losses(DATA)
    found = {name.removeprefix("loss/"): float(x) for name, x in metrics.items() if name.startswith("loss/")}
    assert float(total.detach()) == pytest.approx(sum(found.values()), rel=1e-5)
    assert found.pop("reach") == 0
    return found


def holds(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name] == pytest.approx(x, rel=2e-4, abs=1e-5), name


# Golden numbers


def test_behaviour_cloning_by_loops() -> None:
    agent, expected = made(rule=CloningConfig()), {"value": 0.0, "policy": 0.0}
    for x, a, r, after, over in rows():
        y = r + DISCOUNT * (1 - over) * least(agent, after, mode(agent, after), slow=True)
        expected["value"] += sum((q(agent, i, x, a) - y) ** 2 for i in range(2)) / 4
        expected["policy"] += np.mean((mode(agent, x) - a) ** 2) / 4
    holds(said(agent), expected)


def test_td3_bc_by_loops(drawn: Drawn) -> None:
    agent = made(rule=TD3BCConfig(smoothing=0.5))
    found, expected = said(agent), {"value": 0.0, "policy": 0.0}
    noise, rule = drawn.taken[0], agent.rule
    assert isinstance(rule, TD3BC) and np.abs(0.5 * noise).max() > 0.5, "one row's noise is clipped"
    scale = 2.5 / np.mean([abs(q(agent, 0, x, mode(agent, x))) for x, *_ in rows()])
    for at, (x, a, r, after, over) in enumerate(rows()):
        tried = np.clip(mode(agent, after, rule.slow) + np.clip(0.5 * noise[at], -0.5, 0.5), -1, 1)
        y = r + DISCOUNT * (1 - over) * least(agent, after, tried, slow=True)
        expected["value"] += sum((q(agent, i, x, a) - y) ** 2 for i in range(2)) / 4
        own = mode(agent, x)
        expected["policy"] += (np.mean((own - a) ** 2) - scale * q(agent, 0, x, own)) / 4
    holds(found, expected)


def test_iql_by_loops() -> None:
    # the limit is low enough to be met by some rows and not by all
    agent = made(rule=IQLConfig(units=(3,), limit=2.0), policy=PolicyConfig(units=(3,), noise="added"))
    rule, expected, weights = agent.rule, {"value": 0.0, "state": 0.0, "policy": 0.0}, []
    assert isinstance(rule, IQL)
    for x, a, r, after, over in rows():
        y = r + DISCOUNT * (1 - over) * member(rule.net, 0, after)[0]
        expected["value"] += sum((q(agent, i, x, a) - y) ** 2 for i in range(2)) / 4
        better = least(agent, x, a, slow=True) - member(rule.net, 0, x)[0]
        expected["state"] += (0.7 if better > 0 else 0.3) * better**2 / 4
        weights.append(min(math.exp(3 * better), 2.0))
        mean, log_std = np.tanh(actor_out(agent, x)), np.clip(numbers(agent.actor.log_std), -5, 2)  # type: ignore[arg-type]
        logs = -0.5 * ((a - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        expected["policy"] += -weights[-1] * logs.sum() / 4
    assert 0 < sum(w == 2.0 for w in weights) < 4
    holds(said(agent), expected)


def soft_terms(agent: Dyna, ahead: Array, here: Array) -> dict[str, float]:
    """SAC's, with targets that hold no entropy; noise by row."""
    rule: Any = agent.rule
    alpha, expected = math.exp(float(rule.log_alpha.detach())), {"value": 0.0, "policy": 0.0, "temperature": 0.0}
    for at, (x, a, r, after, over) in enumerate(rows()):
        y = r + DISCOUNT * (1 - over) * least(agent, after, sampled(agent, after, ahead[at])[0], slow=True)
        expected["value"] += sum((q(agent, i, x, a) - y) ** 2 for i in range(2)) / 4
        own, log_prob = sampled(agent, x, here[at])
        expected["policy"] += (alpha * log_prob - least(agent, x, own)) / 4
        expected["temperature"] += -math.log(alpha) * (log_prob - 2) / 4
    return expected


def gap(agent: Dyna, at: list[int], lived: list[int], noise: list[Array], temperature: float) -> float:
    """CQL's term over these rows: 3 x 2 actions each, the data's actions over ``lived``."""
    all_rows, total = list(rows()), 0.0
    for i in range(2):
        soft = []
        for row, k in enumerate(at):
            x, _, _, after, _ = all_rows[k]
            tries = []
            for seen, drawn_ in ((x, noise[0]), (after, noise[1])):
                for n in range(2):
                    action, log_prob = sampled(agent, seen, drawn_[row, n])
                    tries.append(q(agent, i, x, action) / temperature - log_prob)
            for n in range(2):
                tries.append(q(agent, i, x, 2 * noise[2][row, n] - 1) / temperature - math.log(0.25))
            assert len(tries) == 6, "of all actions at once, not of three groups"
            soft.append(temperature * math.log(sum(math.exp(t) for t in tries)))
        total += np.mean(soft) - np.mean([q(agent, i, all_rows[k][0], all_rows[k][1]) for k in lived])
    return total


def test_cql_by_loops(drawn: Drawn) -> None:
    agent = made(
        rule=SoftConfig(backup="plain"), conservatism=ConservatismConfig(weight=5.0, actions=2, temperature=0.5)
    )
    found = said(agent)
    expected = soft_terms(agent, drawn.taken[0], drawn.taken[1])
    expected["conservatism"] = 5.0 * gap(agent, [0, 1, 2, 3], [0, 1, 2, 3], drawn.taken[2:], 0.5)
    holds(found, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_cql_presses_on_an_integral_whatever_actions_are_drawn_from(temperature: float) -> None:
    """With their densities divided out, draws from a narrow policy and from everywhere estimate the same
    T log of the integral of exp(Q / T) over all actions, here of Q = a - 2 a^2."""
    grid = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    area = (((grid - 2 * grid**2) / temperature).exp().mean() * 2).log() * temperature
    torch.manual_seed(0)
    narrow = SquashedNormal(torch.full((1, 400_000, 1), 0.3), torch.full((1, 400_000, 1), -0.2))
    anywhere = torch.rand(1, 400_000, 1) * 2 - 1
    for action, log_density in (
        narrow.sample_with_log_prob(), (anywhere, torch.full((1, 400_000), -math.log(2.0))),
    ):
        a = action[..., 0]
        found = losses.conservative_gap(
            asked=(a - 2 * a**2).unsqueeze(0), log_density=log_density,
            done=torch.tensor([[3.0, 5.0]]), temperature=temperature,
        )
        expected = area + temperature * math.log(400_000) - 4.0
        assert abs(float(found - expected)) < 0.01


@pytest.mark.parametrize(("over", "at"), [("mix", [0, 1, 2, 3]), ("dreams", [1, 2, 3])])
def test_combo_presses_dreams_down_and_lifts_what_was_lived(drawn: Drawn, over: Any, at: list[int]) -> None:
    agent = made(
        model=KnownConfig(name="plateau"), real_ratio=0.25, rule=SoftConfig(backup="plain"),
        conservatism=ConservatismConfig(weight=0.5, actions=2, over=over),
    )
    found = said(agent)
    expected = soft_terms(agent, drawn.taken[0], drawn.taken[1])
    expected["conservatism"] = 0.5 * gap(agent, at, [0], drawn.taken[2:], 1.0)
    holds(found, expected)


def test_mobile_by_loops(drawn: Drawn) -> None:
    agent = made(
        model=NET, real_ratio=0.25, rule=SoftConfig(backup="plain"),
        inconsistency=InconsistencyConfig(weight=2.0, samples=2),
    )
    _, _, target = agent.losses(DATA)
    ahead, spread, acting = drawn.taken[:3]
    expected = []
    for at, (x, a, r, after, over) in enumerate(rows()):
        y = r + DISCOUNT * (1 - over) * least(agent, after, sampled(agent, after, ahead[at])[0], slow=True)
        if at >= 1:  # the first row was lived
            worth = []
            for e, i in enumerate((2, 0)):
                mean, log_var = gaussian(agent.model, i, x, a)
                several = []
                for s in range(2):
                    come = x + mean[:2] + np.exp(0.5 * log_var[:2]) * spread[s, e, at - 1]
                    several.append(least(agent, come, sampled(agent, come, acting[s, e, at - 1])[0], slow=True))
                worth.append(np.mean(several))
            y -= 2.0 * np.std(worth, ddof=1)
        expected.append(y)
    assert min(expected) < 0, "targets may be negative"
    assert target.tolist() == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_morel_halts_where_members_disagree() -> None:
    halt = Halt(HaltConfig(coefficient=3.0), discount=0.5)
    halt.measure(torch.tensor([0.3, 6.0, 1.0]), torch.tensor([1.0, -4.0, 0.0]))
    # the threshold is 6 / 3; -4 from the next step on, for ever: 0.5 * -4 / 0.5
    step = {
        "doubt": torch.tensor([1.9, 2.1, 9.0]), "reward": torch.ones(3), "terminal": torch.tensor([0.0, 0.0, 1.0]),
        "edge": torch.tensor([1.0, 1.0, 0.0]),
    }
    reward, terminal, edge, halted = halt.apply_to(**step)
    assert halted.tolist() == [0.0, 1.0, 0.0] and terminal.tolist() == [0.0, 1.0, 1.0]
    assert reward.tolist() == [1.0, 1.0 - 2.0 * 0.5 * 4.0, 1.0] and edge.tolist() == [1.0, 0.0, 0.0]
    fixed = Halt(HaltConfig(coefficient=3.0, earns="fixed", reward=-10.0), discount=0.5)
    fixed.measure(torch.tensor([3.0]), torch.tensor([-4.0]))
    assert float(fixed.price) == -10.0 and float(fixed.threshold) == 1.0
    cut = Halt(HaltConfig(coefficient=1.0, quantile=0.5, earns="bootstrap"), discount=0.5)
    cut.measure(torch.tensor([2.0, 0.5, 9.0, 8.0]), torch.tensor([-4.0]))
    reward, terminal, edge, _ = cut.apply_to(**step | {"edge": torch.zeros(3)})
    # above 2, the second of four: nothing ends and nothing is paid, but the branch goes no further
    assert reward.tolist() == [1.0] * 3 and terminal.tolist() == [0.0, 0.0, 1.0] and edge.tolist() == [0.0, 1.0, 0.0]


def test_dreams_go_no_further_than_a_halt() -> None:
    agent = made(model=replace(NET, uncertainty="max_pairwise"), halt=HaltConfig(coefficient=1.0))
    agent.seen.add(DATA)
    agent.halt.measure(torch.tensor([0.0]), torch.tensor([-2.0]))  # everything is too much
    found = agent.dream(3)
    assert float(found["branch/transitions"]) == 4 and float(found["halt/share"]) == 1
    data = agent.dreams.at(slice(0, 4))
    assert data.terminal.tolist() == [1] * 4 and data.edge.tolist() == [0] * 4


def test_the_loss_of_an_adversarys_model_by_loops(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = made(model=NET, real_ratio=0.25, adversary=AdversaryConfig(every=5, rows=4, weight=0.7))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([0, 1, 1, 0]))
    asked: list[Tensor] = []
    adversary, model = agent.adversary, agent.model
    assert adversary is not None
    monkeypatch.setattr(adversary.optimizer, "backward", asked.append)
    state = Observed(x=DATA.x, reward=torch.zeros(4))
    alive = torch.tensor([1.0, 1.0, 0.0, 1.0])
    arrived, _, found = adversary.update(agent.learner, state, alive, DATA)
    acting, noise = drawn.taken[:2]
    logs, better = [], []
    for at, (x, *_) in enumerate(rows()):
        action = sampled(agent, x, acting[at])[0]
        by_elite = [gaussian(model, i, x, action) for i in (2, 0)]
        mean, log_var = by_elite[[0, 1, 1, 0][at]]
        outcome = mean + np.exp(0.5 * log_var) * noise[at]
        after = x + outcome[:2]
        assert arrived.x[at].tolist() == pytest.approx(after.tolist(), rel=1e-4)
        density = sum(
            np.prod(np.exp(-0.5 * (outcome - m) ** 2 / np.exp(v)) / np.sqrt(2 * math.pi * np.exp(v)))
            for m, v in by_elite
        ) / 2
        logs.append(math.log(density))
        better.append(outcome[2] + DISCOUNT * least(agent, after, mode(agent, after)) - least(agent, x, action))
    kept = [0, 1, 3]
    centre, spread = np.mean([better[k] for k in kept]), np.std([better[k] for k in kept], ddof=1)
    adverse = np.mean([(better[k] - centre) / (spread + 1e-6) * logs[k] for k in kept])
    misfit = 0.0
    for i in range(3):
        for x, a, r, after, _ in rows():
            mean, log_var = gaussian(model, i, x, a)
            y = np.concatenate([after - x, [r]])
            misfit += np.mean((mean - y) ** 2 * np.exp(-log_var) + log_var) / 4
        first, last = model.net.layers
        misfit += 0.5 * (0.1 * numbers(first.weight[i] ** 2).sum() + 0.2 * numbers(last.weight[i] ** 2).sum())
        misfit += 0.001 * (numbers(model.upper[i]) - numbers(model.lower[i])).sum() / 3
    assert float(found["adverse"]) == pytest.approx(adverse, rel=2e-4)
    assert float(found["misfit"]) == pytest.approx(misfit, rel=2e-4)
    assert float(asked[0].detach()) == pytest.approx(0.7 * adverse + misfit, rel=2e-4)


def test_the_adversary_makes_the_model_worse_for_the_policy_and_teaches_nobody_else() -> None:
    settings = AdversaryConfig(every=5, rows=64, steps=60, weight=50.0, lr=3e-3)
    agent = made(model=NET, real_ratio=0.25, adversary=settings)
    agent.seen.add(DATA)
    others = {k: x.clone() for k, x in agent.modules.state_dict().items() if not k.startswith("model")}

    def promise() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            x = DATA.x.repeat(200, 1)
            state = Observed(x=x, reward=torch.zeros(len(x)))
            arrived = agent.model.step(state, agent.actor(x).mode())
            ahead = agent.value.value(arrived.x, agent.actor(arrived.x).mode())
            return float((arrived.reward + DISCOUNT * ahead).mean())

    before = promise()
    adversary = agent.adversary
    assert adversary is not None
    adversary.round(agent.learner, lambda n: tree.index(DATA, torch.arange(n) % 4))
    assert promise() < before - 0.1
    now = agent.modules.state_dict()
    assert all(torch.equal(x, now[k]) for k, x in others.items())


def test_mixed_returns_are_those_of_the_recursion() -> None:
    value, reward = [1.0, 2.0, -1.0], [0.5, -2.0]
    # lam 0.5, discount 0.9. w: 1, 1.5, 1.75. q_2 = -1; q_1 = (2 + 0.5 (-2 - 0.9)) / 1.5 = 0.55 / 1.5
    q1 = 0.55 / 1.5
    q0 = (1.0 + 0.5 * 1.5 * (0.5 + 0.9 * q1)) / 1.75
    back, share = losses.mixed_returns(
        value=torch.tensor([value]), reward=torch.tensor([reward]), alive=torch.ones(1, 3), discount=0.9, lam=0.5
    )
    assert back[0].tolist() == pytest.approx([q0, q1, -1.0])
    assert share[0].tolist() == pytest.approx([1.0, 0.75 / 1.75 * 0.9, 0.75 / 1.75 * 0.9 * 0.5 / 1.5 * 0.9])
    ended, share = losses.mixed_returns(
        value=torch.tensor([value]), reward=torch.tensor([reward]), alive=torch.tensor([[1.0, 0.0, 0.0]]), discount=0.9,
        lam=0.5,
    )
    # nothing follows: (1 + 0.75 * 0.5) / 1.75
    assert float(ended[0, 0]) == pytest.approx(1.375 / 1.75) and share[0].tolist() == [1.0, 0.0, 0.0]


def leq() -> Dyna:
    agent = made(
        model=KnownConfig(name="slope"), real_ratio=0.5, rule=LEQConfig(horizon=3, lam=0.8, expectile=0.1, share=0.25)
    )
    with torch.no_grad():  # so that the first dream leaves the ramp, and rewards have gradients of several kinds
        agent.actor.out.bias.add_(1.0)
    return agent


def walk(agent: Dyna, x: Array, nudge: Array) -> tuple[list[Array], list[Array], list[float], list[float]]:
    """States, actions, Q and returns of one rollout in the plane, each action moved by (H+1, A)."""
    states, actions, rewards = [x], [], []
    for t in range(4):
        actions.append(mode(agent, states[-1]) + nudge[t])
        if t < 3:
            states.append(states[-1] + np.clip(actions[-1], -1, 1))
            rho = np.abs(states[-1]).max()
            rewards.append(1 - (rho - 7) if rho > 7 else min(rho / 3, 1.0))
    value = [least(agent, s, a) for s, a in zip(states, actions)]
    back, weight = [value[-1]], 1.0
    for t in (2, 1, 0):
        ahead = rewards[t] + DISCOUNT * back[0]
        back.insert(0, (value[t] + 0.8 * weight * ahead) / (1 + 0.8 * weight))
        weight = 1 + 0.8 * weight
    return states, actions, value, back


def test_leq_by_loops() -> None:
    agent, expected = leq(), {"value": 0.0, "expectile": 0.0, "steady": 0.0, "policy": 0.0}
    everything = list(rows())
    for x, a, r, after, over in everything[:2]:
        # no slow copy in the target
        y = r + DISCOUNT * (1 - over) * least(agent, after, mode(agent, after))
        for i in range(2):
            expected["value"] += 0.75 * 0.5 * (q(agent, i, x, a) - y) ** 2 / 2
            expected["steady"] += 0.75 * (q(agent, i, x, a) - q(agent, i, x, a, slow=True)) ** 2 / 2
    for x, *_ in everything[2:]:
        states, actions, value, back = walk(agent, x, np.zeros((4, 2)))
        for t in range(4):
            for i in range(2) if t < 3 else ():
                own = q(agent, i, states[t], actions[t])
                weight = 0.1 if back[t] > own else 0.9
                expected["expectile"] += 0.25 * weight * (back[t] - own) ** 2 * DISCOUNT**t / 6
                drift = own - q(agent, i, states[t], actions[t], slow=True)
                expected["steady"] += 0.25 * drift**2 * DISCOUNT**t / 6
            weight = 0.5 if t == 3 else 0.1 if back[t] > value[t] else 0.9
            for k in range(2):  # the slope of this return by its own action, later ones following the policy
                nudge = np.zeros((4, 2))
                nudge[t, k] = 1e-6
                slope = (walk(agent, x, nudge)[3][t] - walk(agent, x, -nudge)[3][t]) / 2e-6
                expected["policy"] -= weight * slope * actions[t][k] / 2
    holds(said(agent), expected)


def test_the_slope_of_every_return_comes_from_one_gradient() -> None:
    agent = leq()
    rule = agent.rule
    assert isinstance(rule, LEQ)
    slope = rule.dreamed(agent.learner, DATA.x[:1])[5][0]
    for t in range(4):
        for k in range(2):
            nudge = np.zeros((4, 2))
            nudge[t, k] = 1e-6
            numeric = walk(agent, numbers(DATA.x[0]), nudge)[3][t] - walk(agent, numbers(DATA.x[0]), -nudge)[3][t]
            assert float(slope[t, k]) == pytest.approx(numeric / 2e-6, rel=1e-3, abs=1e-4)


def test_leq_asks_for_a_model_and_for_both_kinds_of_rows() -> None:
    for wrong in ({"model": None}, {"model": NET, "real_ratio": 1.0}):
        with pytest.raises(MisfitError, match=r"LEQ unrolls a model from dreamed rows"):
            made(rule=LEQConfig(), **wrong)


# What a term may teach

TEACHES: dict[str, set[str]] = {
    "value": {"value"}, "state": {"rule"}, "policy": {"actor"}, "temperature": {"rule"}, "conservatism": {"value"},
    "expectile": {"value"}, "steady": {"value"},
}

RULES: dict[str, dict[str, Any]] = {
    "bc": {"rule": CloningConfig()},
    "td3bc": {"rule": TD3BCConfig()},
    "iql": {"rule": IQLConfig(units=(3,)), "policy": PolicyConfig(units=(3,), noise="added")},
    "cql": {"conservatism": ConservatismConfig(weight=5.0)},
    "combo": {"model": NET, "real_ratio": 0.5, "conservatism": ConservatismConfig(weight=5.0)},
    "mobile": {"model": NET, "real_ratio": 0.5, "inconsistency": InconsistencyConfig(weight=1.0)},
    "leq": {"model": NET, "real_ratio": 0.5, "rule": LEQConfig(horizon=2)},
}


@pytest.mark.parametrize("name", RULES)
def test_a_term_teaches_what_it_may_and_nothing_else(name: str) -> None:
    agent = made(**RULES[name])
    target, _ = agent._target(DATA)
    assert not target.requires_grad
    terms, _ = agent.rule.losses(agent.learner, DATA, target)
    if agent.config.conservatism.weight:
        terms["conservatism"] = conservatism(agent.learner, DATA, agent.config.conservatism)
    for term, loss in terms.items():
        taught = set()
        for part, module in agent.modules.items():
            if not (own := [p for p in module.parameters() if p.requires_grad]):
                continue
            grads = torch.autograd.grad(loss.mean(), own, retain_graph=True, allow_unused=True)
            if any(g is not None and bool(g.abs().sum() > 0) for g in grads):
                taught.add(part)
        assert taught == TEACHES[term], f"{name} {term}"


def test_a_delayed_policy_and_slow_copies_move_together() -> None:
    agent = small("td3bc")
    rule, fast = agent.rule, agent.value.fast.layers[0].weight
    assert isinstance(rule, TD3BC)
    delayed, moved = [agent.actor.out.bias, agent.value.slow.layers[0].weight, rule.slow.out.bias], []
    for at in range(4):
        before, first = [x.clone() for x in delayed], fast.clone()
        agent.learn(lived(at))
        moved.append([not torch.equal(a, b) for a, b in zip(before, delayed)])
        assert not torch.equal(first, fast)
    assert moved == [[True] * 3, [False] * 3, [True] * 3, [False] * 3]


def test_a_cosine_ends_the_policys_learning() -> None:
    agent = DynaConfig(
        model=None, policy=PolicyConfig(units=(3,)), value=CriticsConfig(units=(3,)), first=16, recent=64, batch_size=4,
        policy_lr_ends=2,
    ).build(SPEC)
    steps = []
    for at in range(3):
        before = agent.actor.out.bias.clone()
        agent.learn(lived(at))
        steps.append(float((agent.actor.out.bias - before).detach().abs().max()))
    # Adam's first steps are of the learning rate's size: 3e-4, half of it, none
    assert steps == pytest.approx([3e-4, 1.5e-4, 0.0], rel=0.3)


# All of them


def small(version: Any, **changes: Any) -> Dyna:
    """A preset's agent with tiny networks."""
    config = presets.agent(version)
    sizes: dict[str, Any] = {
        "policy": replace(config.policy, units=(8,)), "value": replace(config.value, units=(8,)), "batch_size": 16,
        "recent": 64, "first": 16, "branch": BranchConfig(rows=16, every=3, keep=2, length=3),
    }
    if config.model is not None:
        sizes["model"] = replace(config.model, units=(8,), decays=(), max_rounds=1)
    if config.clone_first:
        sizes |= {"clone_first": 2, "adversary": replace(config.adversary, every=2, steps=7, rows=8)}
    if isinstance(config.rule, LEQConfig):
        sizes["rule"] = replace(config.rule, horizon=2)
    torch.manual_seed(0)
    return replace(config, **(sizes | changes)).build(SPEC)


def lived(seed: int) -> Batch:
    batch = played(seed=seed)
    return replace(batch, is_terminal=torch.zeros_like(batch.is_terminal))


VERSIONS = ["bc", "td3bc", "iql", "cql", "morel", "combo", "rambo", "mobile", "leq", "coplanner"]


def test_no_version_is_left_out() -> None:
    assert set(VERSIONS) <= set(get_args(presets.Version))
    assert {*get_args(presets.ModelFree), *get_args(presets.Dreaming)} == set(get_args(presets.Version))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_learns_and_goes_on_bit_for_bit(version: str) -> None:
    agent = small(version)
    begun = [p.detach().clone() for p in agent.actor.parameters()]
    for at in range(3):
        metrics = agent.learn(lived(at)).metrics
    assert all(bool(x.isfinite()) for x in metrics.values()) and float(metrics["update/skipped"]) == 0
    assert any(not torch.equal(a, b) for a, b in zip(begun, agent.actor.parameters()))
    twin = small(version)
    twin.load_state_dict(tree.map(lambda x: x.clone(), dict(agent.state_dict())))
    for at in range(4):
        one, other = agent.learn(lived(20 + at)).metrics, twin.learn(lived(20 + at)).metrics
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), at
    assert all(torch.equal(x, twin.state_dict()[k]) for k, x in agent.state_dict().items())


@pytest.mark.parametrize("version", ["td3bc", "rambo", "leq"])
def test_features_are_standardised_by_all_that_is_held(version: str) -> None:
    agent = small(version)
    agent.learn(lived(0))
    x = agent.seen.at(slice(0, len(agent.seen))).x
    for part in (agent.actor, agent.value):
        assert torch.allclose(part.inputs.shift, x.mean(0))
        assert torch.allclose(part.inputs.scale, x.std(0, unbiased=False))
    if isinstance(agent.rule, TD3BC):
        assert torch.equal(agent.rule.slow.inputs.shift, agent.actor.inputs.shift)
    assert torch.equal(agent.learner.judge.inputs.shift, agent.value.inputs.shift)


def test_rewards_are_counted_in_thousandths_of_the_spread_of_returns() -> None:
    agent = made(rule=IQLConfig(units=(3,)), reward_unit="returns", first=3)
    once = torch.zeros(1, 7, dtype=torch.bool)
    first, last = once.clone(), once.clone()
    first[0, [0, 3, 5]], last[0, [2, 4, 6]] = True, True
    reward = torch.tensor([[0.0, 1.0, 2.0, 0.0, -5.0, 0.0, 4.0]])
    batch = Batch(
        obs={"vector": torch.arange(14.0).view(1, 7, 2)}, action=torch.zeros(1, 7, 2), prev_action=torch.zeros(1, 7, 2),
        reward=reward, is_first=first, is_last=last, is_terminal=last.clone(),
    )
    agent.hold(batch)
    held = agent.seen.at(slice(0, 4))
    # by hand: 3, -5 and 4, of which the best and the worst are 9 apart
    assert episode_returns(held).tolist() == [3.0, -5.0, 4.0]
    found = agent.begin()
    assert float(found["reward/unit"]) == pytest.approx(0.009)
    assert agent.seen.reward[:4].tolist() == pytest.approx([x / 0.009 for x in (1.0, 2.0, -5.0, 4.0)])
    agent.hold(batch)
    assert float(agent.seen.reward[4]) == pytest.approx(1 / 0.009)
    # transitions that were drawn do not follow each other: their rewards stay
    assert len(episode_returns(tree.index(held, torch.tensor([1, 0, 2, 3])))) == 0


def test_cloning_first_leaves_no_trace_in_moments() -> None:
    agent = small("rambo")
    agent.absorb(lived(0))
    value = agent.value.fast.layers[0].weight.clone()
    found = agent.begin()
    assert float(found["actor/cloned"]) > 0 and torch.equal(value, agent.value.fast.layers[0].weight)
    assert all(float(x.abs().sum()) == 0 for x in agent.optimizer.state_dict().values())


def test_policies_of_both_kinds_keep_actions_within_bounds() -> None:
    torch.manual_seed(0)
    policy = PolicyConfig(units=(4,), noise="added").build(2, SPEC.action)
    with torch.no_grad():
        policy.out.bias.fill_(5.0)
    dist = policy(torch.zeros(100, 2))
    assert bool((dist.sample().abs() <= 1).all()) and bool((dist.mode() > 0.99).all())
    # at its bounds an action's likelihood is that of a normal distribution with standard deviation 1
    assert dist.log_prob(torch.ones(100, 2)).detach().numpy() == pytest.approx(-math.log(2 * math.pi), abs=1e-3)
    assert float(dist.entropy()[0].detach()) == pytest.approx(math.log(2 * math.pi * math.e))


@pytest.mark.parametrize("wrong", [
    lambda: LEQConfig(lam=0.0), lambda: IQLConfig(expectile=1.5), lambda: ConservatismConfig(temperature=0.0),
    lambda: HaltConfig(earns="most"), lambda: AdversaryConfig(rows=0), lambda: PolicyConfig(noise="none"),
    lambda: DynaConfig(discount=1.0, halt=HaltConfig(coefficient=3.0)), lambda: TD3BCConfig(rate=2.0),
    lambda: DynaConfig(real_ratio=0.0, conservatism=ConservatismConfig(weight=1.0)),
    lambda: DynaConfig(model=None, conservatism=ConservatismConfig(weight=1.0, over="dreams")),
])
def test_numbers_that_make_no_sense_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError):
        wrong()


def test_modules_of_a_rule_are_part_of_the_agents_state() -> None:
    agent = small("iql")
    assert isinstance(agent.rule, nn.Module)
    assert any(name.startswith("model/rule.net") for name in agent.state_dict())


@pytest.mark.parametrize("version", ["edac", "leq"])
def test_an_update_with_gradients_inside_is_traced_without_a_break_and_is_the_same(version: str) -> None:
    agent = small(version, **({"rule": LEQConfig(horizon=1)} if version == "leq" else {}))
    agent.learn(lived(0))
    data = agent.draw()
    torch._dynamo.reset()
    traced = torch.compile(agent.losses, fullgraph=True, dynamic=False, backend="eager")
    found = []
    for losses_ in (agent.losses, traced):
        torch.manual_seed(0)
        total = losses_(data)[0]
        found.append([total, *torch.autograd.grad(total, agent.optimizer.parameters, materialize_grads=True)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("version", ["mobile", "leq", "rambo"])
def test_the_model_stays_where_it_is_in_memory(version: str) -> None:
    """What was captured of an update as a CUDA graph reads it there."""
    agent = replace(small(version).config, refit_every=0 if version == "rambo" else 2).build(SPEC)
    agent.learn(lived(0))
    where = [p.data_ptr() for p in agent.model.parameters()]
    for at in range(4):
        agent.learn(lived(at))
    assert [p.data_ptr() for p in agent.model.parameters()] == where
