"""Faults that published code of offline agents has and ours has not (the edge-of-reach repository, OfflineRL-Kit); and
what the papers measured of doubt, on systems whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.test_dyna import SPEC
from tests.unit.test_offline_agents import DATA, lived, made, small
from worldmodel import published, tree
from worldmodel.agents.dyna import losses
from worldmodel.agents.dyna.agent import BranchConfig, Dyna, DynaConfig
from worldmodel.agents.dyna.buffer import flatten
from worldmodel.agents.dyna.pessimism import HaltConfig, InconsistencyConfig, inconsistency
from worldmodel.agents.dyna.policy import PolicyConfig
from worldmodel.agents.dyna.rules.soft import SoftConfig
from worldmodel.agents.values.critics import CriticsConfig
from worldmodel.configs.reach import pendulum
from worldmodel.models.analytic import Pendulum, Point
from worldmodel.models.ensemble import EnsembleModelConfig, Observed
from worldmodel.models.heuristics import HEURISTICS, rank_correlation
from worldmodel.models.plateau import KnownConfig
from worldmodel.report.compare import Task, normalised

SMALL_NET = EnsembleModelConfig(members=3, elites=2, units=(16,), decays=(), max_rounds=3)


def fitted(**changes: Any) -> Dyna:
    agent = made(model=SMALL_NET, real_ratio=0.25, recent=64, first=16, **changes)
    agent.absorb(lived(0))
    agent.prepare()
    return agent


# The edge-of-reach repository


def test_a_fitted_ensemble_is_the_same_after_saving_and_is_not_fitted_again() -> None:
    agent = small("mopo")
    agent.learn(lived(0))
    twin = small("mopo")
    twin.load_state_dict(tree.map(lambda x: x.clone(), dict(agent.state_dict())))
    state, action = Observed(x=DATA.x, reward=torch.zeros(4)), DATA.action
    for one, other in zip(agent.model.gaussians(DATA.x, action), twin.model.gaussians(DATA.x, action)):
        assert torch.equal(one, other)
    assert torch.equal(agent.model.elite, twin.model.elite) and float(twin.model.inputs.scale.min()) != 1.0
    twin.learn(lived(1))
    assert int(twin.model.fitted) == int(agent.model.fitted) == 1
    torch.manual_seed(0)
    arrived = twin.model.step(state, action)
    assert bool(arrived.x.isfinite().all())


def test_nothing_asks_for_a_gpu() -> None:
    agent = small("ravl")
    agent.learn(lived(0))
    assert all(x.device.type == "cpu" for x in agent.state_dict().values())


def test_inputs_are_standardised_by_every_state_that_was_left_not_by_the_first_one() -> None:
    agent = fitted()
    held = agent.seen.at(slice(0, len(agent.seen)))
    kept = held.x[agent.seen.mark[: len(agent.seen)] < 0.5]
    assert torch.allclose(agent.model.inputs.shift[:2], kept.mean(0), atol=1e-6)
    assert torch.allclose(agent.model.inputs.scale[:2], kept.std(0, unbiased=False), atol=1e-6)


def test_more_branches_begin_than_there_are_data() -> None:
    agent = made(model=KnownConfig(name="plateau"), branch=BranchConfig(rows=50, every=5, keep=1, length=1))
    agent.seen.add(DATA)
    assert float(agent.dream(1)["branch/transitions"]) == 50


def test_limits_of_variance_are_kept_with_the_weights_that_they_were_learned_with() -> None:
    torch.manual_seed(0)
    model = replace(SMALL_NET, max_rounds=1).build(SPEC)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator)
    data = replace(
        DATA, x=x, action=torch.zeros(200, 2), reward=x[:, 0], next_x=x, terminal=torch.zeros(200),
        edge=torch.zeros(200),
    )
    held = torch.arange(200) % 5 == 0
    model.fit(data, held)
    # a second fit that gets worse in every round must leave weights and limits where its first round had them
    said: list[Tensor] = []
    real = model._bounded

    def worse(out: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_var = real(out, members)
        if not torch.is_grad_enabled():  # held-out data are judged
            said.append(model.upper.detach().clone())
            mean = mean + 100.0 * len(said)
        return mean, log_var

    model._bounded = worse  # type: ignore[method-assign]
    model.config = replace(model.config, max_rounds=4)
    model.fit(data, held)
    assert len(said) >= 4 and not torch.equal(said[0], said[-1])
    assert torch.equal(model.upper, said[0])


@pytest.mark.parametrize("change", [{"penalty": 5.0}, {"halt": HaltConfig(coefficient=3.0)}])
def test_with_the_true_dynamics_doubt_costs_nothing(change: dict[str, Any]) -> None:
    """MOPO and MOReL are MBPO there, bit for bit (Sims et al. 2024, section 4.1): what fails with the truth, no penalty
    of the model's doubt can mend."""
    settings: dict[str, Any] = {
        "model": KnownConfig(name="plateau"), "branch": BranchConfig(rows=16, every=2, keep=2, length=3),
        "policy": PolicyConfig(units=(8,)), "value": CriticsConfig(units=(8,)), "batch_size": 16, "recent": 64,
        "first": 16,
    }
    one, other = (DynaConfig(**settings, **more).build(SPEC) for more in ({}, change))
    for at in range(5):
        plain, doubted = one.learn(lived(at)).metrics, other.learn(lived(at)).metrics
        assert all(torch.equal(x, doubted[name]) for name, x in plain.items())
    assert all(torch.equal(a, b) for a, b in zip(one.actor.parameters(), other.actor.parameters()))


def test_with_the_true_dynamics_members_cannot_differ() -> None:
    agent = made(model=KnownConfig(name="plateau"), inconsistency=InconsistencyConfig(weight=5.0), real_ratio=0.25)
    assert inconsistency(agent.learner, DATA, 10).tolist() == [0.0] * 4


# OfflineRL-Kit


def test_the_spread_of_normalised_scores_has_no_offset() -> None:
    task = Task(name="alien", benchmark="atari100k", game="alien", records=(), frames=0)
    scores = np.array([300.0, 500.0, 1000.0])
    low, high = published.scale("atari100k", "alien") or (0.0, 1.0)
    assert low != 0
    assert normalised(scores, task).std() == pytest.approx(scores.std() / (high - low))
    assert normalised(scores, task).mean() == pytest.approx((scores.mean() - low) / (high - low))


def test_an_end_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="'hoper' does not exist"):
        EnsembleModelConfig(ends="hoper")  # type: ignore[arg-type]


def test_the_truth_steps_a_whole_batch_as_it_steps_one() -> None:
    truth, generator = Pendulum(), torch.Generator().manual_seed(0)
    angle, speed = torch.rand(64, generator=generator) * 6, torch.rand(64, generator=generator) * 8
    x, action = torch.stack([angle.cos(), angle.sin(), speed], -1), torch.rand(64, 1, generator=generator) * 2 - 1
    together = truth.step(Point(x=x), action).x
    apart = torch.cat([truth.step(Point(x=x[i : i + 1]), action[i : i + 1]).x for i in range(64)])
    assert torch.allclose(together, apart, atol=1e-6)


def test_dreams_never_leave_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = fitted(penalty=1.0)

    def left(*_: Any, **__: Any) -> Any:
        raise AssertionError("a dream became numpy")

    for name in ("numpy", "cpu", "__array__", "tolist"):
        monkeypatch.setattr(Tensor, name, left)
    assert float(agent.dream(3)["branch/transitions"]) == 12


def test_targets_of_negative_rewards_stay_negative() -> None:
    agent = fitted(rule=SoftConfig(backup="plain"), inconsistency=InconsistencyConfig(weight=1.0, samples=2))
    with torch.no_grad():
        for p in agent.value.slow.layers[-1].parameters():
            p.zero_()
    _, _, target = agent.losses(replace(DATA, reward=torch.full((4,), -5.0)))
    assert float(target.max()) <= -5.0


def test_an_outcome_that_no_member_expects_has_a_finite_likelihood() -> None:
    agent = fitted()
    far = Observed(x=DATA.x + 1e4, reward=torch.zeros(4))
    logs = agent.model.log_prob(Observed(x=DATA.x, reward=torch.zeros(4)), DATA.action, far)
    assert bool(logs.isfinite().all()) and float(logs.detach().max()) < -1e4
    loss = losses.adversarial_loss(log_prob=logs, advantage=torch.tensor([1.0, 2.0, 3.0, 4.0]), alive=torch.ones(4))
    grads = torch.autograd.grad(loss, [*agent.model.net.parameters()])
    assert all(bool(g.isfinite().all()) for g in grads)


# Measured claims


def test_doubt_that_is_about_the_model_orders_its_errors() -> None:
    """Pendulum, data of a medium controller: what members differ in orders true errors, near the data and anywhere; the
    noise that they predict does not ("Revisiting Design Choices")."""
    torch.manual_seed(0)
    study, truth = pendulum(), Pendulum()
    generator = torch.Generator().manual_seed(0)
    batch = study.data(generator)
    data, _ = flatten(batch, batch.obs["vector"])
    model = EnsembleModelConfig(units=(64, 64, 64), max_rounds=60).build(study.spec)
    model.fit(data, torch.arange(len(data.reward)) % 5 == 0)
    near = Point(x=data.x[torch.randint(len(data.x), (1000,), generator=generator)])
    for _ in range(5):
        near = truth.step(near, torch.rand(1000, 1, generator=generator) * 2 - 1)
    angle, speed = ((torch.rand(1000, generator=generator) * 2 - 1) * far for far in (math.pi, 8.0))
    anywhere = Point(x=torch.stack([angle.cos(), angle.sin(), speed], -1))
    found: dict[str, list[float]] = {name: [] for name in HEURISTICS}
    for state in (near, anywhere):
        action = torch.rand(1000, 1, generator=generator) * 2 - 1
        arrived = truth.step(state, action)
        reward = truth.predict(state, action, arrived).reward
        with torch.no_grad():
            mean, log_var = model.gaussians(state.x, action)
        believed = mean[model.elite].mean(0)
        error = believed - torch.cat([arrived.x - state.x, reward.unsqueeze(-1)], -1)
        for name, heuristic in HEURISTICS.items():
            found[name].append(rank_correlation(heuristic(mean, (0.5 * log_var).exp()), error.norm(dim=-1)))
    for name in ("mean_std", "max_pairwise"):
        assert min(found[name]) > 0.5, found
        assert found[name][1] > found["max_aleatoric"][1], found


def test_branches_that_end_for_doubt_are_as_long_as_the_model_is_good() -> None:
    """More data, longer branches; and they end where the model has begun to be wrong (NEUBAY's rule)."""
    truth, lengths, errors = Pendulum(), [], []
    study = pendulum()
    everything, _ = flatten(data := study.data(torch.Generator().manual_seed(0)), data.obs["vector"])
    for count, rounds in ((400, 300), (4000, 30)):  # about as many steps of learning for both
        model = EnsembleModelConfig(units=(64, 64), max_rounds=rounds, patience=rounds, noise="mean")
        agent = DynaConfig(
            model=model, first=count, recent=count,
            branch=BranchConfig(rows=200, every=1, keep=1, length=40), policy=PolicyConfig(units=(8,)),
            value=CriticsConfig(units=(8,)), halt=HaltConfig(coefficient=1.0, quantile=0.95, earns="bootstrap"),
        ).build(study.spec)
        torch.manual_seed(0)
        agent.seen.add(tree.index(everything, slice(0, count)), (torch.arange(count) % 5 == 0).float())
        agent.model.fit(agent.seen.at(slice(0, count)), agent.seen.mark > 0.5)
        agent.measure_doubt()
        found = agent.dream(40)
        lengths.append(float(found["branch/mean"]))
        dreamt = agent.dreams.at(slice(0, len(agent.dreams)))
        assert float(dreamt.edge.sum()) == 200, "every branch ends once, without an end of the episode"
        true = truth.step(Point(x=dreamt.x), dreamt.action).x
        wrong = (true - dreamt.next_x).norm(dim=-1)
        errors.append([float(wrong[dreamt.edge == ends].median()) for ends in (0, 1)])
    assert 1 <= lengths[0] < 0.7 * lengths[1] < 40, lengths
    assert all(inside < 0.3 and at_end > 1.5 * inside for inside, at_end in errors), errors
