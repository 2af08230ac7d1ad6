"""LaProp and AGC against a loop written from the formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from worldmodel.nn.blocks import BlockLinear, Linear
from worldmodel.nn.optim import Adam, LaProp


def reference_step(p, g, state, *, lr, clip, warmup):
    """One tensor, plain Python floats where it can."""
    state["t"] += 1
    t = state["t"]
    g = g / max(1.0, g.norm().item() / (clip * max(1e-3, p.norm().item())))
    state["nu"] = 0.999 * state["nu"] + 0.001 * g * g
    g = g / ((state["nu"] / (1 - 0.999**t)).sqrt() + 1e-20)
    state["mu"] = 0.9 * state["mu"] + 0.1 * g
    return p - lr * min(1.0, (t - 1) / warmup) * state["mu"] / (1 - 0.9**t)


def test_laprop_with_agc_equals_the_formulas_over_many_steps():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.randn(2) * 1e-4)]
    expected = [p.detach().clone().double() for p in parameters]
    states = [{"t": 0, "nu": torch.zeros_like(p), "mu": torch.zeros_like(p)} for p in expected]
    optimizer = LaProp(parameters, lr=0.01, clip=0.3, warmup=4)
    for _ in range(12):
        grads = [torch.randn_like(p) * 10 for p in parameters]
        optimizer.zero_grad()
        for p, g in zip(parameters, grads):
            assert p.grad is not None
            p.grad.add_(g)
        optimizer.step()
        expected = [
            reference_step(p, g.double(), s, lr=0.01, clip=0.3, warmup=4) for p, g, s in zip(expected, grads, states)
        ]
    for p, q in zip(parameters, expected):
        torch.testing.assert_close(p.detach().double(), q, rtol=1e-4, atol=1e-6)


def test_zero_gradient_moves_nothing_and_makes_no_nan():
    p = nn.Parameter(torch.ones(3))
    optimizer = LaProp([p], lr=1.0, warmup=0)
    optimizer.step()
    assert p.tolist() == [1.0, 1.0, 1.0]


def test_zero_initialised_tensor_can_move():
    p = nn.Parameter(torch.zeros(3))
    optimizer = LaProp([p], lr=0.1, warmup=0)
    p.grad.fill_(5.0)
    optimizer.step()
    assert (p < 0).all()


def test_tiny_gradients_are_not_flushed_away():
    p = nn.Parameter(torch.ones(1))
    optimizer = LaProp([p], lr=0.1, warmup=0)
    p.grad.fill_(1e-12)
    optimizer.step()
    # RMS scaling makes the first step lr whatever the gradient's size
    assert math.isclose(p.item(), 0.9, rel_tol=1e-4)


def test_a_non_finite_gradient_changes_no_state_at_all():
    torch.manual_seed(1)
    p, q = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2))
    optimizer = LaProp([p, q], lr=0.1, warmup=5)
    p.grad.copy_(torch.randn(4))
    optimizer.step()
    before = [p.detach().clone(), q.detach().clone(), *(x.clone() for x in optimizer.state_dict().values())]
    for poison in (float("nan"), float("inf")):
        optimizer.zero_grad()
        q.grad.fill_(1.0)
        p.grad[2] = poison
        report = optimizer.step()
        assert not report["healthy"]
    after = [p, q, *optimizer.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_parameters_stay_usable_modules_after_flattening():
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    before = layer(x)
    optimizer = LaProp(layer.parameters(), lr=0.1, warmup=0)
    torch.testing.assert_close(layer(x), before)
    layer(x).sum().backward()
    optimizer.step()
    assert not torch.allclose(layer(x), before)
    layer.load_state_dict({k: torch.zeros_like(v) for k, v in layer.state_dict().items()})
    assert optimizer.flat.abs().sum() == 0, "loading weights writes into the flat buffer"


def test_initial_weights_have_variance_one_over_fan_in_and_are_cut_at_two_sigma():
    torch.manual_seed(0)
    weight = Linear(400, 600).weight.detach()
    assert math.isclose(weight.std().item(), 1 / 20, rel_tol=0.01)
    assert weight.abs().max().item() <= 2 * 1.1368 / 20 + 1e-6
    half = Linear(400, 600, scale=0.5).weight.detach()
    assert math.isclose(half.std().item(), 0.5 / 20, rel_tol=0.02)
    assert Linear(400, 3, scale=0.0).weight.abs().max() == 0
    # a block-linear layer counts its total input width, not one block's
    blocks = BlockLinear(512, 1024, 8).weight.detach()
    assert math.isclose(blocks.std().item(), 1 / math.sqrt(512), rel_tol=0.02)


def test_adam_in_groups_equals_torchs_and_a_non_finite_gradient_changes_nothing():
    torch.manual_seed(0)
    ours = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 3)])
    theirs = copy.deepcopy(ours)
    optimizer = Adam([(ours[0].parameters(), 1e-2), (ours[1].parameters(), 3e-2)], clip=0.05, eps=1e-5, decay=0.1)
    reference = torch.optim.Adam(
        [{"params": theirs[0].parameters(), "lr": 1e-2}, {"params": theirs[1].parameters(), "lr": 3e-2}],
        eps=1e-5, weight_decay=0.1,
    )
    for i in range(8):
        x = torch.randn(4, 5)
        optimizer.backward(ours[1](ours[0](x).relu()).square().mean())
        if i in (3, 5):
            if i == 3:
                optimizer.grad[9] = math.nan
            before = [x.clone() for x in (optimizer.flat, *optimizer.state_dict().values())]
            told = optimizer.step(None if i == 3 else torch.tensor(False))
            assert not told["healthy"]
            after = (optimizer.flat, *optimizer.state_dict().values())
            assert all(torch.equal(p, q) for p, q in zip(before, after))
            continue
        told = optimizer.step()
        reference.zero_grad()
        theirs[1](theirs[0](x).relu()).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        reference.step()
        assert told["healthy"] and norm > 0.05
        torch.testing.assert_close(told["grad_norm"], norm)
        for p, q in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_adam_goes_on_from_its_state():
    torch.manual_seed(0)
    one = nn.Linear(3, 2)
    first = Adam([(one.parameters(), 0.1)])
    first.backward(one(torch.ones(1, 3)).square().sum())
    first.step()
    other = copy.deepcopy(one)
    second = Adam([(other.parameters(), 0.1)])
    second.load_state_dict(first.state_dict())
    for net, optimizer in ((one, first), (other, second)):
        optimizer.backward(net(torch.ones(1, 3)).square().sum())
        optimizer.step()
    assert torch.equal(first.flat, second.flat)


def test_parameters_that_lie_side_by_side_stay_where_they_are() -> None:
    layer = torch.nn.Linear(3, 2)
    first = Adam([(layer.parameters(), 0.1)])
    where, before = [p.data_ptr() for p in layer.parameters()], layer.weight.detach().clone()
    second = Adam([(layer.parameters(), 0.1)])
    assert [p.data_ptr() for p in layer.parameters()] == where and first.flat.data_ptr() == second.flat.data_ptr()
    second.backward(layer(torch.ones(1, 3)).sum())
    second.step()
    assert not torch.equal(before, layer.weight) and torch.equal(first.flat, second.flat)
    # in another order they do not lie side by side
    assert Adam([([layer.bias, layer.weight], 0.1)]).flat.data_ptr() != where[0]


def test_a_group_waits_for_its_turn_and_another_is_slowed() -> None:
    one, other = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = Adam([([one], 0.1), ([other], 0.1)])
    for turn in (True, False):
        optimizer.backward((one + other).sum())
        optimizer.step(turns=(torch.tensor(True), torch.tensor(turn)), paces=(torch.tensor(0.5), torch.tensor(1.0)))
    # Adam's steps have the length of the learning rate while the gradient stays
    assert one.detach().tolist() == pytest.approx([-0.1] * 2) and other.detach().tolist() == pytest.approx([-0.1] * 2)
    assert optimizer.count.tolist() == [2, 1]
    optimizer.forget()
    assert all(float(x.abs().sum()) == 0 for x in optimizer.state_dict().values()) and float(one.sum().detach()) < 0
