"""The Transformer core: both forms agree, resets, windows, positions, gradients, dropout, sizes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.check.core import check_core
from worldmodel.check.still import Still
from worldmodel.configs.sizes import dreamer
from worldmodel.configs.storm import PUBLISHED
from worldmodel.models.cores.transformer import TransformerConfig
from worldmodel.nn.attention import turned, turns
from worldmodel.nn.optim import without_gradient
from worldmodel.planning.objectives import ExpectedReturn
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.protocols import Forks
from worldmodel.rng import Stream
from worldmodel.rollout import imagine
from worldmodel.types import ActionSpec, ArraySpec, EnvSpec

SMALL = {"width": 16, "layers": 2, "heads": 2, "ffn": 24, "window": 4, "stoch": 3, "classes": 4}
ALL = slice(None)


def small(**changes):
    torch.manual_seed(0)
    core = TransformerConfig(**(SMALL | changes)).build(2, 5)
    with torch.no_grad():
        for p in core.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return core


def sequence(batch, time, firsts=(), seed=1):
    g = torch.Generator().manual_seed(seed)
    is_first = torch.zeros(batch, time, dtype=torch.bool)
    for row, t in firsts:
        is_first[row, t] = True
    return torch.randn(batch, time, 5, generator=g), torch.randn(batch, time, 2, generator=g), is_first


def one_by_one(core, state, tokens, action, is_first):
    outs = []
    for t in range(is_first.shape[1]):
        at = slice(t, t + 1)
        out = core.observe(state, tokens[:, at], action[:, at], is_first[:, at])
        state = tree.index(out.states, (ALL, 0))
        outs.append(out)
    return tree.cat(outs, 1)


def some_past(core, rows):
    """A state that has seen three steps."""
    with Still(), torch.no_grad():
        return tree.index(core.observe(core.initial(rows), *sequence(rows, 3, seed=9)).states, (ALL, -1))


@pytest.mark.parametrize(
    "changes",
    [{"positions": "learned"}, {"posterior": "recurrent"}, {"positions": "learned", "norm": "post", "window": 7}],
)
def test_in_parallel_equals_step_by_step_in_every_variant(changes):
    core = small(**changes)
    start, batch = some_past(core, 2), sequence(2, 4, ((1, 2),))
    with Still(), torch.no_grad():
        whole, steps = core.observe(start, *batch), one_by_one(core, start, *batch)
    tree.map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5), whole, steps)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_gradients_are_those_of_the_steps_and_reach_the_first_window(positions):
    core = small(positions=positions, window=9)
    batch = sequence(2, 9, ((1, 6),))

    def gradients(filtered):
        start = tree.map(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x, some_past(core, 2))
        with Still():
            out = filtered(start)
            # a dream from the last state reads its window
            dream = core.step(tree.index(out.states, (ALL, -1)), batch[1][:, 0])
        total = sum((x * torch.cos(torch.arange(x.numel()).view(x.shape))).sum() for x in (
            core.features(out.states), out.prior, out.posterior, dream.deter, *out.states.keys, *out.states.values
        ))
        inputs = [*core.parameters(), start.stoch, *start.keys, *start.values]
        return torch.autograd.grad(total, inputs)

    whole = gradients(lambda start: core.observe(start, *batch))
    steps = gradients(lambda start: one_by_one(core, start, *batch))
    for a, b in zip(whole, steps):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert a.abs().sum() > 0


def slow_deter(core, x, episodes):
    """The definition, for one row and rotary positions: query by query, key by key."""
    c, size = core.config, core.config.width // core.config.heads
    time = x.shape[0]
    frequency = 10_000.0 ** (-torch.arange(0, size, 2).double() / size)

    def turn(v, angle):
        z = torch.complex(v[: size // 2].double(), v[size // 2 :].double()) * torch.exp(1j * angle * frequency)
        return torch.cat([z.real, z.imag]).float()

    def norm(layer, y):
        return (y - y.mean()) / (y.var(correction=0) + 1e-6).sqrt() * layer.weight + layer.bias

    for block in core.blocks:
        inputs = [x[t] if block.is_post else norm(block.attention_norm, x[t]) for t in range(time)]
        q, k, v = ([block.attention.qkv.weight.chunk(3)[i] @ y for y in inputs] for i in range(3))
        rows = []
        for t in range(time):
            sees = [j for j in range(t + 1) if t - j < c.window and episodes[j] == episodes[t]]
            heads = []
            for h in range(c.heads):
                part = slice(h * size, (h + 1) * size)
                # only how far apart they are matters
                scores = torch.stack([turn(q[t][part], t - j) @ k[j][part] for j in sees]) / math.sqrt(size)
                heads.append(sum(w * v[j][part] for w, j in zip(torch.softmax(scores, 0), sees)))
            y = x[t] + block.attention.out.weight @ torch.cat(heads)
            y = norm(block.attention_norm, y) if block.is_post else y
            first, _, second = block.feed
            z = y if block.is_post else norm(block.feed_norm, y)
            y = y + second.weight @ torch.relu(first.weight @ z + first.bias) + second.bias
            rows.append(norm(block.feed_norm, y) if block.is_post else y)
        x = torch.stack(rows)
    return torch.stack([core.leave(y) for y in x])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_blocks_are_those_of_the_definition(norm):
    core = small(norm=norm, window=3)
    tokens, action, is_first = sequence(1, 6, ((0, 4),))
    with Still(), torch.no_grad():
        out = core.observe(core.initial(1), tokens, action, is_first)
        before = torch.cat([torch.zeros(1, 1, 3, 4), out.states.stoch[:, :-1]], 1)
        x = core.enter(core._embed(before, action, is_first))
        expected = slow_deter(core, x[0], [0, 0, 0, 0, 1, 1])
    torch.testing.assert_close(out.states.deter[0], expected, rtol=1e-5, atol=1e-5)


def test_rotary_positions_by_hand():
    # two pairs: frequencies 1 and 1/100
    table = turns(3, 4, torch.device("cpu"))
    torch.testing.assert_close(table[2], torch.tensor(
        [[math.cos(2), math.cos(0.02)], [math.sin(2), math.sin(0.02)]]
    ))
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    got = turned(x, table[2:])
    torch.testing.assert_close(got.flatten(), torch.tensor([math.cos(2), -math.sin(0.02), math.sin(2), math.cos(0.02)]))


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_layer_sees_the_window_and_nothing_before(positions):
    core = small(layers=1, window=4, positions=positions)
    start = core.initial(1)

    def last(state, steps):
        with Still(), torch.no_grad():
            for token, action in steps:
                out = core.observe(state, token.view(1, 1, 5), action.view(1, 1, 2), torch.tensor([[False]]))
                state = tree.index(out.states, (ALL, 0))
        return state

    tokens, actions, _ = sequence(1, 12)
    for count in (4, 5, 7):
        base = last(start, list(zip(tokens[0, :count], actions[0, :count])))
        # where learned positions have run out, the window begins anew
        expected = min(count, 4) if positions == "rotary" else (count - 1) % 4 + 1
        assert base.seen.tolist() == [expected]
        for changed in range(count):
            other = actions.clone()
            other[0, changed] += 0.5
            moved = last(start, list(zip(tokens[0, :count], other[0, :count])))
            is_seen = not torch.equal(moved.deter, base.deter)
            assert is_seen == (count - changed <= expected), (count, changed)


def test_learned_positions_begin_again_as_a_sequence_begins():
    core = small(positions="learned", window=3)
    tokens, action, is_first = sequence(2, 6)
    with Still(), torch.no_grad():
        first = core.observe(core.initial(2), tokens[:, :3], action[:, :3], is_first[:, :3]).states
        full = tree.index(first, (ALL, -1))
        on = core.observe(full, tokens[:, 3:], action[:, 3:], is_first[:, 3:])
        fresh = dataclasses.replace(core.initial(2), stoch=full.stoch)
        anew = core.observe(fresh, tokens[:, 3:], action[:, 3:], is_first[:, 3:])
    tree.map(lambda a, b: torch.testing.assert_close(a, b), on, anew)


def test_dreams_begin_at_every_step_and_need_no_window_when_read():
    core = small()
    tokens, action, is_first = sequence(2, 7, ((1, 3),))
    with Still(), torch.no_grad():
        states = core.observe(core.initial(2), tokens, action, is_first).states
        dreamt = core.step(tree.flatten_time(states), action.flatten(0, 1))
        for t in range(7):
            alone = core.step(tree.index(states, (ALL, t)), action[:, t])
            tree.map(
                lambda a, b, t=t: torch.testing.assert_close(a.unflatten(0, (2, 7))[:, t], b, rtol=1e-5, atol=1e-5),
                dreamt, alone,
            )
    bare = core.trim(dreamt)
    assert bare.keys == bare.values == ()
    assert torch.equal(core.features(bare), core.features(dreamt))


def test_what_a_dream_makes_of_actions_is_what_filtering_makes_of_them():
    core = small()
    tokens, action, is_first = sequence(1, 6)
    with Still(), torch.no_grad():
        states = core.observe(core.initial(1), tokens, action, is_first).states
        # deter comes before the observation: a step with the same action gives the same
        dreamt = core.step(tree.index(states, (ALL, 4)), action[:, 5])
    torch.testing.assert_close(dreamt.deter, states.deter[:, 5], rtol=1e-5, atol=1e-5)


def test_dropout_is_drawn_from_the_stream_in_training_and_off_otherwise():
    core = small(dropout=0.5)
    batch, start = sequence(2, 5), core.initial(2)

    def run(seed):
        torch.manual_seed(seed)
        _, action, is_first = batch
        with torch.no_grad():
            deter = core._scan(start, core._embed(torch.ones(2, 5, 3, 4), action, is_first), is_first).deter
        return deter

    core.train()
    assert torch.equal(run(1), run(1)) and not torch.allclose(run(1), run(2))
    core.eval()
    assert torch.equal(run(1), run(2))


@pytest.mark.parametrize(
    "changes", [{"posterior": "recurrent"}, {"positions": "learned", "norm": "post", "window": 8, "dropout": 0.1}]
)
def test_passes_its_conformance_test(changes):
    check_core(TransformerConfig(**(SMALL | changes))).require()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 3}, "width must be a multiple of heads=3, got 16"),
        ({"width": 6, "heads": 2}, "width / heads must be even, got 6 / 2"),
        ({"window": 1}, "window must be at least 2 inputs, got 1"),
        ({"layers": 0}, "at least 1 layer, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_sizes_are_told_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        TransformerConfig(**(SMALL | changes))


def test_a_sequence_longer_than_the_learned_positions_is_refused():
    core = small(positions="learned", window=4)
    with pytest.raises(ValueError, match="a sequence of 5 steps is longer than the 4 learned positions"):
        core.observe(core.initial(1), *sequence(1, 5))


def test_storms_transformer_has_the_published_size():
    core = PUBLISHED.model.core.build(18, 4096)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in core.named_children()}
    heads = sizes.pop("prior_head") + sizes.pop("posterior_head")
    assert heads == 4_720_640
    # the source's modules, added up by hand: stem, positions, norm, two blocks
    stem = (1024 + 18) * 512 + 2 * 512 + 512 * 512 + 2 * 512
    block = 4 * 512 * 512 + 2 * 512 + 512 * 1024 + 1024 + 1024 * 512 + 512 + 2 * 512
    assert sum(sizes.values()) + core.positions.numel() == stem + 64 * 512 + 2 * 512 + 2 * block == 5_032_960


def test_the_world_model_of_storm_has_its_published_size():
    obs = {"image": ArraySpec(shape=(64, 64, 3), dtype="uint8")}
    with torch.device("meta"):
        model = PUBLISHED.model.build(EnvSpec(name="x", obs=obs, action=ActionSpec(kind="discrete", size=18)))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts == {
        "encoder": 690_624, "core": 5_032_960 + 4_720_640, "objective": 4_884_931, "reward": 657_151,
        "continues": 526_849,
    }
    assert round(sum(parts.values()) / 1e6, 2) == 16.51


def test_dropout_and_batch_statistics_are_for_learning_alone():
    spec = make_spec()
    core = TransformerConfig(**(SMALL | {"window": 8, "dropout": 0.1}))
    model = dataclasses.replace(PUBLISHED.model, core=core).build(spec)
    batch = make_batch(spec, 2, 5)
    losses = [model.loss(batch, model.initial(2))[0]["reconstruction"] for _ in range(2)]
    assert not torch.allclose(*losses) and not model.training
    with Still(), torch.no_grad():
        one, two = (
            model.observe(model.initial(2), batch.obs, batch.prev_action, batch.is_first).deter for _ in range(2)
        )
    assert torch.equal(one, two)


def test_an_update_with_dropout_is_repeated_bit_for_bit_after_a_resume():
    core = TransformerConfig(**(SMALL | {"window": 8, "dropout": 0.3}))
    one, two = (make_agent(seed=seed, model={"core": core}) for seed in (0, 1))
    one.learn(make_batch(one.spec, 2, 6))
    two.load_state_dict({name: x.clone() for name, x in one.state_dict().items()})
    batch = make_batch(one.spec, 2, 6, seed=1)
    for agent in (one, two):
        agent.learn(batch)
    for name, x in one.state_dict().items():
        assert torch.equal(x, two.state_dict()[name]), name


# Candidates that share a window

FORMS = [
    {"window": 6}, {"window": 6, "norm": "post", "positions": "learned"}, {"window": 2}, {"window": 20, "layers": 1},
    {"window": 6, "actions": "prior"},
]


def stepped(core, state, actions):
    """Features after each step (rows, T, F), and the last state."""
    seen = []
    with Still():
        for t in range(actions.shape[1]):
            state = core.step(state, actions[:, t])
            seen.append(core.features(state))
    return torch.stack(seen, 1), state


def repeated(state, n):
    return tree.map(lambda x: x.repeat_interleave(n, 0), state)


@pytest.mark.parametrize("changes", FORMS)
def test_a_fork_steps_as_copies_of_the_state_do(changes):
    core, n = small(**changes), 3
    actions = torch.randn(2 * n, 9, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        start = some_past(core, 2)
        forked, after = stepped(core, core.fork(start, n), actions)
        copied, _ = stepped(core, repeated(start, n), actions)
        torch.testing.assert_close(forked, copied, rtol=1e-5, atol=1e-5)
        assert (len(after.shared) == 0) == (core.config.window <= 10), "what is out of sight is let go"
        # candidates of candidates: rows 2 (3 i) + j
        again = torch.randn(2 * n * 2, 4, 2, generator=torch.Generator().manual_seed(4))
        _, middle = stepped(core, core.fork(start, n), actions[:, :2])
        _, plain = stepped(core, repeated(start, n), actions[:, :2])
        deeper, _ = stepped(core, core.fork(middle, 2), again)
        torch.testing.assert_close(deeper, stepped(core, repeated(plain, 2), again)[0], rtol=1e-5, atol=1e-5)
        # filtering may go on from it as well
        tokens, action, is_first = sequence(2 * n, 3, ((1, 1),))
        with Still():
            seen, expected = (core.observe(state, tokens, action, is_first) for state in (middle, plain))
        torch.testing.assert_close(seen.states.deter, expected.states.deter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"window": 6}, {"window": 12}, {"window": 6, "actions": "prior"}])
def test_a_fork_is_rounded_as_copies_are_in_bfloat16(changes):
    """Keys lie in float32 as they were computed, turned or not: a fork that outlives its window goes on as a copy."""
    core, n, rows = small(**changes), 2, 2
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        start = some_past(core, rows)
        actions = torch.randn(n * rows, 9, 2, generator=torch.Generator().manual_seed(3))
        _, forked = stepped(core, core.fork(start, n), actions)
        _, copied = stepped(core, repeated(start, n), actions)
        ends = [core._alone(forked), copied]
    for a, b in zip(ends[0].keys, ends[1].keys):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    # the first layer's keys are a product of what went in: all that differs between the two is what turning rounds
    torch.testing.assert_close(ends[0].keys[0], ends[1].keys[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", FORMS)
def test_gradients_reach_the_shared_window(changes):
    core, actions = small(**changes), torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(3))

    def gradients(many):
        start = tree.map(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x, some_past(core, 2))
        given = actions.clone().requires_grad_()
        out, _ = stepped(core, many(start), given)
        total = (out * torch.cos(torch.arange(out.numel()).view(out.shape))).sum()
        seen = start.stoch if core.meet is None else start.deter
        inputs = [given, seen, *start.keys, *start.values, core.blocks[0].feed[0].weight]
        return torch.autograd.grad(total, inputs)

    for a, b in zip(gradients(lambda s: core.fork(s, 2)), gradients(lambda s: repeated(s, 2))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert core.config.window == 2 or a.abs().sum() > 0


def made_by(call):
    """Bytes of all new tensors in a call."""

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            given = {x.untyped_storage().data_ptr() for x in tree.leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            for x in tree.leaves(out):
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                    self.total += x.untyped_storage().nbytes()
            return out

    with Counter() as counter, torch.no_grad():
        call()
    return counter.total


def test_a_fork_holds_one_window_for_all_its_candidates():
    core, n, steps = small(window=64), 32, 3
    start = some_past(core, 2)
    windows = sum(x.nbytes for x in (*start.keys, *start.values))
    assert made_by(lambda: core.fork(start, n)) < 4 * windows, "one copy, its keys turned, and what turning takes"
    mine = {x.untyped_storage().data_ptr() for x in (*start.keys, *start.values)}
    held = [x.untyped_storage() for x in tree.leaves(core.fork(start, n).shared)]
    assert sum(x.nbytes() for x in held if x.data_ptr() not in mine) <= windows
    assert made_by(lambda: repeated(start, n)) >= n * windows
    actions = torch.randn(2 * n, steps, 2)
    shared = made_by(lambda: stepped(core, core.fork(start, n), actions))
    copied = made_by(lambda: stepped(core, repeated(start, n), actions))
    assert shared < copied / 4, (shared, copied)


@pytest.mark.parametrize(("core", "shares"), [("transformer", True), ("rssm", False), ("mamba", False)])
def test_a_world_model_forks_where_its_core_does(core, shares):
    model = dreamer("nano", core=core).model.build(make_spec())
    assert isinstance(model, Forks) == shares
    twin = without_gradient(model)
    assert isinstance(twin, Forks) == shares
    if shares:
        assert twin.fork.__self__ is twin.core is not model.core


@pytest.mark.parametrize("window", [4, 16])
def test_policy_mppi_plans_alike_with_shared_and_with_copied_windows(window):
    agent = make_agent(make_spec("continuous"), model={"core": TransformerConfig(**(SMALL | {"window": window}))})
    planner = PolicyMPPI(horizon=3, samples=24, policy_samples=6, elites=4, iterations=2)
    objective = ExpectedReturn(
        model=agent.model, action=agent.spec.action, policy=agent.actor, value=agent.value.value, bootstrap="last"
    )
    batch = make_batch(agent.spec, 2, 6)
    with Still(), torch.no_grad():
        seen = agent.model.observe(agent.model.initial(2), batch.obs, batch.prev_action, batch.is_first)
    state, first = tree.index(seen, (ALL, -1)), torch.tensor([True, False])

    def plan():
        with Stream(seed=0), torch.no_grad():
            return planner(objective, state, planner.initial(2, agent.spec.action.size), first)

    shared, told = plan()
    used = made_by(plan)
    del agent.model.fork
    copied, said = plan()
    torch.testing.assert_close(shared.mean, copied.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told["value"], said["value"], rtol=1e-4, atol=1e-5)
    assert used < made_by(plan)


def test_dreams_are_the_same_with_and_without_a_fork():
    agent = make_agent(model={"core": TransformerConfig(**(SMALL | {"window": 6}))})
    batch = make_batch(agent.spec, 2, 6)

    def dream():
        with Still(), torch.no_grad():
            seen = agent.model.observe(agent.model.initial(2), batch.obs, batch.prev_action, batch.is_first)
            return imagine(agent.model, lambda f: agent.actor(f).mode(), tree.flatten_time(seen), 8)

    shared = dream()
    del agent.model.fork
    tree.map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5), shared, dream())
