"""The recurrent core: exact steps, resets, acting equals training, memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.configs.sizes import SIZES, dreamer
from worldmodel.distributions import Categorical
from worldmodel.models.cores.rssm import RSSMConfig, RSSMState
from worldmodel.models.latent import balanced_kl
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec


def small(**changes):
    torch.manual_seed(0)
    return RSSMConfig(**({"deter": 32, "hidden": 16, "stoch": 4, "classes": 5, "blocks": 4} | changes)).build(3, 7)


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_one_recurrent_step_equals_a_numpy_loop_over_blocks():
    core = small()
    with torch.no_grad():
        for p in core.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    state = RSSMState(deter=torch.randn(2, 32), stoch=torch.softmax(torch.randn(2, 4, 5), -1))
    action = torch.tensor([[0.5, -3.0, 0.2], [1.0, 0.0, 2.0]])
    got = core._recur(state.deter, state.stoch, core._embed_action(action)).detach().numpy()

    w = {name: p.detach().numpy() for name, p in core.named_parameters()}

    def dense(prefix, x):
        return silu(rms(x @ w[f"{prefix}.0.weight"].T + w[f"{prefix}.0.bias"], w[f"{prefix}.1.scale"]))

    deter = state.deter.numpy()
    act = action.numpy() / np.maximum(1, np.abs(action.numpy()))
    stoch = state.stoch.numpy().reshape(2, -1)
    shared = np.concatenate([dense("from_deter", deter), dense("from_stoch", stoch), dense("from_action", act)], -1)
    inputs = [np.concatenate([deter[:, 8 * b : 8 * b + 8], shared], -1) for b in range(4)]
    hidden = np.concatenate([x @ w["mix.0.weight"][b] for b, x in enumerate(inputs)], -1)
    hidden = silu(rms(hidden + w["mix.0.bias"], w["mix_norms.0.scale"]))  # the norm couples the blocks
    expected = np.zeros_like(deter)
    for b in range(4):
        gates = hidden[:, 8 * b : 8 * b + 8] @ w["gates.weight"][b] + w["gates.bias"][24 * b : 24 * b + 24]
        reset, candidate, update = gates[:, :8], gates[:, 8:16], gates[:, 16:]
        u = sigmoid(update - 1)
        expected[:, 8 * b : 8 * b + 8] = u * np.tanh(sigmoid(reset) * candidate) + (1 - u) * deter[:, 8 * b : 8 * b + 8]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("posterior", ["recurrent", "frame"])
def test_a_sequence_equals_its_steps_one_by_one(posterior):
    core = small(posterior=posterior)
    tokens, action = torch.randn(2, 6, 7), torch.randn(2, 6, 3)
    is_first = torch.zeros(2, 6, dtype=torch.bool)
    is_first[0, 3] = True
    torch.manual_seed(5)
    whole = core.observe(core.initial(2), tokens, action, is_first)
    torch.manual_seed(5)
    noise = torch.rand(2, 6, 4)
    state = core.initial(2)
    for t in range(6):
        at = slice(t, t + 1)
        real = torch.rand
        torch.rand = lambda *a, t=t, **k: noise[:, t : t + 1]
        try:
            out = core.observe(state, tokens[:, at], action[:, at], is_first[:, at])
        finally:
            torch.rand = real
        state = tree.index(out.states, (slice(None), 0))
        torch.testing.assert_close(state.deter, whole.states.deter[:, t])
        torch.testing.assert_close(state.stoch, whole.states.stoch[:, t])


@pytest.mark.parametrize("at", [0, 1, 5])
def test_reset_forgets_state_and_previous_action(at):
    core = small()
    tokens, action = torch.randn(1, 6, 7), torch.randn(1, 6, 3)
    is_first = torch.zeros(1, 6, dtype=torch.bool)
    is_first[0, at] = True

    def run(state, tokens, action):
        torch.manual_seed(3)
        return core.observe(state, tokens, action, is_first)

    base = run(core.initial(1), tokens, action)
    other_tokens, other_action = tokens.clone(), action.clone()
    other_tokens[:, :at] += 10
    other_action[:, : at + 1] += 10  # the previous action of the first step too
    dirty = RSSMState(deter=torch.randn(1, 32), stoch=torch.softmax(torch.randn(1, 4, 5), -1))
    changed = run(dirty, other_tokens, other_action)
    torch.testing.assert_close(base.states.deter[:, at:], changed.states.deter[:, at:], rtol=0, atol=0)
    torch.testing.assert_close(base.posterior[:, at:], changed.posterior[:, at:], rtol=0, atol=0)
    is_first[0, at] = False
    unreset = run(dirty, other_tokens, other_action)
    same = torch.allclose(base.states.deter[:, at:], unreset.states.deter[:, at:])
    assert not same, "without the reset the past matters"


def test_memory_round_trips_through_class_indices_and_bfloat16():
    core = small()
    out = core.observe(core.initial(3), torch.randn(3, 4, 7), torch.randn(3, 4, 3), torch.zeros(3, 4, dtype=torch.bool))
    packed = core.pack(out.states)
    assert {k: (x.dtype, tuple(x.shape[2:])) for k, x in packed.items()} == {
        "deter": (torch.bfloat16, (32,)), "stoch": (torch.uint8, (4,)),
    }
    back = core.unpack(packed)
    torch.testing.assert_close(back.stoch, out.states.stoch.detach().round())
    torch.testing.assert_close(back.deter, out.states.deter.detach(), rtol=1e-2, atol=1e-2)


def test_free_nats_act_on_the_sum_over_groups_and_stop_the_gradient():
    posterior = torch.zeros(1, 1, 32, 4, requires_grad=True)
    prior = torch.zeros(1, 1, 32, 4)
    prior[..., 0] = 0.2
    # each group alone is far below one nat, and so is their sum
    dyn, rep = balanced_kl(posterior, prior, unimix=0.01, free_nats=1.0)
    assert dyn.item() == rep.item() == 1.0
    rep.sum().backward()
    assert posterior.grad.abs().max() == 0
    prior[..., 0] = 1.5
    dyn, rep = balanced_kl(posterior, prior, unimix=0.01, free_nats=1.0)
    by_hand = sum(Categorical(posterior[0, 0, g], 0.01).kl(Categorical(prior[0, 0, g], 0.01)).item() for g in range(32))
    assert dyn.item() == pytest.approx(by_hand, rel=1e-4) and rep.item() == pytest.approx(by_hand, rel=1e-4)


def test_dyn_moves_the_prior_only_and_rep_the_posterior_only():
    posterior, prior = torch.randn(2, 3, 8, 4, requires_grad=True), torch.randn(2, 3, 8, 4, requires_grad=True)
    dyn, rep = balanced_kl(posterior, prior, unimix=0.01, free_nats=0.0)
    grads = torch.autograd.grad(dyn.sum(), [posterior, prior], allow_unused=True, retain_graph=True)
    assert grads[0] is None and grads[1].abs().sum() > 0
    grads = torch.autograd.grad(rep.sum(), [posterior, prior], allow_unused=True)
    assert grads[1] is None and grads[0].abs().sum() > 0


def test_told_to_remember_it_begins_with_gates_that_keep_the_past():
    def kept(core):
        """How far deter follows what it was 64 steps before, at its most sensitive unit."""
        deter = start = torch.full((1, 32), 0.1, requires_grad=True)
        for _ in range(64):
            deter = core._recur(deter, torch.zeros(1, 4, 5), core._embed_action(torch.zeros(1, 3)))
        return torch.autograd.grad(deter.sum(), start)[0].abs().max()

    core = small(remember=64)
    update = core.gates.bias.detach().view(4, 3, 8)
    opened = torch.sigmoid(update[:, 2] - 1)
    assert (update[:, :2] == 0).all() and 1 / 64.1 <= opened.min() < 0.05 and 0.2 < opened.max() <= 0.5
    assert kept(core) > 0.1 and kept(small()) < 0.05
    with pytest.raises(ValueError, match="remember must be at least 2"):
        RSSMConfig(remember=1)


# Parameter counts published or computed from the reference implementation, slow critic excluded.
COUNTS = {
    "1m": 686_846, "12m": 10_494_158, "25m": 23_489_326, "50m": 41_650_062, "100m": 93_468_238, "200m": 165_948_686,
    "400m": 372_896_398,
}


def count(config, spec):
    with torch.device("meta"):
        model = config.model.build(spec)
        actor, value = config.actor.build(model.feature_dim, spec.action), config.value.build(model.feature_dim)
    return {
        **{name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()},
        "actor": sum(p.numel() for p in actor.parameters()),
        "value": sum(p.numel() for p in value.fast.parameters()),
    }


@pytest.mark.parametrize("size", list(SIZES))
def test_parameter_count_of_every_size_from_64_pixel_rgb(size):
    obs = {"image": ArraySpec(shape=(64, 64, 3), dtype="uint8")}
    spec = EnvSpec(name="x", obs=obs, action=ActionSpec(kind="continuous", size=6))
    assert sum(count(dreamer(size), spec).values()) == COUNTS[size]


def test_parameter_count_of_walker_proprio_by_module():
    sizes = {"height": 1, "orientations": 14, "velocity": 9}
    obs = {key: ArraySpec(shape=(size,), dtype="float32") for key, size in sizes.items()}
    parts = count(dreamer("1m"), EnvSpec(name="x", obs=obs, action=ActionSpec(kind="continuous", size=6)))
    assert parts == {
        "encoder": 10_112, "core": 364_416, "objective": 51_096, "reward": 57_663, "continues": 41_153,
        "actor": 50_316, "value": 66_111,
    }
    assert sum(parts.values()) == 640_867


def test_model_observe_acts_like_it_trains():
    spec = make_spec(vector=True)
    agent, batch = make_agent(spec), make_batch(spec, 2, 6, firsts=((0, 2),))
    model = agent.model
    torch.manual_seed(9)
    whole = model.observe(model.initial(2), batch.obs, batch.prev_action, batch.is_first)
    torch.manual_seed(9)
    losses, states = model.loss(batch, model.initial(2))
    torch.testing.assert_close(whole.deter, states.deter)
    torch.testing.assert_close(whole.stoch, states.stoch)
    assert all(x.shape == (2, 6) and torch.isfinite(x).all() for x in losses.values())


def test_images_must_be_raw_bytes():
    spec = make_spec()
    agent, batch = make_agent(spec), make_batch(spec)
    floats = dataclasses.replace(batch, obs={"image": batch.obs["image"].float()})
    with pytest.raises(TypeError, match="must be uint8"):
        agent.learn(floats)
