"""Where actions enter a core over sequences: what its states know when, and what its prior is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmodel import tree
from worldmodel.check.still import Still
from worldmodel.models.cores.mamba import MambaConfig
from worldmodel.models.cores.transformer import TransformerConfig

CORES: dict[str, Any] = {
    "mamba": MambaConfig(d_model=8, layers=2, headdim=4, d_state=4, stoch=3, classes=4),
    "transformer": TransformerConfig(width=8, layers=2, heads=2, ffn=12, window=6, stoch=3, classes=4),
}
TIME = 7


def built(name, **changes):
    torch.manual_seed(0)
    return replace(CORES[name], **changes).build(2, 5)


def data(firsts=()):
    g = torch.Generator().manual_seed(1)
    is_first = torch.zeros(1, TIME, dtype=torch.bool)
    for t in firsts:
        is_first[0, t] = True
    return torch.randn(1, TIME, 5, generator=g), torch.rand(1, TIME, 2, generator=g) * 2 - 1, is_first


def observed(core, tokens, action, is_first):
    with Still(), torch.no_grad():
        return core.observe(core.initial(1), tokens, action, is_first)


def changed(a, b):
    """The steps that differ."""
    return [t for t in range(TIME) if not torch.equal(a[0, t], b[0, t])]


@pytest.mark.parametrize("posterior", ["frame", "recurrent"])
@pytest.mark.parametrize("name", list(CORES))
def test_what_a_state_has_seen_and_what_a_prior_has(name, posterior):
    """A token of step 3 and the action that led to step 4, each changed alone."""
    tokens, action, is_first = data()
    other, done = tokens.clone(), action.clone()
    other[0, 3] *= -20.0
    done[0, 4] = -done[0, 4]
    for actions in ("blocks", "prior"):
        core = built(name, posterior=posterior, actions=actions)
        base = observed(core, tokens, action, is_first)
        seen, acted = observed(core, other, action, is_first), observed(core, tokens, done, is_first)
        late = actions == "prior"
        first = 3 if late else 4
        assert changed(base.states.deter, seen.states.deter)[0] == first, "the frame is in deter, or comes a step later"
        assert changed(base.prior, seen.prior)[0] == 4, "a prior has not seen its own frame"
        assert changed(base.prior, acted.prior)[0] == 4 and changed(base.states.deter, acted.states.deter)[0] == 4


@pytest.mark.parametrize("posterior", ["frame", "recurrent"])
@pytest.mark.parametrize("name", list(CORES))
def test_a_late_prior_is_made_of_features_and_action_alone(name, posterior):
    core = built(name, posterior=posterior, actions="prior")
    tokens, action, is_first = data(firsts=(0, 4))
    out = observed(core, tokens, action, is_first)
    for t in range(TIME):
        before = torch.zeros(1, 8) if t in (0, 4) else out.states.deter[:, t - 1]
        did = torch.zeros(1, 2) if t in (0, 4) else action[:, t]
        expected = core.prior_head(core.meet(torch.cat([before, did], -1))).view(1, 3, 4)
        torch.testing.assert_close(out.prior[:, t], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(CORES))
def test_a_dreamt_step_is_an_observed_one_whose_frame_is_the_sample(name, monkeypatch):
    """A late core's dream, and what it makes of the same frame where that is seen."""
    core = built(name, actions="prior")
    tokens, action, is_first = data()
    start = tree.index(observed(core, tokens, action, is_first).states, (slice(None), 3))
    with Still(), torch.no_grad():
        dream = core.step(start, action[:, 4])
        monkeypatch.setattr(core, "_posterior_logits", lambda _: 1e4 * dream.stoch.unsqueeze(1))
        at = slice(4, 5)
        seen = core.observe(start, tokens[:, at], action[:, at], is_first[:, at]).states
    assert torch.equal(seen.stoch[:, 0], dream.stoch)
    torch.testing.assert_close(seen.deter[:, 0], dream.deter, rtol=1e-5, atol=1e-6)
    assert not torch.equal(dream.deter, start.deter)


def test_published_cores_have_nothing_of_late_actions():
    for name in CORES:
        assert built(name).meet is None
        assert not [key for key in built(name).state_dict() if "meet" in key]
