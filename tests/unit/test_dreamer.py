"""The agent: where gradients go, what is skipped, what is kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.agents.values.reach import ReachConfig
from worldmodel.agents.values.reach_aware import ReachAwareValueConfig
from worldmodel.agents.values.twohot import TwoHotValueConfig
from worldmodel.configs.sizes import OBJECTIVES
from worldmodel.distributions import BoundedNormal
from worldmodel.types import Step


def grads(agent, loss):
    """Sum of absolute gradients by module after backpropagating one loss."""
    agent.optimizer.zero_grad()
    loss.mean().backward(retain_graph=True)
    names = {
        "encoder": agent.model.encoder, "core": agent.model.core, "objective": agent.model.objective,
        "reward": agent.model.reward, "actor": agent.actor, "value": agent.value.fast,
    }
    if agent.model.probe is not None:
        names["probe"] = agent.model.probe
    return {name: sum(p.grad.abs().sum().item() for p in m.parameters()) > 0 for name, m in names.items()}


def warmed(agent, batch, updates=3):
    """Zero-initialised heads pass no gradient on: take a few steps first."""
    for _ in range(updates):
        agent.learn(batch)
    return agent


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_actor_and_critic_losses_do_not_reach_the_world_model(kind):
    spec = make_spec(kind)
    batch = make_batch(spec)
    agent = warmed(make_agent(spec), batch)
    losses, _, _ = agent.losses(batch)
    for name, owner in (("policy", "actor"), ("value", "value")):
        touched = grads(agent, losses[name])
        assert [k for k, hit in touched.items() if hit] == [owner]


def test_replay_value_loss_shapes_the_representation_and_not_the_actor():
    batch = make_batch(make_spec())
    agent = warmed(make_agent(), batch)
    losses, _, _ = agent.losses(batch)
    touched = grads(agent, losses["replay_value"])
    assert touched["encoder"] and touched["core"] and touched["value"] and not touched["actor"]


def test_reward_gradient_reaches_the_encoder():
    batch = make_batch(make_spec())
    agent = warmed(make_agent(), batch)
    losses, _, _ = agent.losses(batch)
    assert grads(agent, losses["reward"])["encoder"]


@pytest.mark.parametrize("objective", ["barlow", "infonce"])
def test_probe_decoder_learns_without_touching_the_model(objective):
    batch = make_batch(make_spec())
    agent = warmed(make_agent(objective=objective), batch)
    losses, _, _ = agent.losses(batch)
    assert [k for k, hit in grads(agent, losses["probe"]).items() if hit] == ["probe"]


def test_barlow_target_is_held_fixed():
    batch = make_batch(make_spec())
    agent = make_agent(objective="barlow")
    tokens = agent.model.encoder(batch.obs).detach().requires_grad_()
    features = torch.randn(3, 8, agent.model.feature_dim, requires_grad=True)
    agent.model.objective(features, tokens, batch)["barlow"].sum().backward()
    assert tokens.grad is None and features.grad.abs().sum() > 0


def test_barlow_loss_against_the_definition():
    spec = make_spec()
    agent, batch = make_agent(spec, objective="barlow"), make_batch(spec)
    objective = agent.model.objective
    features, tokens = torch.randn(3, 8, agent.model.feature_dim), torch.randn(3, 8, agent.model.encoder.out_dim)
    got = objective(features, tokens, batch)["barlow"]
    assert got.shape == (3, 8)
    a, b = objective.project(features).detach().reshape(24, -1).double(), tokens.reshape(24, -1).double()
    a, b = ((x - x.mean(0)) / (x.std(0) + 1e-8) for x in (a, b))
    c = a.T @ b / 24
    eye = torch.eye(c.shape[0], dtype=torch.double)
    expected = ((c - 1).square() * eye).sum() + 5e-4 * (c.square() * (1 - eye)).sum()
    torch.testing.assert_close(got[0, 0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_every_objective_and_action_kind_learns_two_steps(objective, kind):
    spec = make_spec(kind, vector=True)
    agent = make_agent(spec, objective=objective)
    for seed in range(2):
        update = agent.learn(make_batch(spec, seed=seed))
    assert all(torch.isfinite(x).all() for x in update.metrics.values())
    assert update.memory["deter"].shape == (3, 8, 128)


def test_every_parameter_gets_gradient():
    spec = make_spec("continuous", vector=True)
    batch = make_batch(spec)
    agent = warmed(make_agent(spec), batch)
    agent.optimizer.zero_grad()
    agent.total(agent.losses(batch)[0]).backward()
    dead = [n for n, p in agent.modules.named_parameters() if p.requires_grad and p.grad.abs().sum() == 0]
    assert dead == []


def test_dynamics_gradient_trains_the_actor_through_the_model_and_leaves_the_model_alone():
    spec = make_spec("continuous", size=2)
    config = make_agent(spec).config
    config = dataclasses.replace(config, actor=dataclasses.replace(config.actor, gradient="dynamics"))
    agent = config.build(spec)
    batch = make_batch(spec)
    warmed(agent, batch)
    losses, _, _ = agent.losses(batch)
    assert [k for k, hit in grads(agent, losses["policy"]).items() if hit] == ["actor"]
    assert all(p.requires_grad for p in agent.model.parameters())
    with pytest.raises(ValueError, match="needs continuous actions"):
        config.build(make_spec("discrete"))


def test_a_non_finite_loss_skips_the_update_and_is_counted():
    spec = make_spec()
    agent, batch = make_agent(spec), make_batch(spec)
    agent.learn(batch)
    before = {k: v.clone() for k, v in agent.state_dict().items() if k.startswith(("model/", "optim/"))}
    poisoned = dataclasses.replace(batch, reward=torch.full_like(batch.reward, float("nan")))
    for expected in (1, 2):
        update = agent.learn(poisoned)
        assert update.metrics["update/bad_streak"].item() == expected
    after = agent.state_dict()
    assert [k for k, v in before.items() if not torch.equal(v, after[k])] == []
    update = agent.learn(batch)
    assert update.metrics["update/bad_streak"].item() == 0 and update.metrics["update/skipped"].item() == 2


def test_slow_critic_follows_but_is_never_trained():
    batch = make_batch(make_spec())
    agent = warmed(make_agent(), batch)
    slow = torch.cat([p.flatten() for p in agent.value.slow.parameters()]).clone()
    agent.learn(batch)
    fast = torch.cat([p.detach().flatten() for p in agent.value.fast.parameters()])
    assert not torch.equal(fast, slow)
    now = torch.cat([p.flatten() for p in agent.value.slow.parameters()])
    torch.testing.assert_close(now, slow + 0.02 * (fast - slow))


def test_first_policy_is_nearly_uniform_and_first_values_are_exactly_zero():
    agent = make_agent()
    features = torch.randn(50, agent.model.feature_dim)
    assert agent.value.value(features).abs().max().item() == 0.0
    probs = agent.actor(features).probs
    assert (probs - 1 / 3).abs().max() < 0.05
    continuous = make_agent(make_spec("continuous"))
    policy = continuous.actor(torch.randn(50, continuous.model.feature_dim))
    assert isinstance(policy, BoundedNormal) and abs(policy.std.mean().item() - 0.893) < 0.01


def test_losses_and_scales_must_have_the_same_names():
    agent = make_agent()
    losses, _, _ = agent.losses(make_batch(make_spec()))
    losses.pop("reward")
    with pytest.raises(ValueError, match="same names"):
        agent.total(losses)


def act_steps(agent, carry, seed=0, n=2, steps=5, explore=True):
    batch = make_batch(agent.spec, n, steps, seed=seed, firsts=((0, 0), (1, 0)))
    actions = []
    for t in range(steps):
        step = Step(
            obs={k: v[:, t] for k, v in batch.obs.items()}, reward=batch.reward[:, t],
            is_first=batch.is_first[:, t], is_last=batch.is_last[:, t], is_terminal=batch.is_terminal[:, t],
        )
        action, carry = agent.act(carry, step, explore=explore)
        actions.append(action)
    return torch.stack(actions, 1), carry


def test_acting_is_reproducible_and_disturbs_neither_learning_nor_other_carries():
    agent, batch = make_agent(), make_batch(make_spec())
    first, _ = act_steps(agent, agent.initial(2, seed=7))
    learn = agent.streams["learn"].state.clone()
    torch.manual_seed(123)
    outside = torch.rand(3)
    torch.manual_seed(123)
    again, _ = act_steps(agent, agent.initial(2, seed=7))
    assert torch.equal(torch.rand(3), outside), "the global stream is untouched"
    assert torch.equal(first, again) and torch.equal(agent.streams["learn"].state, learn)
    other, _ = act_steps(agent, agent.initial(2, seed=8))
    assert not torch.equal(first, other)
    agent.learn(batch)


def test_save_and_load_continue_learning_bit_for_bit():
    spec = make_spec()
    one, two = make_agent(spec, seed=1), make_agent(spec, seed=2)
    for i in range(3):
        one.learn(make_batch(spec, seed=i))
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    for i in range(3, 6):
        a, b = one.learn(make_batch(spec, seed=i)), two.learn(make_batch(spec, seed=i))
        assert [k for k in a.metrics if not torch.equal(a.metrics[k], b.metrics[k])] == []
    x, y = one.state_dict(), two.state_dict()
    assert x.keys() == y.keys() and [k for k in x if not torch.equal(x[k], y[k])] == []


def test_context_from_replay_changes_the_first_state_unless_the_episode_begins_there():
    spec = make_spec()
    agent, batch = make_agent(spec), make_batch(spec, firsts=((1, 0),))
    carry = agent.initial(3)
    _, carry = act_steps(agent, agent.initial(3), n=3)
    context = agent.memory(carry)
    with_context = dataclasses.replace(batch, context=context)

    def first_deter(b):
        with agent.streams["learn"]:
            torch.manual_seed(0)
            _, states = agent.model.loss(b, agent._context(b))
        return tree.index(states, (slice(None), 0)).deter

    plain, context_used = first_deter(batch), first_deter(with_context)
    assert not torch.allclose(plain[0], context_used[0]) and torch.equal(plain[1], context_used[1])


def test_without_context_replay_remembers_nothing_and_sequences_begin_blank():
    spec = make_spec()
    kept, blank = make_agent(spec), make_agent(spec, context="blank")
    _, carry = act_steps(kept, kept.initial(3), n=3)
    batch = dataclasses.replace(make_batch(spec), context=kept.memory(carry))
    assert blank.memory_spec == {} and blank.memory(carry) == {} and blank.learn(batch).memory == {}
    start = blank._context(batch)
    assert not start.deter.any() and not start.stoch.any() and kept._context(batch).deter.any()


def test_report_shows_truth_and_model_side_by_side():
    spec = make_spec(vector=True)
    for objective in ("reconstruction", "barlow"):
        report = make_agent(spec, objective=objective).report(make_batch(spec))
        assert report["truth/image"].shape == report["model/image"].shape == (3, 8, 32, 32, 3)
        assert report["model/image"].min() >= 0 and report["model/image"].max() <= 1
        assert report["report/open_loop_mse_image"].ndim == 0
    silent = make_agent(spec, objective="barlow", model={"probe": False})
    assert silent.report(make_batch(spec)) == {}


@pytest.mark.parametrize("target", [1 - 1 / 333, 0.9, 1.0])
def test_the_agent_alone_decides_the_discount(target):
    """A head that has learned what it is trained on is certain that an episode goes on, whatever that is."""
    agent = make_agent(model={"continue_target": target}, horizon=10.0)
    head, state = agent.model.continues, agent.model.initial(2)
    with torch.no_grad():
        for p in head.parameters():
            p.zero_()
        final = [m for m in head.modules() if isinstance(m, torch.nn.Linear)][-1]
        final.bias.fill_(torch.logit(torch.tensor(target, dtype=torch.float64), eps=1e-9))
        said = agent.model.predict(state, torch.zeros(2, 3), state).continues
    torch.testing.assert_close(said, torch.ones(2))
    assert agent.discount == 0.9
    with pytest.raises(ValueError, match=r"continue_target must be in \(0, 1\]"):
        make_agent(model={"continue_target": target + 0.5})


@pytest.mark.parametrize("value", [
    TwoHotValueConfig(), *[ReachAwareValueConfig(reach=ReachConfig(detector=kind)) for kind in ("knn", "rnd")],
])
@pytest.mark.parametrize(("learns", "changed"), [("model", {"model"}), ("behaviour", {"actor", "value", "norm"})])
def test_what_does_not_learn_stays_as_it_is(learns, changed, value):
    batch = make_batch(make_spec())
    agent = make_agent(learns=learns)
    agent = dataclasses.replace(agent.config, value=value).build(agent.spec)
    before = {name: x.clone() for name, x in agent.modules.state_dict().items()}
    warmed(agent, batch)
    moved = {name.split(".")[0] for name, x in agent.modules.state_dict().items() if not torch.equal(x, before[name])}
    assert moved == changed


def test_a_behaviour_in_a_learned_model_learns_what_it_would_beside_it_and_begins_without_moments():
    batch = make_batch(make_spec())
    first = warmed(make_agent(learns="model"), batch)
    kept, whole = make_agent(learns="behaviour"), make_agent()
    for agent in (kept, whole):
        agent.adopt(first.state_dict())
    losses = []
    for agent in (kept, whole):
        with agent.streams["learn"]:
            losses.append(agent.losses(batch)[0])
    assert set(losses[0]) == {"policy", "value", "replay_value"}
    for name, mine in losses[0].items():
        torch.testing.assert_close(mine, losses[1][name])
    assert float(kept.optimizer.count) == 0 and kept.learn(batch).metrics["loss/total"].isfinite()
    again = make_agent(learns="behaviour")
    again.adopt(kept.state_dict())
    assert float(again.optimizer.count) == 1
    with pytest.raises(RuntimeError, match=r"\d+ tensors differ, first .* here"):
        make_agent(make_spec("continuous"), learns="behaviour").adopt(kept.state_dict())
