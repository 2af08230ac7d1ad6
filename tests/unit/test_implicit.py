"""The implicit model: golden numbers of TD-MPC2, weights at the start, borders of episodes, pixels and dicts."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.models import make_batch, make_spec
from worldmodel.agents.tdmpc2.agent import discount_of
from worldmodel.check.world_model import check_world_model
from worldmodel.configs.tdmpc2 import SIZES, configured
from worldmodel.distributions import SquashedNormal, SymlogTwoHot, TwoHot, scalar, spaced_bins, symlog
from worldmodel.errors import MisfitError
from worldmodel.kernels.twohot_loss.reference import code
from worldmodel.models.implicit import ImplicitModelConfig
from worldmodel.nn.blocks import Mish, mish
from worldmodel.nn.encoders import PatchEncoderConfig
from worldmodel.nn.normed import ConvTrunk, NormedEncoderConfig, NormedMLP, SimNorm, shifted
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec

PUBLISHED = {
    "1m": {"walker": 1_214_651, "cartpole": 1_198_257, "dog": 1_339_387},
    "5m": {"walker": 4_960_618, "cartpole": 4_932_704, "dog": 5_159_082},
    "19m": {"walker": 18_062_442, "cartpole": 17_996_896, "dog": 18_561_194},
    "48m": {"walker": 47_208_298, "cartpole": 47_093_600, "dog": 48_081_066},
    "317m": {"walker": 312_595_417, "cartpole": 312_271_823, "dog": 314_983_449},
}
"""Learned parameters, slow Q-functions not counted, computed from the authors' code."""
TASKS = {"walker": (24, 6), "cartpole": (5, 1), "dog": (223, 38)}


def vectors(obs: int, actions: int) -> EnvSpec:
    return EnvSpec(
        name="test", obs={"state": ArraySpec(shape=(obs,), dtype="float32")},
        action=ActionSpec(kind="continuous", size=actions), max_steps=500,
    )


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_parameters_are_those_of_the_authors_code_in_every_size():
    assert PUBLISHED.keys() == SIZES.keys()
    for size, task in itertools.product(PUBLISHED, TASKS):
        with torch.device("meta"):
            agent = configured(size, ends="never").build(vectors(*TASKS[task]), device="meta")
        assert count(agent.modules) == PUBLISHED[size][task], (size, task)
        if (size, task) == ("5m", "walker"):
            parts = (agent.model.encoder, agent.model.project, agent.model.dynamics, agent.model.reward, agent.policy)
            assert [count(part) for part in parts] == [6_912, 132_608, 794_112, 582_245, 533_516]
            assert count(agent.value) == 5 * 582_245


def test_the_pixel_encoder_has_the_authors_parameters_and_width():
    trunk = ConvTrunk((64, 64, 9), 32)
    assert count(trunk) == 58_272 and trunk.out_dim == 512
    agent = configured("5m", pixels=True).build(
        EnvSpec(name="p", obs={"image": ArraySpec(shape=(64, 64, 9), dtype="uint8")}, action=vectors(1, 2).action)
    )
    assert isinstance(agent.model.project, SimNorm)
    with pytest.raises(MisfitError, match="project='none' needs"):
        configured("5m", pixels=True).model.build(vectors(4, 2))


@pytest.mark.parametrize(
    ("value", "bin", "lower"),
    [(0.0, 50, 1.0), (1.0, 53, 0.53426), (-3.7, 42, 0.73781), (100.0, 73, 0.92440), (1000.0, 84, 0.45623)],
)
def test_two_hot_codes_of_the_authors(value, bin, lower):
    below, upper = code(spaced_bins(101, 10.0, "symlog"), symlog(torch.tensor([value])))
    mass = torch.zeros(102)
    mass[int(below)], mass[int(below) + 1] = 1 - float(upper), float(upper)
    assert float(mass[bin]) == pytest.approx(lower, abs=2e-5)
    assert float(mass[bin + 1]) == pytest.approx(1 - lower, abs=2e-5)


def test_scalars_beyond_the_bins_are_taken_at_the_edge_and_a_uniform_head_says_0():
    bins = spaced_bins(101, 10.0, "symlog")
    edge = torch.full((1, 101), -30.0)
    edge[0, -1] = 30.0
    assert float(SymlogTwoHot(edge, bins).loss(torch.tensor([1e9]))) == pytest.approx(0.0, abs=1e-6)
    assert float(SymlogTwoHot(edge, bins).mean()) == pytest.approx(math.expm1(10), rel=1e-4)
    for space in ("symlog", "symexp"):
        zero = scalar(torch.zeros(1, 101), spaced_bins(101, 10.0, space), space)
        assert float(zero.mean()) == pytest.approx(0.0, abs=1e-5)


def test_the_mean_of_a_spread_prediction_is_that_of_logarithms_or_of_values():
    for space, mean in (("symlog", 9.05), ("symexp", 50.0)):
        bins = spaced_bins(101, 10.0, space)
        logits = torch.full((101,), -100.0)
        for value in (0.0, 100.0):
            below, upper = code(bins, symlog(torch.tensor(value)) if space == "symlog" else torch.tensor(value))
            for at, share in ((int(below), 1 - float(upper)), (int(below) + 1, float(upper))):
                logits[at] = torch.logaddexp(logits[at], torch.tensor(share / 2 + 1e-30).log())
        made = scalar(logits, bins, space)
        assert isinstance(made, SymlogTwoHot if space == "symlog" else TwoHot)
        assert float(made.mean()) == pytest.approx(mean, abs=0.01)


def test_discounts_by_the_length_of_an_episode():
    want = {100: 0.95, 125: 0.96, 200: 0.975, 250: 0.98, 500: 0.99, 1000: 0.995, 5: 0.95, 10_000: 0.995}
    assert {steps: round(discount_of(steps), 6) for steps in want} == want


def test_simplices_sum_to_1_and_nothing_is_an_eighth():
    norm = SimNorm(8)
    assert torch.equal(norm(torch.zeros(3, 32)), torch.full((3, 32), 0.125))
    z = norm(torch.randn(3, 32))
    torch.testing.assert_close(z.unflatten(-1, (4, 8)).sum(-1), torch.ones(3, 4))
    assert ImplicitModelConfig(latent=32).build(vectors(3, 1)).initial(2).z.unique().tolist() == [0.125]


def test_the_quick_mish_is_torchs():
    x = torch.cat([torch.linspace(-30, 30, 5001), torch.tensor([-1e4, -90.0, 89.0, 1e4])])
    with torch.no_grad():
        torch.testing.assert_close(mish(x), F.mish(x), rtol=1e-6, atol=1e-6)
    wanted, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    value, truth = mish(wanted), F.mish(exact)
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(x)
    (grad,), (true,) = torch.autograd.grad(value, wanted, weight), torch.autograd.grad(truth, exact, weight.double())
    torch.testing.assert_close(grad.double(), true, rtol=1e-5, atol=1e-6)


def test_the_quick_mish_has_gradients_of_gradients_and_goes_through_transforms():
    x = (torch.randn(40, dtype=torch.float64) * 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Mish.apply(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: Mish.apply(x)[0], x)
    rows = torch.randn(5, 7)
    each = torch.func.vmap(torch.func.grad(lambda row: mish(row).sum()))(rows)
    expected = torch.autograd.grad(F.mish(rows.requires_grad_()).sum(), rows)[0]
    torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)


def test_every_layer_of_every_head_begins_with_its_own_size():
    torch.manual_seed(0)
    agent = configured("5m").build(vectors(24, 6))
    last = {agent.model.reward[-1], agent.value.fast.layers[-1], agent.value.slow.layers[-1]}
    seen = 0
    for module in agent.modules.modules():
        if isinstance(module, nn.Linear):
            seen += 1
            assert not module.bias.any()
            if module in last:
                assert not module.weight.any()
            else:
                assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert seen == 2 + 3 + 3 + 3 + 3
    for net in (agent.value.fast, agent.value.slow):
        for layer in net.layers:
            assert not layer.bias.any()
            for weight in layer.weight.detach():
                assert not weight.any() if layer in last else float(weight.std()) == pytest.approx(0.02, rel=0.05)


def small(**changes) -> ImplicitModelConfig:
    base = {"encoder": NormedEncoderConfig(units=16), "latent": 16, "units": 16}
    return ImplicitModelConfig(**(base | changes))


@torch.no_grad()
def test_losses_against_the_definition_with_a_border_inside():
    spec = vectors(5, 2)
    torch.manual_seed(0)
    model = small().build(spec)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    batch = make_batch(spec, 3, 5, firsts=((1, 2), (2, 4)))
    losses, states = model.loss(batch, model.initial(3))
    h, rho = 4, 0.5
    want = {"consistency": 0.0, "reward": 0.0, "end": 0.0}
    seen = model.encode(batch.obs, shift=False)
    z = [[seen[b, 0]] for b in range(3)]
    for t in range(h):
        rows = [b for b in range(3) if not batch.is_first[b, t + 1]]
        for b in range(3):
            x = torch.cat([z[b][t], batch.action[b, t]])
            ahead = model.dynamics(x.unsqueeze(0))[0]
            if b in rows:
                share = 1 / (h * len(rows))
                head = SymlogTwoHot(model.reward(x.unsqueeze(0)), model.bins)
                want["consistency"] += rho**t * share * float((ahead - seen[b, t + 1]).square().mean())
                want["reward"] += rho**t * share * float(head.loss(batch.reward[b, t + 1].view(1)))
                target = batch.is_terminal[b, t + 1].float().view(1, 1)
                end = F.binary_cross_entropy_with_logits(model.ends(ahead.unsqueeze(0)), target)
                want["end"] += share * float(end)
            z[b].append(ahead if b in rows else seen[b, t + 1])
    for name, x in want.items():
        assert losses[name].shape == (3, 5) and not losses[name][:, -1].any()
        assert float(losses[name].mean()) == pytest.approx(x, rel=1e-4), name
    torch.testing.assert_close(states.z, torch.stack([torch.stack(row) for row in z]))


@torch.no_grad()
def test_what_lies_behind_a_border_does_not_reach_the_step_over_it():
    spec = vectors(5, 2)
    model = small().build(spec)
    for p in model.reward.parameters():
        p.add_(0.2 * torch.randn_like(p))
    batch = make_batch(spec, 2, 4, firsts=((0, 2),))
    other = dataclasses.replace(batch, reward=batch.reward.clone())
    other.reward[0, 2] = 9.0
    same = [model.loss(b, model.initial(2))[0]["reward"].mean() for b in (batch, other)]
    assert torch.equal(*same)
    other.reward[0, 3] = 9.0
    assert not torch.equal(same[0], model.loss(other, model.initial(2))[0]["reward"].mean())


@pytest.mark.parametrize(("kind", "ends"), [("vector", "never"), ("image", "predicted"), ("dict", "predicted")])
def test_it_keeps_every_promise_of_a_world_model(kind, ends):
    encoder = NormedEncoderConfig(units=16, channels=4)
    spec = vectors(5, 2)
    if kind == "image":
        encoder, spec = PatchEncoderConfig(patch=8, width=4, units=16), make_spec()
    elif kind == "dict":
        spec = make_spec(vector=True)
        spec = dataclasses.replace(spec, obs=spec.obs | {"image": ArraySpec(shape=(44, 44, 3), dtype="uint8")})
    report = check_world_model(small(encoder=encoder, ends=ends), spec=spec)
    failed = [f for f in report.findings if f.status == "fail"]
    assert not failed, failed


def test_images_move_by_whole_pixels_each_by_its_own_and_repeat_their_edges():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 9, 7, 2), dtype=torch.uint8)
    many = shifted(image.expand(400, -1, -1, -1), 2)
    found = set()
    for dy, dx in itertools.product(range(-2, 3), repeat=2):
        rows = (torch.arange(9) + dy).clamp(0, 8)
        columns = (torch.arange(7) + dx).clamp(0, 6)
        moved = image[0][rows][:, columns]
        if any(torch.equal(moved, one) for one in many):
            found.add((dy, dx))
    assert len(found) == 25 and many.dtype == torch.uint8


@pytest.mark.parametrize("shifts", ["learning", "always"])
def test_images_are_shifted_while_learning_and_always_where_asked(shifts):
    spec = make_spec()
    encoder = PatchEncoderConfig(patch=8, width=4, units=16)
    model = small(encoder=encoder, shifts=shifts).build(spec)
    batch = make_batch(spec, 2, 3, firsts=())
    torch.manual_seed(0)
    seen = [model.observe(model.initial(2), batch.obs, batch.prev_action, batch.is_first).z for _ in range(2)]
    assert torch.equal(*seen) == (shifts == "learning")
    losses = [model.loss(batch, model.initial(2))[0]["consistency"] for _ in range(2)]
    assert not torch.equal(*losses)


def test_a_squashed_normal_integrates_to_1_and_its_entropy_is_that_of_its_density():
    policy = SquashedNormal(torch.tensor([0.3]), torch.tensor([-0.4]))
    grid = torch.linspace(-1 + 1e-6, 1 - 1e-6, 200_001).unsqueeze(-1)
    log_prob = policy.log_prob(grid)
    width = 2 / 200_000
    assert float(log_prob.exp().sum() * width) == pytest.approx(1.0, abs=1e-3)
    torch.manual_seed(0)
    many = SquashedNormal(torch.full((40_000, 1), 0.3), torch.full((40_000, 1), -0.4))
    entropy = -float((log_prob.exp() * log_prob).sum() * width)
    assert float(many.entropy().mean()) == pytest.approx(entropy, abs=0.02)
    assert float(many.sample().abs().max()) <= 1
    far = SquashedNormal(torch.tensor([[30.0]]), torch.tensor([[0.0]]))
    assert torch.isfinite(far.entropy()).all() and torch.isfinite(far.log_prob(torch.ones(1, 1))).all()


def test_a_head_may_begin_at_0():
    assert not NormedMLP(4, 8, 2, 3, out_scale=0.0)(torch.randn(5, 4)).any()
