"""Promises that everything recurrent keeps, world models and cores alike: time, resets, rows, inputs left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.check.modules import listed
from worldmodel.check.report import Broken
from worldmodel.check.samples import B, T, at_time, changed, copied, difference, make_action, make_batch, named
from worldmodel.check.still import Still
from worldmodel.types import Batch, EnvSpec

NEW = "return new tensors, for instance h = h + x instead of h += x"


class Recurrent(Protocol):
    """What a world model and a core have in common."""

    def initial(self, batch_size: int) -> Any: ...
    def observe(self, state: Any, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor) -> Any: ...
    def step(self, state: Any, action: Tensor) -> Any: ...
    def features(self, state: Any) -> Tensor: ...


class Bench:
    """A recurrent part and the data it is put to."""

    def __init__(self, part: Recurrent, spec: EnvSpec, device: torch.device | str) -> None:
        self.part, self.spec, self.device = part, spec, device

    def batch(self, *, seed: int = 0, firsts: tuple[tuple[int, int], ...] = (), rows: int = B, time: int = T) -> Batch:
        """A sample on the device."""
        return tree.to(make_batch(self.spec, rows, time, seed=seed, firsts=firsts), self.device)

    def action(self, *lead: int, seed: int = 0) -> Tensor:
        """Random actions on the device."""
        return make_action(self.spec.action, lead, seed=seed).to(self.device)

    def observe(self, batch: Batch, state: Any = None) -> Any:
        """States (B, T, ...) of a batch, without gradient, with noise held still."""
        state = self.part.initial(batch.reward.shape[0]) if state is None else state
        with Still(), torch.no_grad():
            return self.part.observe(state, batch.obs, batch.prev_action, batch.is_first)

    def state(self, *, seed: int = 7, rows: int = B) -> Any:
        """A state (B, ...) that has seen something."""
        return tree.index(self.observe(self.batch(seed=seed, rows=rows)), (slice(None), -1))


def initial_is_a_tree(bench: Bench) -> str:
    """``initial`` gives a tree of tensors with the batch in front."""
    for rows in (1, B):
        leaves = named(bench.part.initial(rows))
        if not leaves:
            raise Broken("initial returns nothing; return a tree.struct with one tensor (batch, ...) or more")
        for name, x in leaves.items():
            if not isinstance(x, Tensor):
                raise Broken(
                    f"initial: {name} is a {type(x).__name__}; make the state a dataclass under "
                    f"@worldmodel.tree.struct whose "
                    f"fields are tensors"
                )
            if x.shape[:1] != (rows,):
                raise Broken(f"initial({rows}): {name} has shape {tuple(x.shape)}, expected ({rows}, ...): batch first")
            if x.device.type != torch.device(bench.device).type:
                raise Broken(
                    f"initial: {name} is on {x.device}; make it with new_zeros of a parameter, on {bench.device}"
                )
    return listed(f"{name} {tuple(x.shape[1:])}" for name, x in leaves.items())


def observe_keeps_shapes(bench: Bench) -> None:
    """``observe`` returns the state's fields with (B, T) in front; ``step`` with (B,)."""
    start = bench.part.initial(B)
    _is_like(bench.observe(bench.batch()), start, (B, T), "observe")
    with Still(), torch.no_grad():
        _is_like(bench.part.step(bench.state(), bench.action(B)), start, (B,), "step")
        flat = tree.flatten_time(bench.observe(bench.batch()))
        _is_like(bench.part.step(flat, bench.action(B * T)), start, (B * T,), "step, from every state of a sequence,")


def features_have_their_width(bench: Bench, feature_dim: int) -> str:
    """``features`` is (..., F) over any leading axes."""
    states = bench.observe(bench.batch())
    with Still(), torch.no_grad():
        whole = bench.part.features(states)
        one = bench.part.features(tree.index(states, (slice(None), 2)))
    for x, lead in ((whole, (B, T)), (one, (B,))):
        if tuple(x.shape) != (*lead, feature_dim):
            raise Broken(
                f"features returns {tuple(x.shape)} for states {lead}, but feature_dim is {feature_dim}: expected "
                f"{(*lead, feature_dim)}; set feature_dim to what features returns"
            )
    gap = difference(one, whole[:, 2])
    if gap:
        raise Broken(
            f"features of one step is not that of the same step in a sequence: {gap}; work on the last axis alone"
        )
    return f"F = {feature_dim}"


def inputs_stay(bench: Bench) -> None:
    """Neither ``observe`` nor ``step`` writes into what it is given."""
    batch = bench.batch(firsts=((0, 0), (1, 3)))
    given = {"state": bench.state(), "action": bench.action(B)}
    before = copied(given)
    with torch.no_grad():
        bench.part.step(given["state"], given["action"])
    touched = changed(before, given)
    if touched:
        raise Broken(f"step changes its input in place ({listed(touched)}); {NEW}")
    given = {"state": bench.state(), "obs": batch.obs, "prev_action": batch.prev_action, "is_first": batch.is_first}
    before = copied(given)
    with torch.no_grad():
        bench.part.observe(*given.values())
    touched = changed(before, given)
    if touched:
        raise Broken(f"observe changes its input in place ({listed(touched)}); {NEW}")


def time_is_one_by_one(bench: Bench) -> None:
    """T calls with T = 1 give what one call with T gives: acting is what was trained."""
    batch = bench.batch(firsts=((0, 0), (1, 3)))
    whole = bench.observe(batch)
    state = bench.part.initial(B)
    for t in range(T):
        states = bench.observe(at_time(batch, t, t + 1), state)
        state = tree.index(states, (slice(None), 0))
        gap = difference(tree.index(whole, (slice(None), t)), state)
        if gap:
            raise Broken(
                f"observe with T = 1, call after call, departs from one call with T = {T} at step {t} ({gap}); the "
                f"state must "
                f"carry all that the next step needs, and no step may see later ones"
            )


def reset_forgets(bench: Bench) -> None:
    """Where ``is_first``, nothing before matters, at the first step, in the middle and at the last."""
    for at in (0, T // 2, T - 1):
        one = bench.batch(seed=10, firsts=((0, at), (2, at)))
        other = _with_another_past(bench, one, at)
        after = slice(at, None)
        seen = tree.index(bench.observe(one, bench.state(seed=11)), ([0, 2], after))
        again = tree.index(bench.observe(other, bench.state(seed=12)), ([0, 2], after))
        gap = difference(seen, again)
        if gap:
            raise Broken(
                f"observe does not forget where is_first is set: with another state, observation or action before step "
                f"{at} "
                f"the states from there on change ({gap}); there, put initial's state and an action of 0 before the "
                f"recurrence"
            )
        anew = at_time(one, at, T)
        fresh = tree.index(bench.observe(replace(anew, is_first=torch.zeros_like(anew.is_first))), [0, 2])
        gap = difference(fresh, seen)
        if gap:
            raise Broken(
                f"observe begins an episode at step {at} of a sequence otherwise than from initial ({gap}); where "
                f"is_first, "
                f"put the state of initial, not zeros or a state of its own"
            )


def rows_are_independent(bench: Bench) -> None:
    """What happens in one row is no other row's business."""
    batch, other = bench.batch(firsts=((1, 3),)), bench.batch(seed=20, firsts=((0, 2), (1, 3)))
    mixed = _rows(other, batch, 0)
    others = (slice(1, None),)
    gap = difference(
        tree.index(bench.observe(batch, bench.state()), others),
        tree.index(bench.observe(mixed, _rows(bench.state(seed=21), bench.state(), 0)), others),
    )
    if gap:
        raise Broken(
            f"observe lets one row of the batch change another ({gap}); use no batch statistics (BatchNorm) and no "
            f"reshape "
            f"that mixes B with T"
        )
    with Still(), torch.no_grad():
        alone = bench.part.step(bench.state(), bench.action(B))
        beside = bench.part.step(_rows(bench.state(seed=21), bench.state(), 0), bench.action(B))
    gap = difference(tree.index(alone, others), tree.index(beside, others))
    if gap:
        raise Broken(f"step lets one row of the batch change another ({gap}); use no batch statistics (BatchNorm)")


def _is_like(state: Any, start: Any, lead: tuple[int, ...], method: str) -> None:
    have, want = named(state), named(start)
    if have.keys() != want.keys() or type(state) is not type(start):
        raise Broken(
            f"{method} returns a {type(state).__name__} with {listed(have)}, but initial a {type(start).__name__} with "
            f"{listed(want)}; return the same struct"
        )
    for name, x in want.items():
        shape = (*lead, *x.shape[1:])
        if tuple(have[name].shape) != shape or have[name].dtype != x.dtype:
            raise Broken(
                f"{method}: {name} is {tuple(have[name].shape)} {have[name].dtype}, expected {shape} {x.dtype} as "
                f"initial has it; "
                f"keep batch (and time) in front, and the type"
            )


def _with_another_past(bench: Bench, batch: Batch, at: int) -> Batch:
    """Other observations before step ``at``, other previous actions up to and including it."""
    other = bench.batch(seed=30, firsts=((0, at), (2, at)))
    obs = {key: torch.cat([other.obs[key][:, :at], x[:, at:]], 1) for key, x in batch.obs.items()}
    # pools give 0 where an episode begins; a model that forgets does not read it
    past = bench.action(B, at + 1, seed=31)
    prev_action = torch.cat([past, batch.prev_action[:, at + 1 :]], 1)
    return replace(batch, obs=obs, prev_action=prev_action)


def _rows(a: Any, b: Any, row: int) -> Any:
    """``b`` with one row of ``a``."""
    return tree.map(lambda x, y: torch.cat([y[:row], x[row : row + 1], y[row + 1 :]]), a, b)
