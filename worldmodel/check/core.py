"""What a latent core promises (``worldmodel.models.cores.base.Core``): dynamics from tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.check import modules, recurrence
from worldmodel.check.recurrence import Bench
from worldmodel.check.report import Broken, Check, Report, examine
from worldmodel.check.samples import B, T
from worldmodel.check.still import Still
from worldmodel.check.world_model import rate, remembering
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec

TOKEN = "token"
SPEC = EnvSpec(
    name="check", obs={TOKEN: ArraySpec(shape=(7,), dtype="float32")}, action=ActionSpec(kind="continuous", size=3)
)
MEMBERS = {
    "feature_dim": "feature_dim, an int", "deter_size": "deter_size, an int", "stoch_size": "stoch_size, an int",
    "config": "config, which has unimix",
    "initial": "initial(batch_size) -> state",
    "observe": "observe(state, tokens, prev_action, is_first) -> CoreOutput(states, posterior, prior)",
    "step": "step(state, action) -> state",
    "features": "features(state) -> Tensor",
    "memory_spec": "memory_spec, what pack returns", "pack": "pack(state) -> {name: Tensor}",
    "unpack": "unpack(memory) -> state",
}


class Seen:
    """A core as a recurrent part: its tokens are the one observation."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.initial, self.step, self.features = core.initial, core.step, core.features

    def observe(self, state: Any, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> Any:
        """The posterior states (B, T, ...)."""
        return self.core.observe(state, obs[TOKEN], prev_action, is_first).states


class Subject(Bench):
    """A core in the making."""

    def __init__(self, config: Any, device: torch.device | str) -> None:
        super().__init__(None, SPEC, device)  # type: ignore[arg-type]  # build_works puts it in
        self.config = config
        self.build = modules.builder(config, SPEC.action.size, SPEC.obs[TOKEN].shape[0], device=device)
        self.core: Any = None

    def filtered(self, core: Any) -> Any:
        """CoreOutput of a batch, from ``initial``."""
        batch = self.batch(firsts=((1, 4),))
        return core.observe(core.initial(B), batch.obs[TOKEN], batch.prev_action, batch.is_first)

    def everything(self, core: Any) -> dict[str, Any]:
        """All that a core computes, as one tree."""
        out = self.filtered(core)
        after = core.step(tree.index(out.states, (slice(None), -1)), self.action(B))
        return {
            "posterior": out.posterior, "prior": out.prior, "observe": out.states, "step": after,
            "features": core.features(out.states),
        }


def check_core(config: Any, *, device: torch.device | str = "cpu") -> Report:
    """Put ``config.build(action_size, token_size)`` to every promise of a latent core."""
    return examine("core", type(config).__name__, CHECKS, Subject(config, device))


def build_works(s: Subject) -> str:
    s.core = s.build(0)
    modules.is_module(s.core, "core")
    modules.has_members(s.core, MEMBERS, "core")
    s.part = Seen(s.core)
    sizes = s.core.feature_dim, s.core.deter_size, s.core.stoch_size
    if sizes[0] != sizes[1] + sizes[2]:
        raise Broken(
            f"feature_dim is {sizes[0]}, expected deter_size + stoch_size = {sizes[1] + sizes[2]}: features is both, "
            f"deter first"
        )
    if not hasattr(s.core.config, "unimix"):
        raise Broken("config has no unimix; the KL mixes that share of uniform in, so give 0.0 where there is none")
    return f"{sum(p.numel() for p in s.core.parameters()):,} parameters"


def logits_have_groups(s: Subject) -> str:
    with Still(), torch.no_grad():
        out = s.filtered(s.core)
    shape = tuple(out.posterior.shape)
    if len(shape) != 4 or shape[:2] != (B, T) or tuple(out.prior.shape) != shape:
        raise Broken(
            f"observe: posterior is {shape} and prior {tuple(out.prior.shape)}, expected logits (B, T, Z, K) = ({B}, "
            f"{T}, Z, K) both"
        )
    logits = {"posterior": out.posterior, "prior": out.prior}
    modules.is_finite(logits, "observe")
    modules.is_float32(logits, "observe")
    return f"Z = {shape[2]}, K = {shape[3]}"


def gradients_arrive(s: Subject) -> str:
    core = s.build(0)

    def total() -> Tensor:
        out = s.filtered(core)
        parts = [core.features(out.states), out.posterior, out.prior]
        return torch.stack([(x * torch.randn_like(x)).sum() for x in parts]).sum()

    return modules.gradients_arrive(core, total, "observe")


def survives_bfloat16(s: Subject) -> None:
    with torch.autocast(torch.device(s.device).type, torch.bfloat16), modules.seeded(0), torch.no_grad():
        out = s.everything(s.core)
    modules.is_finite(out, "the core", under=" under bfloat16 autocast")
    logits = {name: out[name] for name in ("posterior", "prior")}
    modules.is_float32(logits, "observe", under=" under bfloat16 autocast")


def is_traced(s: Subject) -> None:
    batch, state, core = s.batch(firsts=((1, 1),), time=3), s.state(), s.core
    modules.traces(s.part.observe, core.initial(B), batch.obs, batch.prev_action, batch.is_first, method="observe")
    modules.traces(core.step, state, s.action(B), method="step")
    modules.traces(core.features, state, method="features")


def speed(s: Subject) -> str:
    rows = 16
    batch, start, action, state = s.batch(rows=rows, time=1), s.core.initial(rows), s.action(rows), s.state(rows=rows)
    with torch.no_grad():
        act = rate(lambda: s.part.observe(start, batch.obs, batch.prev_action, batch.is_first), s.device)
        imagine = rate(lambda: s.core.step(state, action), s.device)
    return f"{rows} rows: observe {act:,.0f}, step {imagine:,.0f} per second"


CHECKS: tuple[Check[Subject], ...] = (
    Check("config is data", lambda s: modules.config_is_data(s.config)),
    Check("build gives a core", build_works, is_needed=True),
    Check("initial is a tree of tensors", recurrence.initial_is_a_tree, is_needed=True),
    Check("observe and step keep shapes", recurrence.observe_keeps_shapes, is_needed=True),
    Check("posterior and prior are logits of groups", logits_have_groups),
    Check("features have feature_dim", lambda s: recurrence.features_have_their_width(s, s.core.feature_dim)),
    Check("T = 1 equals a slice of T = 8", recurrence.time_is_one_by_one),
    Check("reset forgets the past", recurrence.reset_forgets),
    Check("rows are independent", recurrence.rows_are_independent),
    Check("observe and step leave their inputs", recurrence.inputs_stay),
    Check("gradients reach every parameter", gradients_arrive),
    Check("same seed, same result", lambda s: modules.repeats(lambda: s.everything(s.core), "the core")),
    Check("saves and loads", lambda s: modules.saves(s.build, s.everything, "the core")),
    Check("remembers", lambda s: remembering(s, s.core)),
    Check("bfloat16 is finite", survives_bfloat16),
    Check("one graph without a break", is_traced),
    Check("speed", speed),
)
