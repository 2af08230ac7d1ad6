"""Golden numbers of the reference implementation of DreamerV3.

Source: danijar/dreamerv3, commit e3f0224, MIT licence, Copyright (c) 2024 Danijar Hafner; run in float32 on a CPU with
jax 0.10.2, optax 0.2.8 and ninjax 3.6.3. Only its outputs are kept, in ``golden_dreamerv3.json``. The weights and
inputs it was given are those of ``waves.py``, and chance is taken out on both sides: categoricals gave their mode,
normals mean + std * a constant.

Tolerance: relative error 1e-4 of the largest entry of each array; gradients are compared tensor by tensor, by their
norm and by their product with a wave.

One known difference is left out of the comparison. The reference weighs an imagined rollout with its head's
*prediction* of whether the real start state goes on, we with what replay knows: that factor is divided out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.parity.waves import FIRST, LAST, TERMINAL, B, H, T, fill, flags, make_agent, make_batch, no_chance, wave
from worldmodel import tree
from worldmodel.agents.dreamer.actor import ActorConfig
from worldmodel.agents.dreamer.agent import Dreamer, DreamerConfig
from worldmodel.agents.dreamer.losses import ReturnNormalizer, replay_value_loss
from worldmodel.distributions import BoundedNormal, Categorical, TwoHot, symexp_bins
from worldmodel.nn.optim import LaProp
from worldmodel.rollout import imagine
from worldmodel.types import Batch

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_dreamerv3.json").read_text())["numbers"]
KINDS = ("continuous", "discrete")


def check(name: str, ours: Tensor, *, rtol: float = 1e-4) -> None:
    """``ours`` equals the golden array ``name`` entry by entry, within ``rtol`` of its largest entry."""
    golden = np.asarray(GOLDEN[name])
    got = ours.detach().double().numpy().ravel()
    assert got.shape == golden.shape, f"{name}: {got.shape} numbers, golden has {golden.shape}"
    worst = np.abs(got - golden).max() / np.abs(golden).max()
    assert worst <= rtol, f"{name}: relative error {worst:.2e}"


def check_each(name: str, ours: Tensor) -> None:
    """As :func:`check`, relative to each entry: for numbers of many magnitudes."""
    golden = np.asarray(GOLDEN[name])
    np.testing.assert_allclose(ours.detach().numpy().ravel(), golden, rtol=1e-4, atol=1e-6, err_msg=name)


class Run:
    """One pass of the agent over the batch, without chance."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.agent: Dreamer = make_agent(kind)  # type: ignore[arg-type]
        self.batch: Batch = make_batch(kind)  # type: ignore[arg-type]
        with no_chance():
            self.losses, self.metrics, self.states = self.agent.losses(self.batch)
            self.tokens = self.agent.model.encoder(self.batch.obs)
            context = self.agent.model.unpack(self.batch.context)
            b = self.batch
            self.core = self.agent.model.core.observe(context, self.tokens, b.prev_action, b.is_first)
            self.features = self.agent.model.features(self.states)

    def check(self, name: str, ours: Tensor) -> None:
        check(f"{self.kind}/{name}", ours)

    def check_gradients(self, name: str, loss: Tensor) -> None:
        """Norm and product with a wave, for every tensor that the loss reaches here or there."""
        golden: dict[str, list[float]] = GOLDEN[f"{self.kind}/{name}"]
        parameters = {n: p for n, p in self.agent.modules.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        ours = {n: g for n, g in zip(parameters, grads) if g is not None and g.any()}
        assert ours.keys() == golden.keys()
        for key, g in ours.items():
            norm, product = golden[key]
            assert g.norm().item() == pytest.approx(norm, rel=1e-4), f"norm of {key}"
            reach = norm * wave(*g.shape).norm().item()
            assert (g * wave(*g.shape)).sum().item() == pytest.approx(product, abs=1e-4 * reach), f"direction of {key}"


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    yield Run(request.param)


def test_encoder_gives_the_reference_tokens(run: Run) -> None:
    run.check("tokens", run.tokens[:, :2])


def test_filtering_gives_the_reference_states_across_resets_and_from_a_remembered_context(run: Run) -> None:
    assert run.batch.prev_action[flags(FIRST)].any(), "an action that a reset must make the model forget"
    run.check("deter", run.core.states.deter)
    run.check("stoch", run.core.states.stoch.argmax(-1))
    run.check("posterior", run.core.posterior)
    run.check("prior", run.core.prior)


def test_heads_predict_what_the_reference_predicts(run: Run) -> None:
    model, features = run.agent.model, run.features
    run.check("reward", model.reward(features).mean())
    run.check("continues", model.continues(features))
    run.check("value", run.agent.value.value(features))
    run.check("entropy", run.agent.actor(features).entropy())


def test_decoder_paints_what_the_reference_paints() -> None:
    run = Run("continuous")
    decoded = run.agent.model.objective.decoder(run.features)
    run.check("image", decoded["image"][0, 1])
    run.check("mask", decoded["mask"][0, 1])
    run.check("speed", decoded["speed"])
    run.check("gear", decoded["gear"])
    run.check("slow", run.agent.value.slow(run.features).mean())


def test_dreams_are_those_of_the_reference(run: Run) -> None:
    starts = tree.flatten_time(tree.detach(run.states))
    with torch.no_grad(), no_chance():
        dream = imagine(run.agent.model, lambda features: run.agent.actor(features).sample(), starts, H)
    run.check("dream_deter", dream.states.deter[:, -1])
    run.check("dream_stoch", dream.states.stoch[:, 1:].argmax(-1))
    run.check("dream_action", dream.action.argmax(-1) if run.kind == "discrete" else dream.action)


def test_world_model_losses_are_those_of_the_reference(run: Run) -> None:
    keys = ("gear", "image", "mask", "speed")
    total = sum(torch.tensor(GOLDEN[f"{run.kind}/loss/{key}"]) for key in keys)
    torch.testing.assert_close(run.losses["reconstruction"].flatten(), total, rtol=1e-4, atol=0)
    for ours, theirs in {"reward": "rew", "continue": "con", "dyn": "dyn", "rep": "rep"}.items():
        run.check(f"loss/{theirs}", run.losses[ours])


def test_defaults_that_the_golden_agent_changes_are_the_published_ones() -> None:
    assert ActorConfig().entropy == 3e-4
    assert DreamerConfig().imagination == 15


def test_imagination_losses_are_those_of_the_reference_up_to_the_weight_of_the_start(run: Run) -> None:
    alive = ~run.batch.is_terminal.flatten()
    for name in ("policy", "value"):
        ours = (run.losses[name] / run.agent.discount).flatten()
        theirs = torch.tensor(GOLDEN[f"{run.kind}/loss/{name}_over_con0"])
        torch.testing.assert_close(ours[alive], theirs[alive], rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
        assert ours[~alive].abs().max() == 0, "nothing is learned from acting after the end"
    low, high = GOLDEN[f"{run.kind}/retnorm"]
    assert run.agent.normalizer.low.item() == pytest.approx(low, rel=1e-4)
    assert run.agent.normalizer.high.item() == pytest.approx(high, rel=1e-4)


def test_replay_value_loss_is_that_of_the_reference(run: Run) -> None:
    run.check("loss/repval", run.losses["replay_value"])


def test_gradients_of_the_world_model_are_those_of_the_reference(run: Run) -> None:
    scales = {name: scale for name, scale in run.agent.scales.items() if name not in ("policy", "value")}
    run.check_gradients("model_gradient", torch.stack([s * run.losses[n].mean() for n, s in scales.items()]).sum())


def test_gradients_of_actor_and_critic_are_those_of_the_reference(run: Run) -> None:
    behaviour = (run.losses["policy"].mean() + run.losses["value"].mean()) / run.agent.discount
    run.check_gradients("behaviour_gradient", behaviour)


class _Recorder:
    """A critic that remembers its targets."""

    def loss(self, features: Tensor, return_: Tensor) -> Tensor:
        self.return_ = return_
        return torch.zeros_like(return_)


def test_returns_over_replay_are_those_of_the_reference() -> None:
    critic = _Recorder()
    replay_value_loss(
        critic, features=torch.zeros(B, T, 1), reward=wave(B, T, phase=1),
        is_last=flags(LAST), is_terminal=flags(TERMINAL),
        bootstrap=wave(B, T, phase=2, scale=10.0), discount=1 - 1 / 333, lam=0.95,
    )
    check("lambda_return", critic.return_)


def test_two_hot_bins_means_and_losses_are_those_of_the_reference() -> None:
    bins = symexp_bins()
    check_each("bins", bins)
    targets = torch.tensor([0, 1, -1, 0.3, -77.7, 1e4, -3e8, 6e8, -6e8, bins[130], bins[0], bins[-1]])
    logits = wave(12, 255, phase=1, scale=3.0) - ((torch.arange(255) - 127) / 25) ** 2
    check("twohot/mean", TwoHot(logits, bins).mean())
    check_each("twohot/loss", TwoHot(logits, bins).loss(targets))


def test_distributions_are_those_of_the_reference() -> None:
    p, q = (Categorical(wave(5, 4, 3, phase=phase, scale=3.0), 0.01) for phase in (1, 2))
    check("categorical/kl", p.kl(q))
    check("categorical/entropy", p.entropy())
    check("categorical/log_prob", p.log_prob(torch.eye(3)[torch.zeros(5, 4, dtype=torch.long)]))
    hidden = wave(5, 4, phase=1, scale=2.0)
    normal = BoundedNormal(hidden @ wave(4, 3, phase=2), hidden @ wave(4, 3, phase=3))
    check("normal/log_prob", normal.log_prob(wave(5, 3, phase=4, scale=1.5)))
    check("normal/entropy", normal.entropy())


def test_return_scale_is_that_of_the_reference() -> None:
    normalizer, rows = ReturnNormalizer(0.01), []
    for i in range(3):
        scale = normalizer(wave(7, 5, phase=i, scale=10.0 ** (i + 2)))
        rows.append(torch.stack([normalizer.low, scale]))
    check_each("normalizer", torch.stack(rows))


def test_optimiser_walks_as_the_reference_does() -> None:
    start = [wave(4, 3, phase=1), torch.zeros(5), wave(6, phase=2, scale=1e-4)]
    parameters = [nn.Parameter(p.clone()) for p in start]
    optimizer, path = LaProp(parameters, lr=1e-2, warmup=0), []
    for i in range(8):
        optimizer.zero_grad()
        for j, p in enumerate(parameters):
            assert p.grad is not None
            p.grad.add_(wave(*p.shape, phase=10 + i + j, scale=10.0 ** (1 - i)))
        optimizer.step()
        path.append(torch.cat([p.detach().flatten() for p in parameters]))
    check("optimizer/warmup0", torch.stack(path))
    # the tensors that begin near 0 have moved by about lr a step: compare them on their own scale too
    small = torch.stack(path)[:, 12:]
    golden = torch.tensor(GOLDEN["optimizer/warmup0"]).reshape(8, -1)[:, 12:]
    torch.testing.assert_close(small, golden, rtol=1e-4, atol=1e-6)


def test_slow_critic_follows_as_in_the_reference() -> None:
    agent = make_agent("continuous")
    fill(agent.modules)
    for _ in range(2):
        agent.value.track(torch.tensor(True))
    check("slow_after_two", agent.value.slow.out.weight)
