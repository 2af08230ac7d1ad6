"""What a value learner promises (``worldmodel.protocols.ValueLearner``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldmodel.check import modules
from worldmodel.check.report import Broken, Check, Report, examine
from worldmodel.check.samples import B, T, changed, copied, difference
from worldmodel.check.still import Still

FEATURES = 24
MEMBERS = {
    "value": "value(features) -> (...)", "target": "target(features) -> (...)",
    "loss": "loss(features, return_) -> (...)", "track": "track(healthy)",
}


class Subject:
    """A value learner in the making, and what it is asked about."""

    def __init__(self, config: Any, device: torch.device | str) -> None:
        self.config, self.device = config, device
        self.build = modules.builder(config, FEATURES, device=device)
        g = torch.Generator().manual_seed(5)
        self.features = torch.randn(B, T, FEATURES, generator=g).to(device)
        self.return_ = (3 * torch.randn(B, T, generator=g)).to(device)
        self.learner: Any = None

    def everything(self, learner: Any) -> dict[str, Tensor]:
        """All that it says of the sample."""
        return {
            "value": learner.value(self.features), "target": learner.target(self.features),
            "loss": learner.loss(self.features, self.return_),
        }


def check_value_learner(config: Any, *, device: torch.device | str = "cpu") -> Report:
    """Put ``config.build(feature_dim)`` to every promise of a value learner."""
    return examine("value learner", type(config).__name__, CHECKS, Subject(config, device))


def build_works(s: Subject) -> str:
    s.learner = s.build(0)
    modules.is_module(s.learner, "value learner")
    modules.has_members(s.learner, MEMBERS, "value learner")
    return f"{sum(p.numel() for p in s.learner.parameters()):,} parameters"


def shapes_are_leading(s: Subject) -> None:
    with Still(), torch.no_grad():
        whole = s.everything(s.learner)
        one = {
            "value": s.learner.value(s.features[:, 2]), "target": s.learner.target(s.features[:, 2]),
            "loss": s.learner.loss(s.features[:, 2], s.return_[:, 2]),
        }
    for name, x in whole.items():
        for out, lead in ((x, (B, T)), (one[name], (B,))):
            if tuple(out.shape) != lead:
                raise Broken(
                    f"{name} has shape {tuple(out.shape)} for features {(*lead, FEATURES)}, expected {lead}; no "
                    f"trailing 1, any axes in front"
                )
        gap = difference(one[name], x[:, 2])
        if gap:
            raise Broken(
                f"{name} of one step is not that of the same step in a batch: {gap}; work on the last axis alone"
            )
    modules.is_finite(whole, "value, target and loss")
    modules.is_float32(whole, "value, target and loss")


def return_is_constant(s: Subject) -> None:
    features, return_ = s.features.clone().requires_grad_(), s.return_.clone().requires_grad_()
    with modules.seeded(0):
        total = s.learner.loss(features, return_).sum()
    grad = torch.autograd.grad(total, return_, allow_unused=True, materialize_grads=True)[0]
    if bool(grad.ne(0).any()):
        raise Broken("loss sends a gradient into the return; use return_.detach()")


def gradients_arrive(s: Subject) -> str:
    learner = s.build(0)
    return modules.gradients_arrive(learner, lambda: learner.loss(s.features, s.return_).mean(), "loss")


def tracks(s: Subject) -> str:
    """``track`` moves slow copies alone, and nothing after a sick update."""
    learner = s.build(0)
    trained = {name for name, p in learner.named_parameters() if p.requires_grad}
    with modules.seeded(6), torch.no_grad():
        for name, p in learner.named_parameters():
            if name in trained:
                p.add_(0.1 * torch.randn_like(p))
    before = copied(dict(learner.state_dict()))
    learner.track(torch.tensor(False, device=s.device))
    moved = changed(before, dict(learner.state_dict()))
    if moved:
        raise Broken(f"track(False) moves {modules.listed(moved)}; after an update that was skipped nothing may move")
    learner.track(torch.tensor(True, device=s.device))
    moved = changed(before, dict(learner.state_dict()))
    wrong = [name for name in moved if name in trained]
    if wrong:
        raise Broken(f"track moves {modules.listed(wrong)}, which the optimiser trains; move slow copies alone")
    modules.is_finite(dict(learner.state_dict()), "track")
    return f"moves {len(moved)} tensors" if moved else "moves nothing"


def leaves_its_inputs(s: Subject) -> None:
    given = {"features": s.features, "return_": s.return_}
    before = copied(given)
    with modules.seeded(0):
        s.everything(s.learner)
    touched = changed(before, given)
    if touched:
        raise Broken(
            f"value, target or loss changes its input in place ({modules.listed(touched)}); return new tensors"
        )


def survives_bfloat16(s: Subject) -> None:
    with torch.autocast(torch.device(s.device).type, torch.bfloat16), modules.seeded(0), torch.no_grad():
        out = s.everything(s.learner)
    modules.is_finite(out, "value, target and loss", under=" under bfloat16 autocast")
    modules.is_float32(out, "value, target and loss", under=" under bfloat16 autocast")


def is_traced(s: Subject) -> None:
    modules.traces(s.learner.value, s.features, method="value")
    modules.traces(s.learner.target, s.features, method="target")
    modules.traces(s.learner.loss, s.features, s.return_, method="loss")


CHECKS: tuple[Check[Subject], ...] = (
    Check("config is data", lambda s: modules.config_is_data(s.config)),
    Check("build gives a value learner", build_works, is_needed=True),
    Check("shapes over any leading axes", shapes_are_leading, is_needed=True),
    Check("the return is a constant", return_is_constant),
    Check("inputs are left alone", leaves_its_inputs),
    Check("gradients reach every parameter", gradients_arrive),
    Check("track moves slow copies alone", tracks),
    Check("same seed, same result", lambda s: modules.repeats(lambda: s.everything(s.learner), "the learner")),
    Check("saves and loads", lambda s: modules.saves(s.build, s.everything, "the learner")),
    Check("bfloat16 is finite", survives_bfloat16),
    Check("one graph without a break", is_traced),
)
