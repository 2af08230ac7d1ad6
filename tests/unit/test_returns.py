"""Returns against hand-worked numbers and a slow recursion from the definition."""

from __future__ import annotations

import torch

from worldmodel.agents.dreamer.losses import ReturnNormalizer, imagined_targets, replay_value_loss
from worldmodel.returns import lambda_return, reach_weight


def slow_lambda_return(reward, continues, bootstrap, lam):
    """R_t from the definition, one scalar at a time."""
    batch, time = reward.shape
    out = torch.zeros_like(reward)
    for b in range(batch):
        following = bootstrap[b, -1].item()
        for t in reversed(range(time)):
            mixed = (1 - lam[b, t].item()) * bootstrap[b, t].item() + lam[b, t].item() * following
            following = reward[b, t].item() + continues[b, t].item() * mixed
            out[b, t] = following
    return out


def test_lambda_return_by_hand():
    got = lambda_return(
        reward=torch.tensor([[1.0, 2.0]]), continues=torch.tensor([[0.5, 0.5]]),
        bootstrap=torch.tensor([[10.0, 20.0]]), lam=0.8,
    )
    # R_1 = 2 + 0.5 * 20 = 12;  R_0 = 1 + 0.5 * (0.2 * 10 + 0.8 * 12) = 6.8
    torch.testing.assert_close(got, torch.tensor([[6.8, 12.0]]))


def test_lambda_return_equals_the_slow_loop_with_terminals_and_truncations():
    generator = torch.Generator().manual_seed(0)
    reward, bootstrap = (torch.randn(5, 9, generator=generator) for _ in range(2))
    continues = torch.rand(5, 9, generator=generator) * (torch.rand(5, 9, generator=generator) > 0.3)
    lam = 0.95 * (torch.rand(5, 9, generator=generator) > 0.3)
    got = lambda_return(reward=reward, continues=continues, bootstrap=bootstrap, lam=lam)
    torch.testing.assert_close(got, slow_lambda_return(reward, continues, bootstrap, lam), atol=1e-6, rtol=1e-6)


def test_lambda_one_is_the_discounted_sum_and_lambda_zero_is_one_step():
    reward, value = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[5.0, 6.0, 7.0]])
    c = torch.full((1, 3), 0.9)
    full = lambda_return(reward=reward, continues=c, bootstrap=value, lam=1.0)
    assert abs(full[0, 0].item() - (1 + 0.9 + 0.81 + 0.729 * 7)) < 1e-5
    short = lambda_return(reward=reward, continues=c, bootstrap=value, lam=0.0)
    torch.testing.assert_close(short, reward + 0.9 * value)


def test_weights_stop_at_the_state_in_which_the_action_is_taken():
    # the start is alive, the second state ends the episode: its own outcome must not be weighted by what follows
    continues = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    _, weight = imagined_targets(reward=torch.zeros(1, 3), continues=continues, value=torch.zeros(1, 4), lam=0.95)
    assert weight.tolist() == [[1.0, 0.0, 0.0]]
    assert reach_weight(torch.tensor([[0.5, 0.5, 0.5]])).tolist() == [[0.5, 0.25, 0.125]]


def test_imagined_targets_on_a_hand_computed_four_step_mdp():
    # states 0..4 in a chain, reward on arrival (1, 2, 4, 8), everything alive, discount 1, values 0 but v4 = 3
    value = torch.tensor([[0.0, 0.0, 0.0, 0.0, 3.0]])
    reward = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    return_, weight = imagined_targets(reward=reward, continues=torch.ones(1, 5), value=value, lam=1.0)
    assert return_.tolist() == [[18.0, 17.0, 15.0, 11.0]]
    assert weight.tolist() == [[1.0, 1.0, 1.0, 1.0]]


class _Recorder:
    """Stands for a critic: remembers its targets, and its loss is 1 everywhere."""

    def loss(self, features, return_):
        self.return_ = return_
        return torch.ones_like(return_)


def _replay_targets(is_last, is_terminal):
    critic = _Recorder()
    loss = replay_value_loss(
        critic, features=torch.zeros(1, 4, 2), reward=torch.tensor([[0.0, 1.0, 1.0, 1.0]]),
        is_last=torch.tensor([is_last]), is_terminal=torch.tensor([is_terminal]),
        bootstrap=torch.tensor([[10.0, 20.0, 30.0, 40.0]]), discount=0.5, lam=1.0,
    )
    return critic.return_[0].tolist(), loss[0].tolist()


def test_replay_targets_run_through_to_the_bootstrap_of_the_last_index():
    # R_2 = 1 + .5*40 = 21; R_1 = 1 + .5*21 = 11.5; R_0 = 1 + .5*11.5 = 6.75; the last index has no loss
    assert _replay_targets([False] * 4, [False] * 4) == ([6.75, 11.5, 21.0], [1.0, 1.0, 1.0])


def test_truncation_bootstraps_and_stops_the_chain():
    returns, loss = _replay_targets([False, False, True, False], [False] * 4)
    # arriving at the truncated step 2: R_1 = 1 + .5 * bootstrap_2 = 16, whatever follows
    assert returns[:2] == [9.0, 16.0]
    assert loss == [1.0, 1.0, 0.0], "no value loss at is_last: the next index is another episode"


def test_termination_does_not_bootstrap():
    returns, loss = _replay_targets([False, False, True, False], [False, False, True, False])
    assert returns[:2] == [1.5, 1.0]
    assert loss == [1.0, 1.0, 0.0]


def test_return_scale_starts_at_one_and_follows_the_percentile_range():
    normalizer = ReturnNormalizer(rate=0.5)
    assert normalizer(torch.zeros(100)).item() == 1.0
    values = torch.linspace(0, 100, 1001)
    for _ in range(60):
        scale = normalizer(values)
    assert abs(scale.item() - 90.0) < 1e-3
    normalizer(torch.full((10,), torch.nan))
    assert torch.isfinite(normalizer.high), "a non-finite batch changes nothing"
