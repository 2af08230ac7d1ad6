"""What a representation objective promises (``worldmodel.models.objectives.base.Objective``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worldmodel import tree
from worldmodel.check import modules
from worldmodel.check.report import Broken, Check, Report, examine
from worldmodel.check.samples import B, T, changed, copied, make_batch, make_spec
from worldmodel.types import EnvSpec

FEATURES, TOKENS = 24, 10
MEMBERS = {
    "scales": "scales, a weight for each name that the call returns",
    "decodes": "decodes, a bool: whether it trains the decoder",
    "__call__": "a call (features, tokens, batch) -> {name: (B, T)}; write forward",
}


class PlainDecoder(nn.Module):
    """The least that ``make_decoder`` may give: one linear layer to one picture."""

    def __init__(self, key: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_keys = [key]
        self.shape = shape
        self.out = nn.Linear(FEATURES, torch.Size(shape).numel())

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """(..., F) -> (..., h, w, C) in [0, 1]."""
        return {self.image_keys[0]: torch.sigmoid(self.out(features).float()).unflatten(-1, self.shape)}

    def loss(self, features: Tensor, obs: dict[str, Tensor]) -> Tensor:
        """(B, T) squared error."""
        key = self.image_keys[0]
        return (self(features)[key] - obs[key].float() / 255).square().flatten(2).sum(-1)


class Subject:
    """An objective in the making, and the features, tokens and batch it is called with."""

    def __init__(self, config: Any, spec: EnvSpec, device: torch.device | str) -> None:
        self.config, self.device = config, device
        key, array = next((key, array) for key, array in spec.obs.items() if array.is_image)

        def make_decoder() -> PlainDecoder:
            return PlainDecoder(key, array.shape)

        self.build = modules.builder(config, FEATURES, TOKENS, make_decoder, device=device)
        self.batch = tree.to(make_batch(spec), device)
        g = torch.Generator().manual_seed(5)
        self.features = torch.randn(B, T, FEATURES, generator=g).to(device)
        self.tokens = torch.randn(B, T, TOKENS, generator=g).to(device)
        self.objective: Any = None

    def call(self, objective: Any) -> dict[str, Tensor]:
        """Its losses, on inputs without gradient."""
        return objective(self.features, self.tokens, self.batch)


def check_objective(config: Any, *, device: torch.device | str = "cpu") -> Report:
    """Put ``config.build(feature_dim, token_size, make_decoder)`` to every promise of a representation objective."""
    return examine("objective", type(config).__name__, CHECKS, Subject(config, make_spec(pixels=8), device))


def build_works(s: Subject) -> str:
    s.objective = s.build(0)
    modules.is_module(s.objective, "objective")
    modules.has_members(s.objective, MEMBERS, "objective")
    if not isinstance(s.objective.decodes, bool):
        raise Broken(
            f"decodes is a {type(s.objective.decodes).__name__}, expected True or False: whether it trains the decoder"
        )
    if s.objective.decodes and not isinstance(getattr(s.objective, "decoder", None), nn.Module):
        raise Broken(
            "decodes is True, but there is no decoder to draw dreams with; keep what make_decoder() gives as "
            "self.decoder"
        )
    return "decodes" if s.objective.decodes else "does not decode"


def losses_have_scales(s: Subject) -> str:
    with modules.seeded(0):
        losses = s.call(s.objective)
    if not isinstance(losses, dict):
        raise Broken(f"the call returns a {type(losses).__name__}, expected {{name: Tensor (B, T)}}")
    if losses.keys() != dict(s.objective.scales).keys():
        raise Broken(
            f"the call returns {sorted(losses)}, but scales has {sorted(s.objective.scales)}; they must have the same "
            f"names"
        )
    for name, x in losses.items():
        if tuple(x.shape) != (B, T):
            raise Broken(
                f"{name!r} has shape {tuple(x.shape)}, expected (B, T) = {(B, T)}; one number for a whole batch is "
                f"expanded: x.expand(B, T)"
            )
    modules.is_finite(losses, "the call")
    modules.is_float32(losses, "the call")
    return modules.listed(losses)


def shapes_the_features(s: Subject) -> str:
    """A gradient reaches the features; whether one reaches the tokens is the objective's choice, and is told."""
    features, tokens = s.features.clone().requires_grad_(), s.tokens.clone().requires_grad_()
    with modules.seeded(0):
        losses = s.objective(features, tokens, s.batch)
    total = torch.stack([x.mean() for x in losses.values()]).sum()
    grads = torch.autograd.grad(total, [features, tokens], allow_unused=True)
    reached = [grad is not None and bool(grad.ne(0).any()) for grad in grads]
    if not reached[0]:
        raise Broken("no gradient reaches features, so it teaches the model nothing; do not detach them")
    return f"tokens get {'a' if reached[1] else 'no'} gradient"


def leaves_its_inputs(s: Subject) -> None:
    given = {"features": s.features, "tokens": s.tokens, "batch": s.batch}
    before = copied(given)
    with modules.seeded(0):
        s.call(s.objective)
    touched = changed(before, given)
    if touched:
        raise Broken(f"the call changes its input in place ({modules.listed(touched)}); return new tensors")


def gradients_arrive(s: Subject) -> str:
    objective = s.build(0)

    def total() -> Tensor:
        return torch.stack([x.mean() for x in s.call(objective).values()]).sum()

    return modules.gradients_arrive(objective, total, "the call")


def survives_bfloat16(s: Subject) -> None:
    with torch.autocast(torch.device(s.device).type, torch.bfloat16), modules.seeded(0), torch.no_grad():
        losses = s.call(s.objective)
    modules.is_finite(losses, "the call", under=" under bfloat16 autocast")
    modules.is_float32(losses, "the call", under=" under bfloat16 autocast")


CHECKS: tuple[Check[Subject], ...] = (
    Check("config is data", lambda s: modules.config_is_data(s.config)),
    Check("build gives an objective", build_works, is_needed=True),
    Check("losses are (B, T) and have scales", losses_have_scales, is_needed=True),
    Check("features get a gradient", shapes_the_features),
    Check("the call leaves its inputs", leaves_its_inputs),
    Check("gradients reach every parameter", gradients_arrive),
    Check("same seed, same result", lambda s: modules.repeats(lambda: s.call(s.objective), "the call")),
    Check("saves and loads", lambda s: modules.saves(s.build, s.call, "the call")),
    Check("bfloat16 is finite", survives_bfloat16),
    Check(
        "one graph without a break",
        lambda s: modules.traces(s.objective, s.features, s.tokens, s.batch, method="the call"),
    ),
)
