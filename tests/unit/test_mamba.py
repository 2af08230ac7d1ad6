"""The Mamba core: in parallel as step by step, resets, sizes, memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.configs.drama import PUBLISHED
from worldmodel.models.cores.mamba import Mamba, MambaConfig
from worldmodel.models.latent import free_on_mean
from worldmodel.nn.encoders import StrideEncoderConfig
from worldmodel.nn.mamba import conv_windows
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec

A, E = 3, 7


def small(**changes) -> Mamba:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "headdim": 8, "d_state": 4, "stoch": 3, "classes": 4}
    core = MambaConfig(**(sizes | changes)).build(A, E)
    with torch.no_grad():
        for p in core.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return core


def sequence(time, *, rows=3, seed=1):
    """Random data with episodes that begin at the first step, around the edge of a chunk, at the last, and anywhere."""
    g = torch.Generator().manual_seed(seed)
    is_first = torch.rand(rows, time, generator=g) < 0.05
    is_first[0] = False
    is_first[1, [0, time - 1]] = True
    for at in (15, 16, 64):
        if at < time:
            is_first[2, at] = True
    tokens, action = torch.randn(rows, time, E, generator=g), torch.randn(rows, time, A, generator=g)
    return tokens, action, is_first, torch.rand(rows, time, 3, generator=g)


def dirty(core, rows=3):
    """A state that has seen something, with gradient."""
    g = torch.Generator().manual_seed(9)
    return tree.map(lambda x: torch.randn(x.shape, generator=g).requires_grad_(), core.initial(rows))


def observed(core, state, tokens, action, is_first, noise, monkeypatch):
    """One call, with this noise."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **_: noise)
        return core.observe(state, tokens, action, is_first)


def close(a, b, tolerance=1e-5):
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("posterior", ["frame", "recurrent"])
def test_a_batch_with_resets_equals_its_episodes_run_alone(posterior, monkeypatch):
    core = small(posterior=posterior)
    tokens, action, is_first, noise = sequence(20, rows=3)
    is_first[:] = False
    is_first[0, [0, 7, 16]] = True
    with torch.no_grad():
        whole = observed(core, dirty(core), tokens, action, is_first, noise, monkeypatch).states
        for first, last in ((0, 7), (7, 16), (16, 20)):
            at = (slice(0, 1), slice(first, last))
            # begun from nothing: the first previous action is another episode's
            prev = action[at].clone()
            prev[:, 0] = 0
            alone = observed(
                core, core.initial(1), tokens[at], prev, torch.zeros(1, last - first, dtype=torch.bool), noise[at],
                monkeypatch,
            ).states
            close(alone, tree.index(whole, at))


def test_the_recurrent_posterior_sees_the_past(monkeypatch):
    core, data = small(posterior="recurrent"), sequence(12)
    with torch.no_grad():
        one = observed(core, dirty(core), *data, monkeypatch)
        other = observed(core, core.initial(3), *data, monkeypatch)
    assert not torch.allclose(one.posterior[0], other.posterior[0])
    assert torch.allclose(one.posterior[1], other.posterior[1]), "reset at its first step"


def test_imagination_goes_on_from_every_state_as_observing_does(monkeypatch):
    core, (tokens, action, is_first, noise) = small(), sequence(20)
    with torch.no_grad():
        out = observed(core, core.initial(3), tokens, action, is_first, noise, monkeypatch)
        # (B, T-1): from each state with the action that followed
        starts = tree.flatten_time(tree.index(out.states, (slice(None), slice(None, -1))))
        after = core.step(starts, action[:, 1:].flatten(0, 1))
    went_on = ~is_first[:, 1:].flatten()
    torch.testing.assert_close(after.deter[went_on], out.states.deter[:, 1:].flatten(0, 1)[went_on])
    close(tree.index(after.ssm, went_on), tree.index(tree.flatten_time(out.states.ssm), _later(is_first)[went_on]))


def _later(is_first):
    """Flat rows of steps 1, 2, ..."""
    rows, time = is_first.shape
    return torch.arange(rows * time).view(rows, time)[:, 1:].flatten()


def test_windows_of_a_convolution_by_hand():
    inputs = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1)
    state = torch.tensor([-3.0, -2.0, -1.0]).view(1, 3, 1)
    windows = conv_windows(inputs, torch.tensor([[0, 0, 1, 1]]), state)[0, :, :, 0]
    assert windows.tolist() == [[-2, -1, 1], [-1, 1, 2], [0, 0, 3], [0, 3, 4]]


def test_a_block_of_drama_has_its_published_size():
    with torch.device("meta"):
        core = MambaConfig().build(18, 1024)
        one = MambaConfig(mixer="mamba1").build(18, 1024)
    sizes = [sum(p.numel() for p in block.mixer.parameters()) for block in (core.blocks[0], one.blocks[0])]
    # d 512, inner 1024: in 512 x 2096, conv 5 x 1056, 3 x 16 heads, norm 1024, out 1024 x 512; and
    # in 512 x 2048, conv 5 x 1024, x 1024 x 64, dt 32 x 1024 + 1024, A 1024 x 16, D 1024, out 1024 x 512
    assert sizes == [1_603_792, 1_694_720]


def test_the_world_model_of_drama_has_its_published_size():
    obs = {"image": ArraySpec(shape=(64, 64, 3), dtype="uint8")}
    with torch.device("meta"):
        spec = EnvSpec(name="x", obs=obs, action=ActionSpec(kind="discrete", size=18))
        model = PUBLISHED.model.build(spec)
        actor, value = PUBLISHED.actor.build(model.feature_dim, spec.action), PUBLISHED.value.build(model.feature_dim)
    parts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    assert parts["encoder"] == 232_272
    assert parts["reward"] == 197_119 and parts["continues"] == 131_841
    assert round(sum(parts.values()) / 1e6, 2) == 7.16
    behaviour = [sum(p.numel() for p in m.parameters()) for m in (actor, value.fast)]
    assert [round(n / 1e6, 2) for n in behaviour] == [0.53, 1.44]


def test_dropout_and_batch_statistics_are_for_learning_alone():
    spec = make_spec()
    core = MambaConfig(d_model=32, headdim=16, stoch=4, classes=4, dropout=0.1)
    model = replace(PUBLISHED.model, core=core).build(spec)
    batch = make_batch(spec, 2, 5)
    average = model.encoder.image.norms[0].mean.clone()
    state = model.initial(2)

    def act():
        torch.manual_seed(0)
        return model.features(model.observe(state, batch.obs, batch.prev_action, batch.is_first))

    one, two = act(), act()
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    torch.testing.assert_close(model.encoder.image.norms[0].mean, average, rtol=0, atol=0)
    losses, _ = model.loss(batch, state)
    assert not model.training and not torch.equal(model.encoder.image.norms[0].mean, average)
    torch.manual_seed(1)
    again = model.loss(batch, state)[0]
    torch.manual_seed(1)
    same = model.loss(batch, state)[0]
    assert torch.equal(again["dyn"], same["dyn"]) and losses.keys() == model.loss_scales.keys()


def test_free_nats_on_the_mean_of_the_batch():
    kl = torch.tensor([[0.5, 4.5]], requires_grad=True)
    loss = free_on_mean(kl, 1.0)
    assert loss.mean().item() == 2.5 and torch.equal(torch.autograd.grad(loss.mean(), kl)[0], torch.full((1, 2), 0.5))
    kl = torch.tensor([[0.25, 0.75]], requires_grad=True)
    loss = free_on_mean(kl, 1.0)
    assert loss.tolist() == [[0.75, 1.25]]
    assert not torch.autograd.grad(loss.sum(), kl)[0].any()


@pytest.mark.parametrize("part", ["both", "deter", "stoch"])
def test_behaviours_and_heads_read_what_they_are_told(part):
    spec = make_spec()
    agent = make_agent(spec, model={"behaviour": part, "heads": "deter"})
    core = agent.model.core
    width = {"both": core.feature_dim, "deter": core.deter_size, "stoch": core.stoch_size}[part]
    assert agent.model.feature_dim == width and agent.model.reward.mlp[0][0].in_features == core.deter_size
    states = agent.model.observe(agent.model.initial(3), *_seen(spec))
    assert agent.model.features(states).shape == (3, 8, width)
    hot = F.one_hot(torch.zeros(3, 8, core.config.stoch, dtype=torch.long), core.config.classes).float()
    other = replace(states, stoch=hot)
    one = agent.model.predict(states, batch_action(spec), states)
    torch.testing.assert_close(one.reward, agent.model.predict(states, batch_action(spec), other).reward)
    agent.learn(make_batch(spec))


def _seen(spec):
    batch = make_batch(spec)
    return batch.obs, batch.prev_action, batch.is_first


def batch_action(spec):
    return make_batch(spec).action


def test_step_sizes_begin_between_a_thousandth_and_a_tenth():
    core = MambaConfig(d_model=64, headdim=8).build(A, E)
    dt = F.softplus(core.blocks[0].mixer.dt_bias.detach())
    assert 0.99e-3 <= dt.min() < dt.max() <= 0.101


@pytest.mark.parametrize("mixer", ["mamba2", "mamba1"])
def test_told_to_remember_it_begins_with_time_constants_up_to_that_many_steps(mixer):
    mixing = MambaConfig(d_model=64, headdim=2, mixer=mixer, remember=64).build(A, E).blocks[0].mixer
    dt, rate = F.softplus(mixing.dt_bias.detach()), mixing.A_log.detach().exp()
    constants = 1 / (rate * (dt if mixer == "mamba2" else dt.unsqueeze(1)))
    assert dt.min() >= 0.1 and dt.max() <= 1.0
    assert 0.99 <= constants.min() < 3 and 30 < constants.max() <= 64.1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": 0}, "at least 1 layer"), ({"headdim": 7}, "headdim=7"), ({"unimix": 1.0}, "unimix"),
        ({"conv": 5}, "2 to 4"), ({"remember": 1}, "remember must be at least 2"),
    ],
)
def test_impossible_sizes_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        MambaConfig(**wrong)


def test_nothing_is_kept_in_replay_and_agents_do_without():
    core = small()
    assert core.memory_spec == {} and core.pack(core.initial(2)) == {}
    agent = make_agent(model={"core": MambaConfig(d_model=16, headdim=8, d_state=4, stoch=3, classes=4)})
    assert agent.memory_spec == {}
    update = agent.learn(make_batch(make_spec()))
    assert update.memory == {} and all(math.isfinite(float(x)) for x in update.metrics.values())
    with pytest.raises(ValueError, match="begin from initial"):
        core.unpack({})


def test_an_agent_goes_on_bit_for_bit_from_its_state():
    spec = make_spec()
    core = MambaConfig(d_model=16, headdim=8, d_state=4, stoch=3, classes=4, dropout=0.1)
    model = replace(PUBLISHED.model, core=core, encoder=StrideEncoderConfig(depth=2), units=16)
    config = replace(PUBLISHED, model=model, imagination=2, windows=4, window=3, warmup=0)
    first, other = config.build(spec, seed=0), config.build(spec, seed=5)
    first.learn(make_batch(spec, seed=1))
    other.load_state_dict({name: x.clone() for name, x in first.state_dict().items()})
    for seed in (2, 3):
        one, two = (agent.learn(make_batch(spec, seed=seed)) for agent in (first, other))
        assert all(torch.equal(x, two.metrics[name]) for name, x in one.metrics.items())
    state = other.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in first.state_dict().items())
    assert "model/model.encoder.image.norms.0.mean" in state
