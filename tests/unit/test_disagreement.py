"""The ensemble of one-step predictions: what it learns, what it reaches, and what its number means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from tests.unit.test_composition import TINY, VARIANTS, learns, make
from worldmodel import tree
from worldmodel.check.world_model import check_world_model
from worldmodel.configs.sizes import OBJECTIVES, dreamer
from worldmodel.errors import UserError
from worldmodel.models.disagreement import Disagreement, DisagreementConfig
from worldmodel.planning.selector import CandidateSelector, DreamSelector
from worldmodel.protocols import Uncertain
from worldmodel.uncertainty import doubt

SMALL = DisagreementConfig(members=3, units=16, layers=1)


def test_off_by_default_and_then_nothing_is_different() -> None:
    plain, unsure = make_agent(), make_agent(model={"disagreement": SMALL})
    assert not isinstance(plain.model, Uncertain) and isinstance(unsure.model, Uncertain)
    assert "disagreement" not in plain.model.loss_scales
    assert not [name for name in plain.state_dict() if "ensemble" in name]
    mine, theirs = dict(plain.model.named_parameters()), dict(unsure.model.named_parameters())
    assert mine.keys() < theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in mine.items())
    with pytest.raises(UserError, match="has no disagreement"):
        doubt(plain.model, plain.model.initial(2), torch.zeros(2, 1, 3))


@pytest.mark.parametrize(("form", "target"), [("mean", "deter"), ("sample", "token")])
def test_a_model_with_an_ensemble_keeps_every_promise(form: Any, target: Any) -> None:
    config = replace(dreamer("nano").model, disagreement=replace(SMALL, form=form, target=target))
    report = check_world_model(config).require()
    assert any(f.check == "is uncertain" and f.status == "pass" for f in report.findings)


def test_the_sizes_of_the_paper() -> None:
    # 12m: features 2048 + 32 * 16, 6 actions; five layers of 1024 with norms; 512 numbers out
    with torch.device("meta"):
        ensemble = DisagreementConfig().build(2048 + 512 + 6, 512)
    one = (2566 * 1024 + 1024) + 4 * (1024 * 1024 + 1024) + 5 * 2 * 1024 + (1024 * 512 + 512)
    assert sum(p.numel() for p in ensemble.parameters()) == 8 * one == 58_896_384


def test_the_loss_reaches_the_ensemble_alone() -> None:
    agent = make_agent(model={"disagreement": SMALL})
    losses, _ = agent.model.loss(make_batch(agent.spec), agent.model.initial(3))
    grads = torch.autograd.grad(losses["disagreement"].sum(), list(agent.model.parameters()), allow_unused=True)
    touched = {n.split(".")[0] for (n, _), g in zip(agent.model.named_parameters(), grads) if g is not None}
    assert touched == {"ensemble"}


def test_spread_and_error_against_the_definition() -> None:
    spec = make_spec("continuous", size=2)
    ensemble = replace(SMALL, scale="raw").build(5 + 2, 4)
    batch = make_batch(spec, 2, 4, firsts=((1, 2),))
    features, target = torch.randn(2, 4, 5), torch.randn(2, 4, 4)
    got = ensemble.loss(features, target, batch)
    action = batch.prev_action / batch.prev_action.abs().clamp(min=1)
    members = ensemble.heads(torch.cat([features[:, :-1], action[:, 1:]], -1))
    error = torch.stack([(members[e] - target[:, 1:]).square().mean(-1) for e in range(3)]).mean(0)
    expected = torch.cat([torch.zeros(2, 1), error], 1)
    expected[1, 2] = 0.0  # an episode begins: nothing led there
    torch.testing.assert_close(got, expected)
    one = ensemble(features[0, 0], action[0, 1])
    numbers = members[:, 0, 0]
    torch.testing.assert_close(one, ((numbers - numbers.mean(0)).square().mean(0)).sqrt().mean())
    assert ensemble(features, action).shape == (2, 4)


def test_running_scale_divides_by_the_standard_deviation_over_replay() -> None:
    torch.manual_seed(0)
    ensemble = replace(SMALL, rate=1.0).build(5 + 2, 4)
    batch = make_batch(make_spec("continuous", size=2), 8, 6, firsts=((1, 2),))
    features, target = torch.randn(8, 6, 5), torch.randn(8, 6, 4)
    action = batch.prev_action
    before = ensemble(features[:, :-1], action[:, 1:])
    assert float(ensemble.unit()) == 1.0, "nothing was seen"
    ensemble.loss(features, target, batch)
    seen = before[~batch.is_first[:, 1:]]
    torch.testing.assert_close(ensemble.unit(), seen.std(correction=0))
    torch.testing.assert_close(ensemble(features[:, :-1], action[:, 1:]), before / seen.std(correction=0))
    kept = ensemble.moments.clone()
    ensemble.loss(torch.full_like(features, torch.nan), target, batch)
    assert torch.equal(ensemble.moments, kept), "what is not finite changes nothing"


def test_running_statistics_do_not_lean_towards_their_start() -> None:
    torch.manual_seed(0)
    ensemble = replace(SMALL, rate=0.01).build(5 + 2, 4)
    batch = make_batch(make_spec("continuous", size=2), 8, 6, firsts=())
    features, target = torch.randn(8, 6, 5), torch.randn(8, 6, 4)
    for _ in range(3):
        ensemble.loss(features, target, batch)
    spread = replace(SMALL, scale="raw").build(5 + 2, 4)
    spread.load_state_dict(ensemble.state_dict())
    now = spread(features[:, :-1], batch.prev_action[:, 1:])
    torch.testing.assert_close(ensemble.unit(), now.std(correction=0), rtol=1e-3, atol=1e-6)


def test_members_agree_where_they_were_trained_and_not_elsewhere() -> None:
    torch.manual_seed(0)
    ensemble: Disagreement = DisagreementConfig(members=4, units=32, layers=2, scale="raw").build(2 + 1, 2)
    optimizer = torch.optim.Adam(ensemble.parameters(), 3e-3)
    features = torch.rand(64, 9, 2)
    batch = replace(make_batch(make_spec("continuous", size=1), 64, 9, firsts=()), reward=torch.zeros(64, 9))
    target = torch.cat([features[:, :1], features[:, :-1].flip(-1)], 1)
    for _ in range(150):
        optimizer.zero_grad()
        ensemble.loss(features, target, batch).mean().backward()
        optimizer.step()
    action = batch.prev_action[:, 1:]
    near, far = ensemble(features[:, 1:], action).mean(), ensemble(features[:, 1:] + 3, action).mean()
    assert far > 3 * near


def test_samples_disagree_by_the_worlds_noise_and_means_do_not() -> None:
    torch.manual_seed(0)
    spreads = {}
    for form in ("mean", "sample"):
        ensemble = DisagreementConfig(members=4, units=32, layers=1, scale="raw", form=form).build(2 + 1, 1)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(ensemble.parameters(), 3e-3)
        batch = make_batch(make_spec("continuous", size=1), 64, 9, firsts=())
        features = torch.rand(64, 9, 2)
        for _ in range(150):
            optimizer.zero_grad()
            ensemble.loss(features, torch.randn(64, 9, 1), batch).mean().backward()
            optimizer.step()
        spreads[form] = float(ensemble(features, batch.prev_action).detach().mean())
    # four samples of a standard normal: 0.80 on average
    assert spreads["mean"] < 0.3 and 0.6 < spreads["sample"] < 1.0


@pytest.mark.parametrize("core", [*TINY, *VARIANTS])
def test_every_core_carries_it(core: str) -> None:
    agent = make((TINY | VARIANTS)[core], warmup=0)
    selector = CandidateSelector(candidates=2, horizon=2)
    config = replace(
        agent.config, model=replace(agent.config.model, disagreement=SMALL), acting=selector,
        dreaming=DreamSelector(selector=replace(selector, mode="conservative")),
    )
    learns(config.build(agent.spec))


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_goes_with_it(objective: str) -> None:
    agent = make(TINY["rssm"], objective=objective, warmup=0)
    config = replace(agent.config, model=replace(agent.config.model, disagreement=SMALL), intrinsic=1.0)
    learns(config.build(agent.spec))


def test_a_twin_without_gradient_follows_the_running_statistics() -> None:
    agent = make_agent(make_spec("continuous"), model={"disagreement": SMALL})
    config = replace(agent.config, actor=replace(agent.config.actor, gradient="dynamics"))
    agent = config.build(agent.spec)
    agent.learn(make_batch(agent.spec))
    twin: Any = agent._dreamer
    assert float(agent.model.ensemble.moments[0]) > 0  # type: ignore[union-attr]
    torch.testing.assert_close(twin.ensemble.moments, agent.model.ensemble.moments)  # type: ignore[union-attr]
    state = agent.model.initial(2)
    some = torch.rand(2, agent.spec.action.size)
    torch.testing.assert_close(twin.disagreement(state, some), agent.model.disagreement(state, some))
    assert tree.leaves(state)


@pytest.mark.parametrize(("change", "said"), [({"members": 1}, "at least 2 members"), ({"rate": 0.0}, "rate must be")])
def test_numbers_that_mean_nothing_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DisagreementConfig(**change)
