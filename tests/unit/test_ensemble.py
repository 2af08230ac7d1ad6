"""Ensembles are exactly a loop over their members, and every layer of every member begins as it should."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.nn.blocks import init_weight
from worldmodel.nn.ensemble import EnsembleMLP


def member(net, index, x):
    """One member's answer, from its definition."""
    for i, layer in enumerate(net.layers):
        x = F.linear(x, layer.weight[index].mT, layer.bias[index])
        if i == len(net.layers) - 1:
            return x
        if net.norms is not None:
            norm = net.norms[i]
            if norm.kind == "layer":
                x = F.layer_norm(x, x.shape[-1:], norm.scale[index], norm.shift[index])
            else:
                x = F.rms_norm(x, x.shape[-1:], norm.scale[index], eps=norm.eps)
        x = net.activation(x)


def stirred(norm="layer", activation="mish"):
    """A network none of whose parameters is at its initial 0 or 1."""
    torch.manual_seed(0)
    net = EnsembleMLP(4, 5, 3, units=(8, 6), norm=norm, activation=activation)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("activation", ["mish", "silu", "elu", "relu", "tanh"])
def test_an_ensemble_is_a_loop_over_its_members(norm, activation):
    net = stirred(norm, activation)
    x = torch.randn(7, 2, 5)
    expected = torch.stack([member(net, e, x) for e in range(4)])
    torch.testing.assert_close(net(x), expected)
    apart = torch.randn(4, 7, 5)
    torch.testing.assert_close(net.each(apart), torch.stack([member(net, e, apart[e]) for e in range(4)]))


def test_a_few_members_answer_alone_and_alone_get_gradient():
    net = stirred()
    x, chosen = torch.randn(7, 5), torch.tensor([3, 1])
    torch.testing.assert_close(net(x, chosen), net(x)[chosen])
    rows = torch.randn(2, 7, 5)
    torch.testing.assert_close(net.each(rows, chosen)[0], member(net, 3, rows[0]))
    net(x, chosen).sum().backward()
    for p in net.parameters():
        assert (p.grad[[1, 3]].flatten(1).norm(dim=1) > 0).all()
        assert not p.grad[[0, 2]].any()


def normal02(weight, fan_in):
    nn.init.trunc_normal_(weight, std=0.02)


@pytest.mark.parametrize(
    ("init", "std"), [(init_weight, lambda fan_in: 1 / math.sqrt(fan_in)), (normal02, lambda fan_in: 0.02)]
)
def test_every_layer_of_every_member_begins_with_its_own_weights_of_the_right_size(init, std):
    torch.manual_seed(0)
    net = EnsembleMLP(5, 60, 40, units=(80, 100), init=init)
    for layer, fan_in in zip(net.layers, (60, 80, 100)):
        assert not layer.bias.any()
        for weight in layer.weight:
            assert weight.std().item() == pytest.approx(std(fan_in), rel=0.05)
            assert abs(weight.mean().item()) < 4 * std(fan_in) / math.sqrt(weight.numel())
        apart = torch.pdist(layer.weight.flatten(1)) / math.sqrt(layer.weight[0].numel())
        torch.testing.assert_close(apart, torch.full_like(apart, math.sqrt(2) * std(fan_in)), rtol=0.05, atol=0)
    for norm in net.norms:
        assert (norm.scale == 1).all() and not norm.shift.any()


def test_out_scale_0_makes_every_member_begin_at_0():
    net = EnsembleMLP(3, 5, 2, units=(8,), out_scale=0.0)
    assert not net(torch.randn(4, 5)).any()
    assert net.layers[0].weight.any()


def test_dropout_is_asked_for_acts_before_the_first_norm_and_differs_between_members():
    net = EnsembleMLP(2, 5, 3, units=(1000, 4), norm="none", activation="relu", dropout=0.25)
    with torch.no_grad():
        net.layers[0].weight.zero_()
        net.layers[0].bias.fill_(1.0)
        net.layers[1].weight.copy_(torch.eye(4).repeat(250, 1))
    x = torch.zeros(1, 5)
    torch.testing.assert_close(net(x), net(x))
    seen = []
    net.norms = None
    net.layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(x, drop=True)
    first, second = seen[0][:, 0]
    assert not torch.equal(first, second)
    for kept in (first, second):
        assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.06)
        torch.testing.assert_close(kept[kept > 0], torch.full((int((kept > 0).sum()),), 1 / 0.75))


def test_norms_keep_float32_statistics_under_autocast():
    net = stirred()
    x = torch.randn(64, 5)
    with torch.autocast("cpu", torch.bfloat16):
        close = net(x)
    assert close.dtype == torch.bfloat16
    torch.testing.assert_close(close.float(), net(x), rtol=0.05, atol=0.15)


@pytest.mark.parametrize(("members", "dropout"), [(0, 0.0), (2, 1.0), (2, -0.1)])
def test_numbers_that_make_no_sense_are_refused_in_a_sentence(members, dropout):
    with pytest.raises(ValueError, match=r"at least 1 member|dropout must be in"):
        EnsembleMLP(members, 5, 3, units=(8,), dropout=dropout)
