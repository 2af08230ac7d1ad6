"""What a world model promises (``worldmodel.protocols.WorldModel``), and its abilities."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.check import modules, recurrence
from worldmodel.check.recurrence import NEW, Bench
from worldmodel.check.report import Broken, Check, Report, Skip, examine
from worldmodel.check.samples import B, T, changed, copied, difference, make_spec, named
from worldmodel.check.still import Still
from worldmodel.protocols import Decodes, Forks, Remembers, Uncertain
from worldmodel.types import ArraySpec, Batch, EnvSpec

MEMBERS = {
    "feature_dim": "feature_dim, an int",
    "loss_scales": "loss_scales, a weight for each name that loss returns",
    "initial": "initial(batch_size) -> state",
    "observe": "observe(state, obs, prev_action, is_first) -> states",
    "step": "step(state, action) -> state",
    "predict": "predict(previous, action, state) -> Prediction",
    "features": "features(state) -> Tensor",
    "loss": "loss(batch, state) -> ({name: (B, T)}, states)",
}
ROUNDING = 0.02
"""How far a remembered state's features may be off, relative: bfloat16 keeps 8 bits."""


class Subject(Bench):
    """A world model in the making, and what the checks need of it."""

    def __init__(self, config: Any, spec: EnvSpec, device: torch.device | str) -> None:
        super().__init__(None, spec, device)  # type: ignore[arg-type]  # build_works puts it in
        self.config = config
        self.build = modules.builder(config, spec, device=device)
        self.model: Any = None

    def loss(self, model: Any, batch: Batch | None = None) -> tuple[dict[str, Tensor], Any]:
        """``loss`` of a batch from ``initial``."""
        batch = self.batch(firsts=((1, 4),)) if batch is None else batch
        return model.loss(batch, model.initial(batch.reward.shape[0]))

    def everything(self, model: Any) -> dict[str, Any]:
        """All that a model computes, as one tree."""
        batch, action = self.batch(firsts=((1, 4),)), self.action(B)
        states = model.observe(model.initial(B), batch.obs, batch.prev_action, batch.is_first)
        state = tree.index(states, (slice(None), -1))
        after = model.step(state, action)
        prediction = model.predict(state, action, after)
        losses, _ = model.loss(batch, model.initial(B))
        features = model.features(states)
        return {
            "observe": states, "step": after, "reward": prediction.reward, "continues": prediction.continues,
            "features": features, "loss": losses,
        }


def check_world_model(config: Any, *, spec: EnvSpec | None = None, device: torch.device | str = "cpu") -> Report:
    """Put ``config.build(spec)`` to every promise of a world model.

    Args: config: a frozen dataclass with ``build(spec) -> WorldModel``. spec: what the model shall observe and do;
        one image of 32 x 32 and three choices where it is not given.

    >>> from worldmodel.configs.sizes import dreamer
    >>> check_world_model(dreamer("nano").model).require().passed
    True
    """
    return examine("world model", type(config).__name__, CHECKS, Subject(config, spec or make_spec(), device))


def build_works(s: Subject) -> str:
    s.model = s.part = s.build(0)
    modules.is_module(s.model, "world model")
    modules.has_members(s.model, MEMBERS, "world model")
    if not isinstance(s.model.feature_dim, int):
        raise Broken(
            f"feature_dim is a {type(s.model.feature_dim).__name__}, expected an int: the F of features (..., F)"
        )
    if not isinstance(s.model.loss_scales, dict):
        raise Broken(
            f"loss_scales is a {type(s.model.loss_scales).__name__}, expected {{name: weight}} for what loss returns"
        )
    return f"{sum(p.numel() for p in s.model.parameters()):,} parameters"


def losses_have_scales(s: Subject) -> str:
    with modules.seeded(0):
        out = s.loss(s.model)
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], dict)):
        raise Broken(
            "loss must return two things, {name: Tensor (B, T)} and the posterior states; return losses, states"
        )
    losses, states = out
    if losses.keys() != s.model.loss_scales.keys():
        unscaled, unused = sorted(losses.keys() - s.model.loss_scales), sorted(s.model.loss_scales.keys() - losses)
        said = [f"loss returns {modules.listed(unscaled)} without a scale"] if unscaled else []
        said += [f"loss_scales has {modules.listed(unused)}, which loss does not return"] if unused else []
        raise Broken(f"{' and '.join(said)}; loss and loss_scales must have the same names")
    for name, x in losses.items():
        if tuple(x.shape) != (B, T):
            raise Broken(
                f"loss: {name!r} has shape {tuple(x.shape)}, expected (B, T) = {(B, T)}; sum over what is behind time "
                f"and "
                f"leave batch and time alone"
            )
    modules.is_finite(losses, "loss")
    modules.is_float32(losses, "loss")
    have, want = named(states), named(s.model.initial(B))
    if {name: tuple(x.shape) for name, x in have.items()} != {n: (B, T, *x.shape[1:]) for n, x in want.items()}:
        raise Broken(
            f"loss returns states {modules.listed(f'{n} {tuple(x.shape)}' for n, x in have.items())}, expected those "
            f"of "
            f"observe, (B, T, ...)"
        )
    if not any(x.requires_grad for x in have.values()):
        raise Broken("loss returns states without gradient; return them as they are, not detached: agents detach them")
    return modules.listed(losses)


def loss_leaves_its_batch(s: Subject) -> None:
    batch, state = s.batch(firsts=((0, 0), (1, 4))), s.state()
    given = {"batch": batch, "state": state}
    before = copied(given)
    with modules.seeded(0):
        s.model.loss(batch, state)
    touched = changed(before, given)
    if touched:
        raise Broken(f"loss changes its input in place ({modules.listed(touched)}); {NEW}")


def predicts_over_leading_axes(s: Subject) -> None:
    states, action = s.observe(s.batch()), s.action(B, T - 1)
    before, after = (tree.index(states, (slice(None), cut)) for cut in (slice(None, -1), slice(1, None)))
    with Still(), torch.no_grad():
        whole = s.model.predict(before, action, after)
        at = (slice(None), 2)
        one = s.model.predict(tree.index(before, at), action[:, 2], tree.index(after, at))
    for name in ("reward", "continues"):
        for x, lead in ((getattr(whole, name), (B, T - 1)), (getattr(one, name), (B,))):
            if tuple(x.shape) != lead:
                raise Broken(
                    f"predict: {name} has shape {tuple(x.shape)} for states {lead}, expected {lead}; no trailing 1, "
                    f"any axes in front"
                )
        gap = difference(getattr(one, name), getattr(whole, name)[:, 2])
        if gap:
            raise Broken(
                f"predict of one step is not that of the same step in a rollout ({name}: {gap}); let each stand alone"
            )
    modules.is_finite(whole, "predict")
    modules.is_float32(whole, "predict")
    low, high = float(whole.continues.min()), float(whole.continues.max())
    if low < 0 or high > 1.01:
        raise Broken(
            f"predict: continues lies between {low:.3g} and {high:.3g}, expected a probability in [0, 1]; put a "
            f"sigmoid behind the head"
        )


def gradients_arrive(s: Subject) -> str:
    model = s.build(0)

    def total() -> Tensor:
        return torch.stack([loss.mean() for loss in s.loss(model)[0].values()]).sum()

    return modules.gradients_arrive(model, total, "loss")


def decodes(s: Subject) -> str:
    if not isinstance(s.model, Decodes):
        raise Skip("no decode: no dream videos")
    states = s.observe(s.batch())
    with Still(), torch.no_grad():
        whole, one = s.model.decode(states), s.model.decode(tree.index(states, (slice(None), 2)))
    if not whole:
        raise Skip("decode returns nothing")
    for lead, pictures in (((B, T), whole), ((B,), one)):
        for key, x in pictures.items():
            array = s.spec.obs.get(key)
            if array is None or not array.is_image:
                raise Broken(
                    f"decode returns {key!r}, which is no image among the observations {sorted(s.spec.obs)}; leave it "
                    f"out"
                )
            if tuple(x.shape) != (*lead, *array.shape) or not x.is_floating_point():
                raise Broken(
                    f"decode: {key!r} is {tuple(x.shape)} {x.dtype} for states {lead}, expected floats "
                    f"{(*lead, *array.shape)}"
                )
            if not (float(x.min()) >= 0 and float(x.max()) <= 1):
                raise Broken(
                    f"decode: {key!r} lies between {float(x.min()):.3g} and {float(x.max()):.3g}, expected [0, 1]; "
                    f"clamp it, or use a sigmoid"
                )
    return modules.listed(whole)


def remembers(s: Subject) -> str:
    return remembering(s, s.model)


def remembering(bench: Bench, part: Any) -> str:
    """``pack`` and ``unpack`` are inverse, and ``memory_spec`` says what is stored. Cores promise the same."""
    if not isinstance(part, Remembers):
        raise Skip("no memory_spec, pack and unpack: sequences of replay begin from initial")
    if not part.memory_spec:
        raise Skip("memory_spec is empty: sequences of replay begin from initial")
    states = bench.observe(bench.batch())
    spec, packed = part.memory_spec, part.pack(states)
    have = {key: (tuple(x.shape), str(x.dtype).removeprefix("torch.")) for key, x in packed.items()}
    want = {key: ((B, T, *array.shape), array.dtype) for key, array in spec.items()}
    if have != want:
        raise Broken(f"pack returns {have}, but memory_spec asks for {want}; make memory_spec say what pack returns")
    with torch.no_grad():
        back = part.unpack(packed)
        if named(back).keys() != named(states).keys():
            raise Broken(
                f"unpack returns {modules.listed(named(back))}, expected the state's {modules.listed(named(states))}"
            )
        for name, x in named(states).items():
            y = named(back)[name]
            if y.shape != x.shape or y.dtype != x.dtype:
                raise Broken(
                    f"unpack: {name} is {tuple(y.shape)} {y.dtype}, expected {tuple(x.shape)} {x.dtype}; undo what "
                    f"pack did"
                )
        again = part.pack(back)
        lost = [key for key, x in packed.items() if not torch.equal(x, again[key])]
        if lost:
            raise Broken(
                f"pack(unpack(memory)) is another memory ({modules.listed(lost)}); unpack must undo pack exactly"
            )
        with Still():
            before, after = bench.part.features(states), bench.part.features(back)
    error = float((before - after).norm() / before.norm().clamp(min=1e-6))
    if not error <= ROUNDING:
        raise Broken(
            f"unpack(pack(state)) has other features, {error:.0%} off, where rounding explains {ROUNDING:.0%}; store "
            f"every field of the state"
        )
    return f"{sum(_bytes(array) for array in spec.values()):,} bytes a step"


def is_uncertain(s: Subject) -> str:
    if not isinstance(s.model, Uncertain):
        raise Skip("no disagreement: nothing that asks how sure it is can use it")
    with Still(), torch.no_grad():
        x = s.model.disagreement(s.state(), s.action(B))
    if tuple(x.shape) != (B,) or not x.is_floating_point():
        raise Broken(
            f"disagreement is {tuple(x.shape)} {x.dtype}, expected floats ({B},): one number for each state and action"
        )
    modules.is_finite(x, "disagreement")
    if float(x.min()) < 0:
        raise Broken(f"disagreement is negative ({float(x.min()):.3g}); return a spread, such as a standard deviation")
    return f"mean {float(x.mean()):.3g}"


def forks(s: Subject) -> None:
    model = s.model
    if not isinstance(model, Forks):
        raise Skip("no fork: candidates copy the state")
    n, state = 4, s.state()
    action = s.action(B, n)
    with Still(), torch.no_grad():
        shared = s.part.features(s.part.step(model.fork(state, n), action.flatten(0, 1)))
        own = [s.part.features(s.part.step(state, action[:, i])) for i in range(n)]
    gap = difference(torch.stack(own, 1).flatten(0, 1), shared)
    if gap:
        raise Broken(
            f"fork(state, {n}) followed by step departs from stepping copies of the state ({gap}); row b's candidate i "
            f"is row b * {n} + i"
        )


def survives_bfloat16(s: Subject) -> None:
    with torch.autocast(torch.device(s.device).type, torch.bfloat16), modules.seeded(0), torch.no_grad():
        out = s.everything(s.model)
    modules.is_finite(out, "the model", under=" under bfloat16 autocast")
    kept = {name: out[name] for name in ("loss", "reward", "continues")}
    modules.is_float32(kept, "loss and predict", under=" under bfloat16 autocast")


def is_traced(s: Subject) -> None:
    batch, action, state = s.batch(firsts=((1, 1),), time=3), s.action(B), s.state()
    model, start = s.model, s.model.initial(B)
    modules.traces(model.observe, start, batch.obs, batch.prev_action, batch.is_first, method="observe")
    modules.traces(model.step, state, action, method="step")
    modules.traces(lambda a, b, c: named_prediction(model.predict(a, b, c)), state, action, state, method="predict")
    modules.traces(model.features, state, method="features")
    modules.traces(model.loss, batch, start, method="loss")


def named_prediction(prediction: Any) -> dict[str, Tensor]:
    """A prediction as a dict, which every tracer knows."""
    return {"reward": prediction.reward, "continues": prediction.continues}


def speed(s: Subject) -> str:
    """Calls per second of acting and of imagining, sixteen rows each."""
    rows = 16
    batch, start, action = s.batch(rows=rows, time=1), s.model.initial(rows), s.action(rows)
    state = s.state(rows=rows)
    with torch.no_grad():
        act = rate(lambda: s.model.observe(start, batch.obs, batch.prev_action, batch.is_first), s.device)
        imagine = rate(lambda: s.model.step(state, action), s.device)
    return f"{rows} rows: observe {act:,.0f}, step {imagine:,.0f} per second"


def rate(call: Callable[[], Any], device: torch.device | str, seconds: float = 0.1) -> float:
    """Calls per second, measured for a moment after one call to warm up."""
    call()
    _wait(device)
    began, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < seconds:
        call()
        calls += 1
        if calls == 200:
            break
    _wait(device)
    return calls / (time.perf_counter() - began)


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _bytes(array: ArraySpec) -> int:
    return torch.empty(array.shape, dtype=getattr(torch, array.dtype)).nbytes


CHECKS: tuple[Check[Subject], ...] = (
    Check("config is data", lambda s: modules.config_is_data(s.config)),
    Check("build gives a world model", build_works, is_needed=True),
    Check("initial is a tree of tensors", recurrence.initial_is_a_tree, is_needed=True),
    Check("observe and step keep shapes", recurrence.observe_keeps_shapes, is_needed=True),
    Check("features have feature_dim", lambda s: recurrence.features_have_their_width(s, s.model.feature_dim)),
    Check("predict over any leading axes", predicts_over_leading_axes),
    Check("losses are (B, T) and have scales", losses_have_scales),
    Check("T = 1 equals a slice of T = 8", recurrence.time_is_one_by_one),
    Check("reset forgets the past", recurrence.reset_forgets),
    Check("rows are independent", recurrence.rows_are_independent),
    Check("observe and step leave their inputs", recurrence.inputs_stay),
    Check("loss leaves its inputs", loss_leaves_its_batch),
    Check("gradients reach every parameter", gradients_arrive),
    Check("same seed, same result", lambda s: modules.repeats(lambda: s.everything(s.model), "the model")),
    Check("saves and loads", lambda s: modules.saves(s.build, s.everything, "the model")),
    Check("decodes", decodes),
    Check("remembers", remembers),
    Check("is uncertain", is_uncertain),
    Check("forks", forks),
    Check("bfloat16 is finite", survives_bfloat16),
    Check("one graph without a break", is_traced),
    Check("speed", speed),
)
