"""Distributions against hand-worked numbers and definitions."""

from __future__ import annotations

import math

import pytest
import torch

from worldmodel.distributions import BoundedNormal, Categorical, TwoHot, symexp, symexp_bins, symlog
from worldmodel.nn.heads import TwoHotHead


def test_symlog_and_symexp_are_inverse():
    x = torch.tensor([-1e4, -3.0, -0.5, 0.0, 0.5, 3.0, 1e4])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-5, atol=1e-6)
    assert symlog(torch.tensor(math.e - 1)).item() == pytest.approx(1.0)


def test_unimix_enters_probability_log_probability_entropy_and_kl():
    logits = torch.tensor([0.0, math.log(3.0)])
    mixed = Categorical(logits, unimix=0.2)
    # softmax (0.25, 0.75) -> 0.8 p + 0.1
    expected = torch.tensor([0.3, 0.7])
    torch.testing.assert_close(mixed.probs, expected)
    assert mixed.log_prob(torch.tensor([1.0, 0.0])).item() == pytest.approx(math.log(0.3))
    assert mixed.entropy().item() == pytest.approx(-(0.3 * math.log(0.3) + 0.7 * math.log(0.7)))
    other = Categorical(torch.zeros(2), unimix=0.2)
    assert mixed.kl(other).item() == pytest.approx(0.3 * math.log(0.3 / 0.5) + 0.7 * math.log(0.7 / 0.5), rel=1e-5)


def test_unimix_keeps_kl_finite_when_logits_are_extreme():
    a, b = Categorical(torch.tensor([200.0, -200.0]), 0.01), Categorical(torch.tensor([-200.0, 200.0]), 0.01)
    assert torch.isfinite(a.kl(b)) and a.kl(b) > 4


def test_samples_have_the_frequencies_of_the_mixed_probabilities():
    torch.manual_seed(0)
    dist = Categorical(torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(40_000, 4), unimix=0.1)
    frequency = dist.sample().detach().mean(0)
    torch.testing.assert_close(frequency, dist.probs[0], atol=0.01, rtol=0)


def test_inverse_cdf_sampling_maps_noise_to_the_right_class():
    dist = Categorical(torch.log(torch.tensor([0.2, 0.5, 0.3])).expand(5, 3))
    index = dist.sample_index(torch.tensor([0.0, 0.19, 0.21, 0.69, 0.999]))
    assert index.tolist() == [0, 0, 1, 1, 2]


def test_straight_through_passes_the_gradient_of_the_probabilities():
    logits = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 3.0])
    (Categorical(logits, 0.01).sample() * weight).sum().backward()
    reference = logits.detach().clone().requires_grad_()
    ((0.99 * torch.softmax(reference, -1) + 0.01 / 3) * weight).sum().backward()
    torch.testing.assert_close(logits.grad, reference.grad)


def test_zero_logits_give_the_published_first_policy_std():
    dist = BoundedNormal(torch.zeros(3), torch.zeros(3))
    # 0.9 sigmoid(2) + 0.1
    torch.testing.assert_close(dist.std, torch.full((3,), 0.8927), atol=1e-4, rtol=0)
    assert dist.mode().abs().max() == 0


def test_bounded_normal_matches_torch_distributions():
    torch.manual_seed(1)
    dist = BoundedNormal(torch.randn(5, 2), torch.randn(5, 2))
    value = torch.randn(5, 2)
    reference = torch.distributions.Independent(torch.distributions.Normal(dist.mean, dist.std), 1)
    torch.testing.assert_close(dist.log_prob(value), reference.log_prob(value))
    torch.testing.assert_close(dist.entropy(), reference.entropy())
    assert (dist.std > 0.1).all() and (dist.std < 1).all()


def test_bins_are_antisymmetric_and_span_e_to_the_20():
    bins = symexp_bins(255)
    assert bins.shape == (255,) and bins[127] == 0
    torch.testing.assert_close(bins, -bins.flip(0), rtol=0, atol=0)
    assert bins[-1].item() == pytest.approx(math.exp(20) - 1, rel=1e-5)
    assert (bins.diff() > 0).all()
    with pytest.raises(ValueError, match="odd"):
        symexp_bins(254)


def test_zero_initialised_head_predicts_exactly_zero():
    head = TwoHotHead(7, 16, 2)
    assert head(torch.randn(11, 7)).mean().abs().max().item() == 0.0


def test_two_hot_loss_against_a_loop_from_the_definition():
    torch.manual_seed(2)
    bins = symexp_bins(41)
    logits = torch.randn(6, 41)
    targets = torch.tensor([0.0, 0.37, -5.2, 1234.5, float(bins[7]), 1e12])
    got = TwoHot(logits, bins).loss(targets)
    for i, raw in enumerate(targets.tolist()):
        y = min(max(raw, float(bins[0])), float(bins[-1]))
        code = torch.zeros(41)
        if y in bins.tolist():
            code[bins.tolist().index(y)] = 1
        else:
            k = int((bins < y).sum()) - 1
            low, high = float(bins[k]), float(bins[k + 1])
            code[k], code[k + 1] = (high - y) / (high - low), (y - low) / (high - low)
        assert code.sum().item() == pytest.approx(1)
        assert got[i].item() == pytest.approx(-(code * torch.log_softmax(logits[i], -1)).sum().item(), rel=1e-4)


def test_two_hot_mean_recovers_the_target_it_encodes():
    bins = symexp_bins(255)
    for target in (-1000.0, -0.01, 0.0, 0.9, 33.0):
        logits = torch.zeros(255, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.5)
        for _ in range(300):
            optimizer.zero_grad()
            TwoHot(logits, bins).loss(torch.tensor(target)).backward()
            optimizer.step()
        assert TwoHot(logits, bins).mean().item() == pytest.approx(target, rel=0.02, abs=0.02)


def test_two_hot_target_gets_no_gradient():
    target = torch.tensor([1.5], requires_grad=True)
    TwoHot(torch.zeros(1, 255, requires_grad=True), symexp_bins()).loss(target).sum().backward()
    assert target.grad is None
