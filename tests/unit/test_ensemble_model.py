"""Ensemble dynamics of vectors: against hand-made numbers, and against a system that it can learn."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor

from worldmodel.errors import MisfitError, UserError
from worldmodel.models.ensemble import EnsembleModel, EnsembleModelConfig, Observed, gaussian_loss
from worldmodel.models.heuristics import HEURISTICS, rank_correlation
from worldmodel.models.termination import TERMINATIONS
from worldmodel.nn.ensemble import EnsembleLinear
from worldmodel.nn.optim import Adam
from worldmodel.protocols import Fits, Likely, Uncertain, Varies
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec, Transitions

SPEC = EnvSpec(
    name="test", obs={"vector": ArraySpec(shape=(2,), dtype="float32")}, action=ActionSpec(kind="continuous", size=1)
)
SMALL = {"units": (32, 32), "decays": (), "batch_size": 128, "max_rounds": 40}


def model(**changes: object) -> EnsembleModel:
    torch.manual_seed(0)
    return EnsembleModelConfig(**{**SMALL, **changes}).build(SPEC)  # type: ignore[arg-type]


def linear(count: int, seed: int = 0, noise: float = 0.0) -> Transitions:
    """x' = 0.9 x + (0, 0.5 a), reward x_0."""
    g = torch.Generator().manual_seed(seed)
    x, action = torch.randn(count, 2, generator=g), torch.rand(count, 1, generator=g) * 2 - 1
    next_x = 0.9 * x + torch.cat([torch.zeros(count, 1), 0.5 * action], 1) + noise * torch.randn(count, 2, generator=g)
    zero = torch.zeros(count)
    return Transitions(x=x, action=action, reward=x[:, 0], next_x=next_x, terminal=zero, edge=zero)


def half(count: int) -> Tensor:
    return torch.arange(count) % 5 == 0


# Two members and one dimension: N(0, 1) and N(2, 4). The mean of means is 1.
EXPECTED = {
    "max_aleatoric": 2.0,
    "max_pairwise": 2.0,
    # log N(1; 0, 1) = -1.41894 and log N(1; 2, 4) = -1.73709: half their difference, squared
    "likelihood_variance": 0.025304,
    # (1 + 0 + 4 + 4) / 2 - 1
    "ensemble_variance": 3.5,
    "ensemble_std": math.sqrt(3.5),
    "mean_std": 1.0,
    "average_std": 1.0,
    # KL(N(2, 4) || N(0, 1)) = -ln 2 + (4 + 4) / 2 - 1/2; the other way round 0.8181
    "leave_one_out": 2.806853,
}


@pytest.mark.parametrize("name", HEURISTICS)
def test_heuristics_give_the_numbers_worked_out_by_hand(name: str) -> None:
    mean, std = torch.tensor([[[0.0]], [[2.0]]]), torch.tensor([[[1.0]], [[2.0]]])
    assert HEURISTICS[name](mean, std).shape == (1,)
    assert float(HEURISTICS[name](mean, std)) == pytest.approx(EXPECTED[name], abs=1e-5)


@pytest.mark.parametrize("name", HEURISTICS)
def test_members_that_agree_are_as_unsure_as_their_noise(name: str) -> None:
    mean, std = torch.zeros(4, 3, 2), torch.tensor([3.0, 4.0]).expand(4, 3, 2)
    noise = {"max_aleatoric": 5.0, "ensemble_std": 5.0, "ensemble_variance": 25.0}
    assert torch.allclose(HEURISTICS[name](mean, std), torch.full((3,), noise.get(name, 0.0)), atol=1e-5)


def test_leave_one_out_of_three_mixes_the_others() -> None:
    # the others of N(3, 1) are N(0, 1) and N(0, 1): KL = 9 / 2; those of N(0, 1) have mean 1.5 and variance 3.25
    mean, std = torch.tensor([0.0, 0.0, 3.0]).view(3, 1, 1), torch.ones(3, 1, 1)
    assert float(HEURISTICS["leave_one_out"](mean, std)) == pytest.approx(4.5, abs=1e-5)


def test_the_loss_is_twice_the_negative_log_likelihood_without_its_constant() -> None:
    # (1 - 3)^2 / 4 + ln 4 = 2.3863 and (0 - 0)^2 + ln 1 = 0, averaged
    mean, log_var, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(4), 0.0]]), torch.tensor([[3.0, 0.0]])
    assert float(gaussian_loss(mean, log_var, target)) == pytest.approx((1 + math.log(4)) / 2)


def test_log_variances_stay_within_their_soft_bounds() -> None:
    m = model()
    with torch.no_grad():
        m.net.layers[-1].bias[:, 3:] = torch.tensor([-1e3, 0.0, 1e3])
    log_var = m.gaussians(torch.zeros(1, 2), torch.zeros(1, 1))[1][0, 0].detach()
    assert log_var.tolist() == pytest.approx([-10.0, 0.5 - math.log(1 + math.exp(0.5)), 0.5], abs=1e-3)


def test_it_learns_a_linear_system_and_its_noise() -> None:
    m, data = model(), linear(1200, noise=0.1)
    said = m.fit(data, half(1200))
    with torch.no_grad():
        mean, log_var = m.gaussians(data.x, data.action, m.elite)
    change = (mean.mean(0)[:, :2] - (linear(1200).next_x - data.x)).square().mean().sqrt()
    assert float(change) < 0.05 and float(said["holdout_mse"]) < 0.015
    assert float((0.5 * log_var[..., :2]).exp().mean()) == pytest.approx(0.1, rel=0.35)


def test_each_member_is_kept_at_its_best_and_elites_are_the_best_of_them() -> None:
    m, data, held = model(max_rounds=12), linear(400), half(400)
    m.fit(data, held)
    with torch.no_grad():
        mean = m.gaussians(data.x[held], data.action[held])[0]
    truth = torch.cat([data.next_x - data.x, data.reward[:, None]], 1)[held]
    errors = (mean - truth).square().mean((1, 2))
    assert m.elite.tolist() == errors.argsort()[:5].tolist()


@pytest.mark.parametrize("predicts", ["change", "next"])
@pytest.mark.parametrize("targets", ["raw", "standard"])
def test_whatever_networks_predict_the_seam_is_change_and_reward_as_they_are(predicts: str, targets: str) -> None:
    m, x = model(predicts=predicts, targets=targets), torch.tensor([[3.0, -2.0]])
    if m.targets is not None:
        m.targets.shift.copy_(torch.tensor([1.0, 2.0, 3.0]))
        m.targets.scale.copy_(torch.tensor([10.0, 20.0, 30.0]))
    with torch.no_grad():
        last = cast(EnsembleLinear, m.net.layers[-1])
        last.weight.zero_()
        last.bias[:] = torch.tensor([0.5, 0.5, 0.5, -1.0, -1.0, -1.0])
        mean, log_var = m.gaussians(x, torch.zeros(1, 1))
        said, spread = m._bounded(m.net(torch.zeros(1, 3)))
    # 0.5 in units of 10, 20 and 30, from 1, 2 and 3 on; a next observation less (3, -2) is a change
    expected = torch.tensor([6.0, 12.0, 18.0] if targets == "standard" else [0.5, 0.5, 0.5])
    expected = expected - torch.tensor([3.0, -2.0, 0.0]) * (predicts == "next")
    units = torch.tensor([10.0, 20.0, 30.0]) if targets == "standard" else torch.ones(3)
    assert torch.allclose(mean, expected.expand(7, 1, 3)) and float(said[0, 0, 0]) == 0.5
    assert torch.allclose((0.5 * log_var).exp(), (0.5 * spread).exp() * units)


@pytest.mark.parametrize("predicts", ["change", "next"])
def test_in_standard_units_a_reward_a_thousand_times_as_large_hides_nothing(predicts: str) -> None:
    data = linear(1200)
    loud = Transitions(**{**vars(data), "reward": 1000 * data.reward})
    truth = torch.cat([data.next_x - data.x, 1000 * data.reward[:, None]], 1)
    unit = torch.cat([data.next_x, 1000 * data.reward[:, None]], 1).var(0)
    held, errors = half(1200), {}
    for targets in ("raw", "standard"):
        torch.manual_seed(0)
        m = model(predicts=predicts, targets=targets, max_rounds=15)
        said = m.fit(loud, held)
        with torch.no_grad():
            mean = m.gaussians(data.x[held], data.action[held], m.elite)[0].mean(0)
        errors[targets] = (mean - truth[held]).square().mean(0) / unit
        if targets == "standard":
            assert float(said["holdout_mse"]) < 0.1
    assert float(errors["standard"].max()) < 0.02 < float(errors["raw"].max())


def test_an_update_has_the_gradient_of_the_whole_loss() -> None:
    m, data = model(decays=(0.1, 0.2)), linear(16)
    expected = torch.autograd.grad(m.misfit(data, m.config.bounds_scale), [*m.parameters()])
    optimizer = Adam([(m.parameters(), 0.0)])
    x, y = torch.cat([data.x, data.action], -1), torch.cat([data.next_x - data.x, data.reward.unsqueeze(-1)], -1)
    m.update(optimizer, x.expand(7, -1, -1), y.expand(7, -1, -1))
    for p, grad in zip(m.parameters(), expected):
        assert p.grad is not None and torch.allclose(p.grad, grad, atol=1e-5)


def test_inputs_are_standardised_on_what_is_learned_from() -> None:
    m, data = model(max_rounds=1), linear(100)
    data = Transitions(**{**vars(data), "x": 100 + 7 * data.x, "next_x": 100 + 7 * data.next_x})
    held = half(100)
    m.fit(data, held)
    told = m._scaled(data.x[~held], data.action[~held])
    assert torch.allclose(told.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(told.std(0, unbiased=False), torch.ones(3), atol=1e-4)


def test_an_input_that_never_changes_does_no_harm() -> None:
    m, data = model(max_rounds=1), linear(100)
    m.fit(Transitions(**{**vars(data), "action": torch.zeros(100, 1)}), half(100))
    assert all(bool(p.isfinite().all()) for p in m.parameters())


def test_a_step_asks_one_elite_for_state_and_reward_alike() -> None:
    m = model(noise="mean")
    m.elite.copy_(torch.tensor([6, 5, 4, 3, 2]))
    x, action = torch.randn(64, 2), torch.zeros(64, 1)
    with torch.no_grad():
        mean = m.gaussians(x, action)[0]
        arrived = m.step(Observed(x=x, reward=torch.zeros(64)), action)
    said = torch.cat([arrived.x - x, arrived.reward[:, None]], 1)
    nearest = (mean - said).abs().amax(-1)
    assert bool((nearest.amin(0) < 1e-5).all()) and set(nearest.argmin(0).tolist()) == {2, 3, 4, 5, 6}


def test_the_sequence_loss_leaves_out_what_leads_into_another_episode() -> None:
    m = model()
    first = torch.tensor([[True, False, True, False]])
    obs = torch.randn(1, 4, 2)
    batch = Batch(
        obs={"vector": obs}, action=torch.zeros(1, 4, 1), prev_action=torch.zeros(1, 4, 1), reward=torch.zeros(1, 4),
        is_first=first, is_last=first.roll(-1, 1), is_terminal=first.roll(-1, 1),
    )
    losses, states = m.loss(batch, m.initial(1))
    assert (losses["dynamics"] != 0).tolist() == [[False, True, False, True]]
    assert torch.equal(states.x, obs) and losses.keys() == m.loss_scales.keys()


def test_it_has_the_abilities() -> None:
    m = model(uncertainty="max_pairwise")
    assert isinstance(m, Uncertain) and isinstance(m, Fits) and isinstance(m, Varies) and isinstance(m, Likely)
    assert m.disagreement(Observed(x=torch.zeros(3, 2), reward=torch.zeros(3)), torch.zeros(3, 1)).shape == (3,)


def test_disagreement_is_larger_where_there_was_no_data() -> None:
    m, data = model(max_rounds=10), linear(500)
    m.fit(data, half(500))
    with torch.no_grad():
        near = m.disagreement(Observed(x=data.x, reward=data.reward), data.action).mean()
        far = m.disagreement(Observed(x=data.x * 10, reward=data.reward), data.action).mean()
    assert float(far) > 5 * float(near)


def test_ends_that_are_not_those_of_the_data_are_refused() -> None:
    data = linear(50)
    with pytest.raises(UserError, match=r"ends='never', but 20\.0 % of 50 real transitions say otherwise"):
        model().fit(Transitions(**{**vars(data), "terminal": half(50).float()}), half(50))


def test_images_are_refused() -> None:
    spec = EnvSpec(name="pixels", obs={"image": ArraySpec(shape=(8, 8, 3), dtype="uint8")}, action=SPEC.action)
    with pytest.raises(MisfitError, match="is for observed vectors, but pixels has image"):
        EnsembleModelConfig().build(spec)


@pytest.mark.parametrize(("name", "alive", "over"), [
    # the published hopper code asks abs(x < 100) where it means abs(x) < 100: -150 must end the episode
    ("hopper", [1.2, 0.1, 5.0], [1.2, 0.1, -150.0]),
    ("hopper", [0.71, 0.19, 0.0], [0.69, 0.0, 0.0]),
    ("walker2d", [1.2, -0.9], [2.1, 0.0]),
    ("ant", [0.2, 0.0], [0.19, 0.0]),
    ("humanoid", [1.5, 0.0], [0.9, 0.0]),
    ("inverted_pendulum", [3.0, 0.2], [0.0, -0.21]),
    # the same two angles: bent against each other the tip is at 1.08, bent alike at 0.648
    ("inverted_double_pendulum", [0.0, 0.6, -0.6, 0.8, 0.8], [0.0, 0.6, 0.6, 0.8, 0.8]),
    ("inverted_double_pendulum", [5.0, 0.0, 0.0, 1.0, 1.0], [0.0, 0.6, 0.0, 0.8, 1.0]),
])
def test_ends_are_those_of_gymnasium(name: str, alive: list[float], over: list[float]) -> None:
    assert TERMINATIONS[name](torch.tensor([alive, over])).tolist() == [False, True]


def test_rank_correlation_is_spearmans() -> None:
    # ranks 0 1 2 3 against 1 0 2 3: 1 - 6 * 2 / (4 * 15)
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([20.0, 10.0, 30.0, 900.0])
    assert rank_correlation(a, b) == pytest.approx(0.8)


@pytest.mark.parametrize("wrong", [{"elites": 8}, {"bounds": (1.0, 0.0)}, {"members": 0}, {"uncertainty": "guess"}])
def test_numbers_that_nothing_can_be_built_with_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        EnsembleModelConfig(**wrong)  # type: ignore[arg-type]
