"""The mistakes that re-implementations of Dreamer were found to make, and the tests that keep each of them out.

``GUARDS`` is the map: a pitfall that has no test of its own elsewhere has it in this file.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import presets, runs
from worldmodel.agents.dreamer import agent as dreamer
from worldmodel.agents.dreamer.losses import ReturnNormalizer
from worldmodel.arguments import TrainOptions
from worldmodel.configs.sizes import SIZES
from worldmodel.distributions import BoundedNormal, Categorical, TwoHot, symexp_bins
from worldmodel.envs.pool import make_pool
from worldmodel.envs.toys import ToyConfig
from worldmodel.models.latent import balanced_kl
from worldmodel.models.objectives.barlow import cross_correlation
from worldmodel.nn.blocks import BlockLinear
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay, make_replay
from worldmodel.train.schedule import TrainRatio

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/unit/test_pitfalls.py"

GUARDS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("is_first zeroes state and previous action", (
        "tests/unit/test_rssm.py::test_reset_forgets_state_and_previous_action",
    )),
    2: ("the action stored with an observation was chosen after it; the context's action leads into the sequence", (
        "tests/unit/test_replay.py::test_samples_equal_a_plain_list_of_everything_added",
        "tests/e2e/test_alignment.py::test_what_is_sampled_is_what_was_lived",
    )),
    3: ("final observations survive the autoreset, and the action of the reset step is ignored", (
        "tests/envs/test_pool.py::test_step_after_last_returns_first_observation_of_next_episode",
        "tests/envs/test_toys.py::test_the_step_after_the_last_begins_an_episode_and_ignores_the_action",
        "tests/e2e/test_alignment.py::test_what_is_sampled_is_what_was_lived",
    )),
    4: ("a time limit is not a death; no frame of the last episode is seen after a reset; lives", (
        "tests/envs/test_atari.py::test_the_frame_cap_truncates_and_is_not_terminal",
        "tests/envs/test_atari.py::test_reset_shows_nothing_of_the_previous_episode",
        "tests/envs/test_atari.py::test_a_lost_life_ends_the_episode_and_the_game_goes_on",
        "tests/envs/test_gym.py::test_a_time_limit_is_not_terminal",
        "tests/envs/test_dmc.py::test_the_time_limit_truncates",
    )),
    5: ("an end stops the chain of returns, only a terminal one stops bootstrapping; abandoned episodes are ended", (
        "tests/unit/test_returns.py::test_truncation_bootstraps_and_stops_the_chain",
        "tests/unit/test_returns.py::test_termination_does_not_bootstrap",
        "tests/unit/test_replay.py::test_an_abandoned_episode_is_cut_but_not_terminal",
    )),
    6: ("reward and continuation on arrival; weights up to the state in which the action is taken", (
        "tests/unit/test_returns.py::test_weights_stop_at_the_state_in_which_the_action_is_taken",
        "tests/unit/test_returns.py::test_imagined_targets_on_a_hand_computed_four_step_mdp",
    )),
    7: ("imagination trains no world model, targets are constants, the slow critic is never trained", (
        "tests/unit/test_dreamer.py::test_actor_and_critic_losses_do_not_reach_the_world_model",
        "tests/unit/test_dreamer.py::test_slow_critic_follows_but_is_never_trained",
        "tests/unit/test_distributions.py::test_two_hot_target_gets_no_gradient",
    )),
    8: ("the critic's loss on replay shapes the representation", (
        "tests/unit/test_dreamer.py::test_replay_value_loss_shapes_the_representation_and_not_the_actor",
    )),
    9: ("the Barlow target and the probe's input are detached", (
        "tests/unit/test_dreamer.py::test_barlow_target_is_held_fixed",
        "tests/unit/test_dreamer.py::test_probe_decoder_learns_without_touching_the_model",
    )),
    10: ("loading weights keeps every alias", (
        f"{HERE}::test_loading_keeps_parameters_views_of_the_flat_buffer",
        "tests/unit/test_optim.py::test_parameters_stay_usable_modules_after_flattening",
        "tests/unit/test_dreamer.py::test_save_and_load_continue_learning_bit_for_bit",
    )),
    11: ("KL, two-hot, returns and percentiles are float32 whatever computes the networks", (
        f"{HERE}::test_distributions_are_float32_under_autocast",
        f"{HERE}::test_returns_and_percentiles_get_float32_when_networks_are_bfloat16",
        "tests/unit/test_precision.py::test_bfloat16_learns_with_float32_losses_and_parameters",
        "tests/unit/test_distributions.py::test_unimix_keeps_kl_finite_when_logits_are_extreme",
    )),
    12: ("the two-hot mean is summed in pairs: a zero-initialised head says exactly 0", (
        "tests/unit/test_distributions.py::test_zero_initialised_head_predicts_exactly_zero",
        "tests/unit/test_distributions.py::test_bins_are_antisymmetric_and_span_e_to_the_20",
    )),
    13: ("clipping per tensor with a floor; zero gradients give 0 and tiny ones count", (
        "tests/unit/test_optim.py::test_laprop_with_agc_equals_the_formulas_over_many_steps",
        "tests/unit/test_optim.py::test_zero_initialised_tensor_can_move",
        "tests/unit/test_optim.py::test_zero_gradient_moves_nothing_and_makes_no_nan",
        "tests/unit/test_optim.py::test_tiny_gradients_are_not_flushed_away",
    )),
    14: ("the return scale is at least 1", (
        "tests/unit/test_returns.py::test_return_scale_starts_at_one_and_follows_the_percentile_range",
    )),
    15: ("free nats act on the sum over groups, dyn and rep apart", (
        "tests/unit/test_rssm.py::test_free_nats_act_on_the_sum_over_groups_and_stop_the_gradient",
        "tests/unit/test_rssm.py::test_dyn_moves_the_prior_only_and_rep_the_posterior_only",
    )),
    16: ("straight-through gradients are those of the probabilities", (
        "tests/unit/test_distributions.py::test_straight_through_passes_the_gradient_of_the_probabilities",
    )),
    17: ("percentiles over all imagined returns are exact and wait for no device", (
        f"{HERE}::test_percentiles_of_a_full_batch_of_imagined_returns_are_exact",
        "tests/unit/test_precision.py::test_an_update_reads_no_tensor_on_the_host",
    )),
    18: ("block-linear layers are initialised by their total fan-in", (
        f"{HERE}::test_block_linear_layers_of_every_size_start_with_the_variance_of_the_whole_input",
        "tests/unit/test_optim.py::test_initial_weights_have_variance_one_over_fan_in_and_are_cut_at_two_sigma",
    )),
    19: ("unbiased std over a mean by N: the Barlow diagonal of equal inputs is (N - 1) / N", (
        f"{HERE}::test_the_correlation_of_equal_columns_is_just_below_one",
        "tests/unit/test_dreamer.py::test_barlow_loss_against_the_definition",
    )),
    20: ("writing latents back changes the storage", (
        f"{HERE}::test_what_an_update_writes_back_is_the_context_of_the_next_sample",
        "tests/unit/test_replay.py::test_write_back_changes_what_is_stored",
    )),
    21: ("the step before a sequence gives its first state, unless an episode begins there", (
        "tests/unit/test_dreamer.py::test_context_from_replay_changes_the_first_state_unless_the_episode_begins_there",
    )),
    22: ("latents are stored as class indices and bfloat16", (
        "tests/unit/test_rssm.py::test_memory_round_trips_through_class_indices_and_bfloat16",
        "tests/unit/test_replay.py::test_resident_memory_grows_by_what_is_stored_and_no_more",
    )),
    23: ("the newest sequences are drawn once before anything else", (
        f"{HERE}::test_with_every_update_the_newest_steps_are_among_the_batch",
        "tests/unit/test_replay.py::test_each_fresh_sequence_is_drawn_once_before_anything_else",
    )),
    24: ("the train ratio survives a resume without a storm, and counts decisions", (
        f"{HERE}::test_the_train_ratio_goes_on_where_it_was_and_makes_up_for_nothing",
        f"{HERE}::test_updates_follow_decisions_and_not_frames",
        "tests/e2e/test_resume.py::test_a_killed_run_resumes_bit_for_bit",
    )),
    25: ("the first update waits for a batch of start positions", (
        "tests/unit/test_replay.py::test_the_first_batch_waits_for_batch_size_times_length_starts",
        f"{HERE}::test_the_train_ratio_goes_on_where_it_was_and_makes_up_for_nothing",
    )),
}


@functools.cache
def names_in(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("number", range(1, 26))
def test_every_pitfall_has_its_tests(number: int) -> None:
    _, guards = GUARDS[number]
    assert guards
    for guard in guards:
        path, _, name = guard.partition("::")
        assert name.startswith("test_") and name in names_in(path), f"pitfall {number}: {guard} is gone"


# 10


def test_loading_keeps_parameters_views_of_the_flat_buffer() -> None:
    spec = make_spec()
    agent, other = make_agent(spec, seed=1), make_agent(spec, seed=2)
    flat, begins = agent.optimizer.flat, [p.data_ptr() for p in agent.modules.parameters()]
    agent.load_state_dict({name: x.clone() for name, x in other.state_dict().items()})
    assert agent.optimizer.flat is flat and [p.data_ptr() for p in agent.modules.parameters()] == begins
    assert torch.equal(agent.optimizer.flat, other.optimizer.flat), "loaded weights arrived where the optimiser works"
    low, high = flat.data_ptr(), flat.data_ptr() + 4 * flat.numel()
    trained = {id(p) for p in agent.optimizer.parameters}
    assert all((low <= p.data_ptr() < high) == (id(p) in trained) for p in agent.modules.parameters())
    before = [p.clone() for p in agent.optimizer.parameters]
    for seed in range(2):  # the first step of the warm-up has a learning rate of 0
        agent.learn(make_batch(spec, seed=seed))
    moved = sum(not torch.equal(p, q) for p, q in zip(agent.optimizer.parameters, before))
    assert moved > 0.8 * len(before), "an update moves what the modules compute with"


# 11


def test_distributions_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    wild = (torch.randn(4, 6, 8, 5) * 40).bfloat16()
    other = (torch.randn(4, 6, 8, 5) * 40).bfloat16()
    logits, target = (torch.randn(4, 255) * 30).bfloat16(), torch.tensor([0.0, 1e-3, -7e7, 4e8])
    value = torch.randn(4, 2)

    def compute() -> list[torch.Tensor]:
        two_hot, normal = TwoHot(logits, symexp_bins()), BoundedNormal(wild[0, 0, :4, :2], wild[1, 0, :4, 2:4])
        categorical = Categorical(wild, 0.01)
        return [
            *balanced_kl(wild, other, unimix=0.01, free_nats=1.0), categorical.probs, categorical.log_probs,
            categorical.entropy(), two_hot.mean(), two_hot.loss(target), normal.log_prob(value), normal.entropy(),
        ]

    plain = compute()
    with torch.autocast("cpu", torch.bfloat16):
        cast = compute()
    for a, b in zip(plain, cast):
        assert b.dtype == torch.float32 and torch.isfinite(b).all()
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_returns_and_percentiles_get_float32_when_networks_are_bfloat16(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[torch.dtype]] = {}

    def spy(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = [*args, *kwargs.values()]
            seen.setdefault(name, set()).update(x.dtype for x in found if isinstance(x, torch.Tensor))
            return function(*args, **kwargs)

        return call

    spec = make_spec(kind)
    agent, batch = make_agent(spec, precision="bfloat16"), make_batch(spec)
    monkeypatch.setattr(dreamer, "imagined_targets", spy("targets", dreamer.imagined_targets))
    monkeypatch.setattr(ReturnNormalizer, "forward", spy("percentiles", ReturnNormalizer.forward))
    monkeypatch.setattr(TwoHot, "loss", spy("two-hot", TwoHot.loss))
    agent.learn(batch)
    assert seen == {"targets": {torch.float32}, "percentiles": {torch.float32}, "two-hot": {torch.float32}}


# 17


def test_percentiles_of_a_full_batch_of_imagined_returns_are_exact() -> None:
    returns = np.random.default_rng(0).standard_cauchy((16 * 64, 15)).astype(np.float32)
    normalizer = ReturnNormalizer(rate=1.0)
    scale = normalizer(torch.from_numpy(returns)).item()
    low, high = np.quantile(returns.astype(np.float64), [0.05, 0.95])
    assert scale == pytest.approx(high - low, rel=1e-5)
    assert [normalizer.low.item(), normalizer.high.item()] == pytest.approx([low, high], rel=1e-5)


# 18


@pytest.mark.parametrize("size", ["1m", "12m", "50m"])
def test_block_linear_layers_of_every_size_start_with_the_variance_of_the_whole_input(size: str) -> None:
    torch.manual_seed(0)
    deter, hidden, blocks = SIZES[size].deter, SIZES[size].hidden, 8
    inputs = deter + blocks * 3 * hidden
    weight = BlockLinear(inputs, deter, blocks).weight.detach()
    assert weight.shape == (blocks, inputs // blocks, deter // blocks)
    assert weight.std().item() == pytest.approx(inputs**-0.5, rel=0.03)


# 19


@pytest.mark.parametrize("rows", [4, 24, 1024])
def test_the_correlation_of_equal_columns_is_just_below_one(rows: int) -> None:
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0))
    diagonal = cross_correlation(x, 3 * x - 7).diagonal()
    torch.testing.assert_close(diagonal, torch.full((5,), (rows - 1) / rows), rtol=1e-5, atol=1e-5)


# 20, 23: the agent's own latents through the real replay


def lived(num_envs: int = 2, steps: int = 40, **config: Any) -> tuple[Any, RingReplay]:
    """An agent and the replay of its first ``steps`` steps in Catch."""
    pool = make_pool(ToyConfig(), num_envs)
    agent = make_agent(pool.spec)
    numbers: dict[str, Any] = {"capacity": 400, "batch_size": 2, "length": 6} | config
    replay = make_replay(
        ReplayConfig(**numbers), pool.spec, agent.memory_spec, num_envs, device=torch.device("cpu"), seed=0
    )
    step, carry = pool.reset(0), agent.initial(num_envs)
    for _ in range(steps):
        action, carry = agent.act(carry, step, explore=True)
        replay.add(step, action, agent.memory(carry))
        step = pool.step(action)
    pool.close()
    return agent, replay


def test_what_an_update_writes_back_is_the_context_of_the_next_sample() -> None:
    agent, replay = lived(num_envs=1, batch_size=1)
    batch = replay.sample()
    assert batch.index is not None
    (env, start), = batch.index.tolist()
    # the sequence that begins three steps later: by then the latents hang on freshly drawn samples
    after = torch.tensor([[env, start + 3]])
    stale = replay._gather(after, None).context
    update = agent.learn(batch)
    replay.write_back(batch, update)
    fresh = replay._gather(after, None).context
    assert set(fresh) == {"deter", "stoch"}
    for name, x in fresh.items():
        assert torch.equal(x, update.memory[name][:, 2]) and not torch.equal(x, stale[name]), name


def test_with_every_update_the_newest_steps_are_among_the_batch() -> None:
    _, replay = lived(num_envs=2, steps=1 + 6 * 5, batch_size=2)
    drawn = [[tuple(row) for row in replay.sample().index.tolist()] for _ in range(5)]  # type: ignore[union-attr]
    assert drawn == [[(0, start), (1, start)] for start in range(1, 31, 6)]


# 24, 25


def test_the_train_ratio_goes_on_where_it_was_and_makes_up_for_nothing() -> None:
    def updates(ratio: TrainRatio, decisions: int) -> list[int]:
        return [ratio.due(3, ready=True) for _ in range(decisions)]

    whole = TrainRatio(50.0, 1024)
    assert [whole.due(3, ready=False) for _ in range(500)] == [0] * 500
    expected = updates(whole, 300)
    assert set(expected) == {0, 1}, "no storm once replay can be drawn from"
    assert sum(expected) == whole.updates == int(300 * 3 * 50 / 1024)

    first = TrainRatio(50.0, 1024)
    got = updates(first, 101)
    resumed = TrainRatio(50.0, 1024)
    resumed.load(first.state())
    assert got + updates(resumed, 199) == expected
    assert resumed.state() == whole.state()


def test_first_updates_are_made_once_when_replay_is_ready_and_not_again_after_a_resume() -> None:
    ratio = TrainRatio(50.0, 1024, first=7)
    assert [ratio.due(3, ready=False), ratio.due(3, ready=True), ratio.due(3, ready=True)] == [0, 7, 0]
    resumed = TrainRatio(50.0, 1024, first=7)
    resumed.load(ratio.state())
    assert resumed.due(3, ready=True) == 0 and resumed.updates == 7


def test_updates_follow_decisions_and_not_frames(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    words = (
        "--train.steps 60 --train.num-envs 2 --train.train-ratio 2 --train.eval-every 0 --train.eval-episodes 1 "
        "--train.threads 1 --replay.capacity 200 --replay.batch-size 2 --replay.length 4 --replay.min-starts 4"
    )
    found = {}
    for repeat in (1, 3):
        given = [*words.split(), "--env.repeat", str(repeat), "--device", "cpu"]
        run, _, _ = presets.parse(presets.find_preset("gym"), given, TrainOptions(), prog="test")
        assert run.env.build(0).spec.repeat == repeat
        found[repeat] = runs.start(run, tmp_path / str(repeat), live=False).updates
    torch.set_num_threads(threads)
    # replay holds 4 starts once each environment has 6 steps: 25 of the 30 rounds earn 2 * 2 of 8 replayed steps each
    assert found == {1: 12, 3: 12}
