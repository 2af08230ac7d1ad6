"""Every core with every objective, actor and way to begin a dream: two updates, and what they must leave. Nothing is
skipped; the one combination that cannot be, discrete actions by the gradient of the dynamics, is refused in a sentence.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.models import make_batch, make_spec
from worldmodel.agents.dreamer.actor import ActorConfig
from worldmodel.agents.dreamer.agent import Dreamer
from worldmodel.configs.sizes import NANO_CORES, OBJECTIVES, dreamer
from worldmodel.models.cores.mamba import MambaConfig
from worldmodel.models.cores.rssm import RSSMConfig
from worldmodel.models.cores.transformer import TransformerConfig

TINY = {
    "rssm": RSSMConfig(deter=16, hidden=8, stoch=3, classes=4, blocks=4),
    "mamba": MambaConfig(d_model=16, layers=2, headdim=8, d_state=4, stoch=3, classes=4),
    "transformer": TransformerConfig(width=16, heads=2, ffn=16, window=4, stoch=3, classes=4),
}
VARIANTS = {
    "rssm frame": replace(TINY["rssm"], posterior="frame"),
    "mamba recurrent": replace(TINY["mamba"], posterior="recurrent"),
    "transformer recurrent": replace(TINY["transformer"], posterior="recurrent"),
    "mamba late": replace(TINY["mamba"], actions="prior"),
    "transformer late": replace(TINY["transformer"], actions="prior"),
    "transformer late, recurrent": replace(TINY["transformer"], actions="prior", posterior="recurrent"),
    "transformer of STORM": replace(TINY["transformer"], positions="learned", norm="post", window=8, dropout=0.1),
    "mamba1": replace(TINY["mamba"], mixer="mamba1"),
}


def make(core, *, actor="discrete", objective="reconstruction", seed=0, **changes) -> Dreamer:
    spec = make_spec("discrete" if actor == "discrete" else "continuous")
    config = dreamer("nano", objective=objective, imagination=3, **changes)
    model = replace(config.model, core=core, units=16)
    gradient = "dynamics" if actor == "dynamics" else "reinforce"
    config = replace(
        config, model=model, actor=replace(config.actor, gradient=gradient, units=16),
        value=replace(config.value, units=16),
    )
    return config.build(spec, seed=seed)


def learns(agent: Dreamer) -> None:
    """Two updates are finite, and move every part."""
    before = agent.optimizer.flat.clone()
    for seed in (0, 1):
        update = agent.learn(make_batch(agent.spec, 2, 6, seed=seed, firsts=((1, 4),)))
        assert all(torch.isfinite(x).all() for x in update.metrics.values())
        assert float(update.metrics["update/skipped"]) == 0
    moved = agent.optimizer.flat != before
    at = 0
    for name, p in agent.modules.named_parameters():
        if p.requires_grad:
            assert moved[at : at + p.numel()].any(), f"{name} never moves"
            at += p.numel()


def test_every_shipped_core_is_tried():
    assert TINY.keys() == NANO_CORES.keys()


@pytest.mark.parametrize("starts", ["every", "window"])
@pytest.mark.parametrize("actor", ["discrete", "continuous", "dynamics"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("core", list(TINY))
def test_core_objective_actor_and_starts_compose(core, objective, actor, starts):
    learns(make(TINY[core], actor=actor, objective=objective, starts=starts, windows=5, window=4, warmup=0))


@pytest.mark.parametrize("starts", ["every", "window"])
@pytest.mark.parametrize("actor", ["discrete", "dynamics"])
@pytest.mark.parametrize("core", list(VARIANTS))
def test_variants_of_cores_compose(core, actor, starts):
    learns(make(VARIANTS[core], actor=actor, starts=starts, windows=5, window=4, warmup=0))


@pytest.mark.parametrize("core", list(TINY))
def test_discrete_actions_have_no_gradient_through_the_dynamics(core):
    config = dreamer("nano", core=core, actor=ActorConfig(gradient="dynamics"))
    with pytest.raises(ValueError, match='gradient="dynamics" needs continuous actions, this task has discrete ones'):
        config.build(make_spec("discrete"))


def test_windows_begin_from_the_initial_state_and_end_where_they_end():
    agent = make(TINY["rssm"], starts="window", windows=7, window=3)
    batch = make_batch(agent.spec, 2, 6)
    given = make_batch(agent.spec, 4, 3, seed=5, firsts=())
    given = replace(given, is_terminal=torch.tensor([[False, False, True]]).expand(4, 3).clone())
    torch.manual_seed(0)
    state, terminal = agent._window_ends(replace(batch, starts=given))
    assert terminal.all()
    torch.manual_seed(0)
    seen = agent.model.observe(agent.model.initial(4), given.obs, given.prev_action, given.is_first)
    torch.testing.assert_close(state.deter, seen.deter[:, -1], rtol=0, atol=0)
    torch.testing.assert_close(state.stoch, seen.stoch[:, -1], rtol=0, atol=0)
    cut = agent._cut_windows(batch)
    assert cut.reward.shape == (7, 3) and cut.obs["image"].shape[:2] == (7, 3)
    rows = {tuple(batch.reward[b, t : t + 3].tolist()) for b in range(2) for t in range(4)}
    assert {tuple(r.tolist()) for r in cut.reward} <= rows
