"""Several tasks in one model: what is seen and done is filled up, embeddings stay bounded, discounts are their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.models import make_batch
from worldmodel import collect, config, presets, runs
from worldmodel.agents.tdmpc2.agent import TDMPC2
from worldmodel.config import Run
from worldmodel.configs.tdmpc2 import configured, multitask
from worldmodel.data.episodes import Actions, Dataset, Episode, Header
from worldmodel.data.formats import absolute, write_dataset
from worldmodel.data.tasks import of_tasks
from worldmodel.distributions import SquashedNormal
from worldmodel.envs.dmc import DMCConfig
from worldmodel.envs.multitask import MultitaskConfig
from worldmodel.envs.pool import make_pool
from worldmodel.envs.toys import ToyConfig
from worldmodel.errors import DataError, EnvError, MisfitError
from worldmodel.models.implicit import Latent
from worldmodel.rng import Stream
from worldmodel.specs import ActionSpec, ArraySpec, EnvSpec, TaskSpec
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.evaluate import Scores
from worldmodel.types import Batch, Step

TASKS = (TaskSpec(name="one", obs=3, action=1, max_steps=100), TaskSpec(name="two", obs=5, action=2, max_steps=500))
SPEC = EnvSpec(
    name="both",
    obs={"task": ArraySpec(shape=(), dtype="int64", classes=2), "vector": ArraySpec(shape=(5,), dtype="float32")},
    action=ActionSpec(kind="continuous", size=2), max_steps=500, tasks=TASKS,
)
DMC = DMCConfig(obs="proprio", repeat=2, max_frames=16)
BOTH = MultitaskConfig(env=DMC, tasks=("cartpole_balance", "cup_catch"))


def made(seed: int = 0, **changes) -> TDMPC2:
    base = configured("nano", ends="never")
    search = {"samples": 12, "policy_samples": 3, "elites": 4, "iterations": 2}
    base = replace(
        base, model=replace(base.model, latent=16, units=8, task=3), policy=replace(base.policy, units=8),
        value=replace(base.value, units=8), planner=replace(base.planner, **search),
        evaluator=replace(base.evaluator, **search),
    )
    return replace(base, **changes).build(SPEC, seed=seed)


def shaken(agent: TDMPC2) -> TDMPC2:
    with torch.no_grad(), Stream(seed=7):
        for p in agent.modules.parameters():
            p.add_(0.2 * torch.randn_like(p))
    agent.model.bound()
    return agent


def data(seed: int = 0) -> Batch:
    """Rows 0 and 2 are of the first task; row 1 begins as the first and goes on as the second."""
    batch = make_batch(SPEC, 4, 4, seed=seed, firsts=((1, 2),))
    task = torch.tensor([[0] * 4, [0, 0, 1, 1], [0] * 4, [1] * 4])
    takes = torch.tensor([[1.0, 0.0], [1.0, 1.0]])[task]
    return replace(batch, obs=batch.obs | {"task": task}, action=batch.action * takes)


def test_what_is_seen_and_done_is_filled_up_with_zeros() -> None:
    pool = make_pool(BOTH, 3, kind="serial")
    step = pool.reset(0)
    assert pool.spec.action.size == 2 and pool.spec.obs["vector"].shape == (8,) and pool.spec.max_steps == 8
    assert [(t.name, t.obs, t.action) for t in pool.spec.tasks] == [("cartpole_balance", 5, 1), ("cup_catch", 8, 2)]
    assert step.obs["task"].tolist() == [0, 1, 0]
    alone = make_pool(replace(DMC, task="cartpole_balance"), 1, kind="serial")
    seen = alone.reset(0)
    for _ in range(3):
        flat = torch.cat([seen.obs[key].flatten(1) for key in sorted(seen.obs)], 1)
        assert torch.equal(step.obs["vector"][:1, :5], flat) and not step.obs["vector"][0, 5:].any()
        action = torch.tensor([[0.3, 0.9], [0.1, 0.2], [0.0, 0.0]])
        step, seen = pool.step(action), alone.step(action[:1, :1])
        assert torch.equal(step.reward[:1], seen.reward)
    state = pool.get_state()
    going = pool.step(action).obs["vector"]
    pool.set_state(state)
    assert torch.equal(pool.step(action).obs["vector"], going)
    pool.close(), alone.close()


def test_a_latent_carries_its_task_and_the_encoder_is_told_of_it() -> None:
    agent = shaken(made())
    model, batch = agent.model, data()
    z = model.encode(batch.obs, shift=False)
    known = model.tasks.weight[batch.obs["task"]]
    alone = model.project(model.encoder({"task": known, "vector": batch.obs["vector"]}))
    torch.testing.assert_close(z[..., :16], alone)
    torch.testing.assert_close(z[..., 16:19], known)
    assert torch.equal(model.task_of(Latent(z=z)), batch.obs["task"]) and model.feature_dim == 16 + 3 + 2
    torch.testing.assert_close(model.features(Latent(z=z)), z[..., :-1])
    after = model.step(Latent(z=z), batch.action)
    torch.testing.assert_close(after.z[..., 16:], z[..., 16:])
    want = model.dynamics(torch.cat([alone, known, batch.action], -1))
    torch.testing.assert_close(after.z[..., :16], want)


@torch.no_grad()
def test_numbers_that_a_task_does_not_take_change_nothing() -> None:
    agent = shaken(made())
    state = Latent(z=agent.model.encode({key: x[:, 0] for key, x in data().obs.items()}, shift=False))
    one, other = torch.rand(4, 2), torch.rand(4, 2)
    other[:, 0] = one[:, 0]
    for x, y in (
        (agent.model.step(state, one).z, agent.model.step(state, other).z),
        (agent.model.reward_of(state, one).mean(), agent.model.reward_of(state, other).mean()),
    ):
        same = [torch.equal(a, b) for a, b in zip(x, y)]
        assert same == [True, True, True, False]
    action = agent.policy(agent.model.features(state)).sample()
    assert not action[:3, 1].any() and action[:, 0].all() and action[3, 1] != 0


def test_losses_follow_the_task_over_a_border_and_embeddings_learn_from_the_model_alone() -> None:
    agent, batch = shaken(made()), data()
    total, states, *_ = agent.compute_model_loss(batch)
    assert agent.model.task_of(states).tolist() == batch.obs["task"].tolist()
    trained = {name: p for name, p in agent.modules.named_parameters() if p.requires_grad}
    agent.optimizer.backward(total)
    assert trained["model.tasks.weight"].grad.all()
    agent.optimizer.zero_grad()
    agent.policy_optimizer.backward(agent.compute_policy_loss(states, {})[0])
    assert {name for name, p in trained.items() if p.grad.any()} == {n for n in trained if n.startswith("policy.")}


def test_embeddings_begin_small_and_stay_in_the_unit_ball() -> None:
    wide = made(model=replace(made().config.model, task=96))
    assert float(wide.model.tasks.weight.detach().abs().max()) <= 0.02
    assert float(wide.model.tasks.weight.detach().std()) == pytest.approx(0.02 / 3**0.5, rel=0.1)
    agent = made(lr=1.0)
    for seed in range(4):
        agent.learn(data(seed))
        norm = agent.model.tasks.weight.detach().norm(dim=-1)
        assert (norm <= 1 + 1e-6).all()
    assert (norm > 0.99).any()
    before = agent.model.tasks.weight.detach().clone()
    agent.model.bound()
    torch.testing.assert_close(agent.model.tasks.weight.detach(), before)


@torch.no_grad()
def test_every_task_has_its_discount_in_targets_and_in_plans() -> None:
    agent, batch = shaken(made()), data()
    assert agent.discounts.tolist() == pytest.approx([0.95, 0.99])
    seen = agent.model.unroll(batch).encoded
    with Stream(seed=3):
        target = agent.critic.target(batch, seen)
    with Stream(seed=3):
        features = agent.model.features(seen)
        value = agent.value.target(features, agent.policy(features).sample())
    discount = torch.tensor([[0.95] * 3, [0.95, 0.99, 0.99], [0.95] * 3, [0.99] * 3])
    want = batch.reward[:, 1:] + discount * (~batch.is_terminal[:, 1:]).float() * value
    torch.testing.assert_close(target, want)
    state = Latent(z=agent.model.encode({key: x[:, 0] for key, x in batch.obs.items()}, shift=False))
    actions = torch.rand(4, 5, 3, 2)
    plain = replace(agent.objective, bootstrap="none")
    got = plain.score(state, actions)
    for row, discount in ((0, 0.95), (3, 0.99)):
        alone = replace(plain, discounts=None, discount=discount)
        torch.testing.assert_close(got[row], alone.score(Latent(z=state.z[row : row + 1]), actions[row : row + 1])[0])
    fixed = made(discounting="fixed", discount=0.9)
    assert fixed.discounts.tolist() == pytest.approx([0.9, 0.9])


def test_a_policy_of_fewer_numbers_is_that_policy() -> None:
    mean, log_std, counts = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([1.0, 1.0, 0.0])
    some, all_ = SquashedNormal(mean, log_std, counts), SquashedNormal(mean[:, :2], log_std[:, :2])
    action = torch.rand(6, 3) * counts
    torch.testing.assert_close(some.log_prob(action), all_.log_prob(action[:, :2]))
    torch.testing.assert_close(some.mode()[:, :2], all_.mode())
    with Stream(seed=1):
        u, density = some.draw()
    assert not u[:, 2].any()
    noise = (u[:, :2] - mean[:, :2]) / log_std[:, :2].exp()
    torch.testing.assert_close(density, all_._density(noise), atol=1e-4, rtol=1e-4)
    agent = shaken(made(policy=replace(made().config.policy, entropy="scaled")))
    features = agent.model.features(Latent(z=agent.model.encode(data().obs, shift=False))).detach()
    with Stream(seed=2):
        entropy = agent.policy.judged(lambda f, a: a.sum(-1), features)[1]
    with Stream(seed=2):
        before = agent.policy(features).draw()[1]
    sizes = torch.tensor([1.0, 2.0])[data().obs["task"]]
    torch.testing.assert_close(entropy, -before * sizes)


@pytest.mark.parametrize("learned", [False, True])
def test_what_is_done_is_what_the_task_takes(learned: bool) -> None:
    agent = made()
    if learned:
        agent.learn(data())
    no = torch.zeros(40, dtype=torch.bool)
    obs = {"task": torch.arange(40) % 2, "vector": torch.randn(40, 5)}
    step = Step(obs=obs, reward=torch.zeros(40), is_first=~no, is_last=no, is_terminal=no)
    action, _ = agent.act(agent.initial(40), step, explore=True)
    assert not action[::2, 1].any() and action[1::2].all() and action[:, 0].all() and action.abs().max() <= 1


def test_it_goes_on_from_its_state_and_its_parts_are_traced() -> None:
    one, other, third = made(), made(seed=3), made(seed=3)
    for seed in range(2):
        one.learn(data(seed))
    for agent in (other, third):
        agent.load_state_dict(one.state_dict())
    third.parts = {name: torch.compile(x, fullgraph=True, backend="eager") for name, x in third.parts.items()}
    for seed in (5, 6):
        for agent in (one, other, third):
            agent.learn(data(seed))
    left, right = one.state_dict(), other.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
    for name, x in third.state_dict().items():
        torch.testing.assert_close(x, left[name], msg=name)


def played(task: str, episodes: int = 2) -> Dataset:
    env = replace(DMC, task=task)
    return collect.play(env, collect.random_policy(collect.action_of(env)), episodes=episodes)


def test_datasets_of_tasks_become_one_in_the_form_of_their_environment() -> None:
    pool = make_pool(BOTH, 2, kind="serial")
    spec = pool.spec
    pool.close()
    parts = [played("cartpole_balance"), played("cup_catch")]
    both = of_tasks(parts, spec)
    episodes = [*both]
    assert [set(e.obs["task"]) for e in episodes] == [{0}, {0}, {1}, {1}]
    first, source = episodes[0], next(iter(parts[0]))
    flat = np.concatenate([source.obs[key].reshape(len(source) + 1, -1) for key in sorted(source.obs)], 1)
    assert (first.obs["vector"][:, :5] == flat.astype(np.float32)).all() and not first.obs["vector"][:, 5:].any()
    assert first.action.shape == (8, 2) and not first.action[:, 1].any() and episodes[2].action[:, 1].any()
    assert of_tasks([both], spec) is both
    with pytest.raises(DataError, match=r"of each task \(cartpole_balance, cup_catch\), in this order; got 1"):
        of_tasks(parts[:1], spec)
    with pytest.raises(DataError, match="is no data of cartpole_balance: 8 numbers seen and 2 done, expected 5 and 1"):
        of_tasks(parts[::-1], spec)
    choices = Header(name="c", obs=parts[0].header.obs, action=Actions(kind="discrete", size=1))
    with pytest.raises(DataError, match="images or choices"):
        of_tasks([Dataset(header=choices, read=lambda: iter(())), parts[1]], spec)


def test_bounds_of_a_source_are_undone_before_actions_are_filled_up() -> None:
    header = Header(
        name="wide", obs={"x": ArraySpec(shape=(3,), dtype="float32")},
        action=Actions(kind="continuous", size=1, low=(0.0,), high=(4.0,)),
    )
    episode = Episode(
        obs={"x": np.ones((3, 3))}, action=np.array([[0.0], [3.0]]), reward=np.zeros(2), terminated=False,
        truncated=True, source="s",
    )
    other = Header(
        name="o", obs={"x": ArraySpec(shape=(5,), dtype="float32")}, action=Actions(kind="continuous", size=2)
    )
    both = of_tasks(
        [Dataset(header=header, read=lambda: iter([episode])), Dataset(header=other, read=lambda: iter(()))], SPEC
    )
    assert next(iter(both)).action.tolist() == [[-1.0, 0.0], [0.5, 0.0]]


def test_returns_are_told_of_each_task() -> None:
    scores = Scores(returns=[1.0, 3.0, 10.0], lengths=[5, 5, 5], tasks=["a", "a", "b"])
    assert scores.summary()["return_a"] == 2.0 and scores.summary()["return_b"] == 10.0
    assert not any(key.startswith("return_a") for key in Scores(returns=[1.0], lengths=[1]).summary())


def small(data: str = "", steps: int = 20) -> Run:
    run = presets.find_preset("tdmpc2.multitask").build({"size": "nano"})
    search = {"samples": 8, "policy_samples": 2, "elites": 3, "iterations": 1}
    agent = replace(
        run.agent, planner=replace(run.agent.planner, **search), evaluator=replace(run.agent.evaluator, **search)
    )
    return replace(
        run, env=BOTH, agent=agent, device="cpu", data=data,
        replay=replace(run.replay, capacity=200, batch_size=4, min_starts=12),
        train=replace(
            run.train, steps=steps, num_envs=2, train_ratio=4, first_updates=3, eval_every=0, eval_episodes=2,
            eval_envs=2, threads=1, log_steps=10, pool="serial",
        ),
    )


def test_it_learns_from_data_of_two_tasks_is_evaluated_in_each_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    threads, found = torch.get_num_threads(), []
    for task in BOTH.tasks:
        dataset = played(task, 3)
        write_dataset(tmp_path / task, "dreamer", dataset.header, dataset)
        found.append(str(tmp_path / task))
    whole = small(",".join(found))
    half = small(",".join(found), steps=8)
    runs.start(whole, tmp_path / "whole", live=False)
    runs.start(half, tmp_path / "parts", live=False)
    assert config.from_json(config.to_json(whole)) == whole
    runs.resume(tmp_path / "parts", change=lambda _: whole, live=False)
    torch.set_num_threads(threads)
    one, other = (Checkpoints(tmp_path / name / "checkpoints").latest(on_skip=print) for name in ("whole", "parts"))
    assert one.step == other.step == 20
    for group in one.groups():
        left, right = one.tensors(group), other.tensors(group)
        assert [name for name in left if not torch.equal(left[name], right[name])] == [], group
    rows = [json.loads(line) for line in (tmp_path / "whole" / "scores.jsonl").read_text().splitlines()]
    assert all({"return_cartpole_balance", "return_cup_catch"} <= row.keys() for row in rows) and rows


def test_several_paths_are_made_absolute_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert absolute("a, b") == f"{tmp_path}/a,{tmp_path}/b"


def test_what_cannot_be_one_of_several_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="tasks must be different ones"):
        MultitaskConfig(tasks=("cup_catch", "cup_catch"))
    with pytest.raises(EnvError, match="several tasks share vectors alone"):
        MultitaskConfig(env=ToyConfig(), tasks=("catch", "glide")).build()
    with pytest.raises(MisfitError, match="know one task"):
        made(critic="apart")
    with pytest.raises(MisfitError, match=r"several tasks need policy.form='squashed'"):
        made(policy=replace(made().config.policy, form="noised"))
    run = multitask(("walker_walk", "cheetah_run", "cup_catch"))
    assert run.replay.batch_size == 1024 and run.agent.model.task == 96 and run.train.num_envs == 3
