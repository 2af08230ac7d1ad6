"""Pools of environments: the reset rule, faults, exact resumption, and leaving nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pool_fakes import LENGTH, FakeBatchConfig, FakeConfig

from worldmodel.envs import channel, rows
from worldmodel.envs import pool as pools
from worldmodel.envs.gym import GymConfig
from worldmodel.envs.pool import Pool, make_pool
from worldmodel.envs.seeds import env_seed
from worldmodel.envs.toys import ToyConfig
from worldmodel.errors import DivergenceError, EnvError
from worldmodel.types import Step

CARTPOLE = GymConfig(id="CartPole-v1")
SEPARATE: list[Literal["serial", "process"]] = ["serial", "process"]
Kind = Literal["serial", "process", "batched"]

separate = pytest.mark.parametrize("kind", SEPARATE)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[Pool] = []

    def build(config: Any, num_envs: int = 2, **options: Any) -> Pool:
        made.append(make_pool(config, num_envs, **options))
        return made[-1]

    yield build
    for pool in made:
        pool.close()


def actions(pool: Pool, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = pool.spec.action.size
    if pool.spec.action.kind == "discrete":
        index = torch.randint(size, (count, pool.num_envs), generator=generator)
        return list(torch.nn.functional.one_hot(index, size).float())
    return list(torch.rand(count, pool.num_envs, size, generator=generator) * 2 - 1)


def same(a: Step, b: Step, row: slice = slice(None)) -> bool:
    flat = [(a.obs[key], b.obs[key]) for key in a.obs]
    flat += [(getattr(a, f), getattr(b, f)) for f in ("reward", "is_first", "is_last", "is_terminal")]
    return all(x.dtype == y.dtype and torch.equal(x[row], y[row]) for x, y in flat)


def pids(pool: Pool) -> list[int]:
    return [worker.pid for worker in pool._engine._workers]  # type: ignore[attr-defined]


# The reset rule


@separate
def test_step_after_last_returns_first_observation_of_next_episode(make: Any, kind: Kind) -> None:
    pool = make(FakeConfig(), kind=kind)
    step = pool.reset(0)
    assert step.is_first.tolist() == [True, True] and step.reward.tolist() == [0, 0]
    for t in range(1, LENGTH + 1):
        step = pool.step(torch.full((2, 2), 0.5))
        assert step.obs["vector"][:, 0].tolist() == [t, t] and step.reward.tolist() == [0.5, 0.5]
        assert not step.is_first.any() and step.is_last.tolist() == [t == LENGTH] * 2
    assert step.is_terminal.tolist() == [True, False]
    step = pool.step(torch.full((2, 2), 0.5))
    assert step.is_first.all() and not step.is_last.any() and not step.is_terminal.any()
    assert step.reward.tolist() == [0, 0] and step.obs["choice"].tolist() == [0, 0]
    assert step.reward.dtype == torch.float32 and step.is_first.dtype == torch.bool
    assert step.obs["image"].dtype == torch.uint8 and step.obs["choice"].dtype == torch.int64


def test_serial_and_process_pools_live_the_same_lives(make: Any) -> None:
    serial, process = make(CARTPOLE, 3, kind="serial"), make(CARTPOLE, 3, kind="process")
    assert same(serial.reset(7), process.reset(7))
    assert all(same(serial.step(a), process.step(a)) for a in actions(serial, 120))
    assert same(serial.reset(8), process.reset(8))
    assert serial.spec == process.spec


def test_row_is_seeded_alike_in_pools_of_any_size(make: Any) -> None:
    small, large = make(CARTPOLE, 2, kind="serial"), make(CARTPOLE, 5, kind="serial")
    assert same(small.reset(3), large.reset(3), slice(0, 2))
    env = CARTPOLE.build()
    assert torch.equal(large.reset(3).obs["vector"][4], torch.from_numpy(env.reset(env_seed(3, 4)).obs["vector"]))
    assert not torch.equal(large.reset(4).obs["vector"], large.reset(3).obs["vector"])


@pytest.mark.parametrize(("kind", "config"), [("serial", CARTPOLE), ("process", CARTPOLE), ("batched", ToyConfig())])
def test_returned_tensors_are_the_callers_to_keep_and_to_change(make: Any, kind: Kind, config: Any) -> None:
    mine, other = make(config, kind=kind), make(config, kind="batched" if kind == "batched" else "serial")
    a, b = mine.reset(0), other.reset(0)
    for action in actions(mine, 40):
        before = [x.clone() for x in a.obs.values()]
        c = mine.step(action)
        assert all(torch.equal(x, y) for x, y in zip(a.obs.values(), before))
        for x in [*a.obs.values(), a.reward, a.is_first, a.is_last, a.is_terminal]:
            x.fill_(1)
        a, b = c, other.step(action)
        assert same(a, b)


def test_action_of_the_caller_is_not_changed_by_an_environment(make: Any) -> None:
    pool = make(FakeConfig(), kind="serial")
    pool.reset(0)
    action = torch.full((2, 2), 0.25)
    pool.step(action)
    assert action.tolist() == [[0.25] * 2] * 2


def test_workers_do_not_import_torch(make: Any) -> None:
    assert "torch" in sys.modules
    assert make(FakeConfig(), kind="process").reset(0).obs["image"].max() == 0
    assert make(FakeConfig(), kind="serial").reset(0).obs["image"].max() == 1


# A step in two halves


def test_processes_step_between_sending_and_receiving(make: Any, tmp_path: Path) -> None:
    stepped = tmp_path / "stepped"
    pool = make(FakeConfig(fault="raise", at=1, once=str(stepped)), kind="process")
    pool.reset(0)
    pool.send(torch.zeros(2, 2))
    deadline = time.monotonic() + 60
    while not stepped.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pool.receive().is_last.tolist() == [False, True]


@pytest.mark.parametrize(("kind", "config"), [("serial", CARTPOLE), ("process", CARTPOLE), ("batched", ToyConfig())])
def test_nothing_but_a_reset_comes_between_sending_and_receiving(make: Any, kind: Kind, config: Any) -> None:
    pool, other = make(config, kind=kind), make(config, kind="batched" if kind == "batched" else "serial")
    with pytest.raises(EnvError, match="has not begun; call reset"):
        pool.send(actions(pool, 1)[0])
    pool.reset(0)
    action, second = actions(pool, 2)
    with pytest.raises(EnvError, match=r"no step .* is under way; call send\(action\) first"):
        pool.receive()
    pool.send(action)
    for ask in (lambda: pool.send(action), pool.get_state, lambda: pool.set_state([]), pool.render):
        with pytest.raises(EnvError, match=r"in the middle of a step; call receive\(\) first"):
            ask()
    assert same(pool.reset(1), other.reset(1))  # forgets the step
    pool.send(second)
    second.fill_(0.0)
    assert same(pool.receive(), other.step(actions(other, 2)[1]))
    pool.send(action)
    pool.close()
    with pytest.raises(EnvError, match="is closed"):
        pool.receive()


# Faults


CONTRACT = {
    "raise": "ValueError: boom",
    "nan": "not finite",
    "shape": r"float32 \(2,\), got float32 \(3,\)",
    "dtype": "got float64",
    "class": f"from {LENGTH + 1} to {LENGTH + 1}, expected 0 to {LENGTH}",
    "key": "got \\['choice', 'vector'\\]",
    "reward": "reward is inf",
    "first": "never first",
    "sys.exit": "SystemExit: enough",
}
LATE = "did not answer 'step' within 2.5 s"
DEADLY = {"exit": "exit code 9", "kill": "SIGKILL", "hang": LATE, "stop": LATE}
FAULTS = [("serial", *item) for item in CONTRACT.items()]
FAULTS += [("process", *item) for item in DEADLY.items()]
FAULTS += [("process", name, CONTRACT[name]) for name in ("raise", "nan", "sys.exit")]


@pytest.mark.parametrize(("kind", "fault", "text"), FAULTS)
def test_fault_cuts_the_episode_and_the_row_goes_on(
    make: Any, kind: Kind, fault: str, text: str, tmp_path: Path
) -> None:
    told: list[str] = []
    timeout = 2.5 if fault in ("hang", "stop") else 60.0
    config = FakeConfig(fault=fault, at=3, once=str(tmp_path / "done"))
    pool, healthy = make(config, kind=kind, timeout=timeout, on_event=told.append), make(FakeConfig(), kind="serial")
    before, expected = pool.reset(0), healthy.reset(0)
    for t, action in enumerate(actions(pool, 4 * LENGTH), start=1):
        step, expected = pool.step(action), healthy.step(action)
        assert same_but_image(step, expected, slice(0, 1))
        if t < 3:
            assert same_but_image(step, expected)
        elif t == 3:
            assert all(torch.equal(step.obs[key][1], before.obs[key][1]) for key in step.obs)
            assert [x[1].item() for x in (step.reward, step.is_first, step.is_last, step.is_terminal)] == [0, 0, 1, 0]
        else:
            # a whole episode of the new environment: first, LENGTH steps, first, ...
            assert step.obs["choice"][1] == (t - 4) % (LENGTH + 1)
            assert step.is_first[1] == (step.obs["choice"][1] == 0)
        before = step
    assert pool.stats() == {"restarts": 1.0, "truncated_by_fault": 1.0}
    assert len(told) == 1 and "environment 1 of fake was restarted (1 of 3" in told[0]
    assert re.search(text, told[0]), told[0]


def same_but_image(a: Step, b: Step, row: slice = slice(None)) -> bool:
    """The fakes' image says where they run."""
    strip = [Step(**{**vars(x), "obs": {k: v for k, v in x.obs.items() if k != "image"}}) for x in (a, b)]
    return same(strip[0], strip[1], row)


def vars(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in ("obs", "reward", "is_first", "is_last", "is_terminal")}


def test_new_environment_gets_a_seed_of_its_own_that_repeats(make: Any, tmp_path: Path) -> None:
    firsts = []
    for name in ("a", "b"):
        pool = make(FakeConfig(fault="raise", at=1, once=str(tmp_path / name)), kind="serial")
        start = pool.reset(5).obs["vector"][1, 1].item()
        pool.step(torch.zeros(2, 2))
        firsts.append(pool.step(torch.zeros(2, 2)).obs["vector"][1, 1].item())
        assert firsts[-1] != start
    assert firsts[0] == firsts[1]


@separate
def test_too_many_faults_end_the_run_with_the_whole_story(make: Any, kind: Kind) -> None:
    pool = make(FakeConfig(fault="raise", at=1), kind=kind, max_restarts=1)
    pool.reset(11)
    pool.step(torch.zeros(2, 2))  # cut
    pool.step(torch.zeros(2, 2))  # first of the new one
    with pytest.raises(EnvError) as caught:
        pool.step(torch.full((2, 2), 0.75))
    text = str(caught.value)
    seed = env_seed(env_seed(11, 1), 1)
    assert f"environment 1 of fake (worker 1, seed {seed}, last action [0.75, 0.75]) failed 2 times" in text
    assert 'raise ValueError("boom")' in text and "limit 1" in text


def test_fatal_signal_is_named_in_the_error(make: Any) -> None:
    pool = make(FakeConfig(fault="kill", at=1), kind="process", max_restarts=0)
    pool.reset(0)
    with pytest.raises(EnvError, match="ended with signal SIGKILL during 'step'"):
        pool.step(torch.zeros(2, 2))


def test_faults_are_forgiven_with_time(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "WINDOW", 0.15)
    monkeypatch.setattr(rows, "_FIRST_DELAY", 0.2)
    pool = make(FakeConfig(fault="raise", at=1), kind="serial", max_restarts=1)
    pool.reset(0)
    for _ in range(6):
        pool.step(torch.zeros(2, 2))
    assert pool.stats()["restarts"] == 3


@separate
def test_fault_between_episodes_costs_no_episode(make: Any, kind: Kind, tmp_path: Path) -> None:
    pool = make(FakeConfig(fault="reset", at=LENGTH, once=str(tmp_path / "done")), kind=kind)
    pool.reset(0)
    for action in actions(pool, LENGTH):
        step = pool.step(action)
    assert step.is_last.all()
    step = pool.step(action)
    assert step.is_first.all() and step.obs["choice"].tolist() == [0, 0]
    assert pool.stats() == {"restarts": 1.0, "truncated_by_fault": 0.0}


@separate
def test_reset_that_always_fails_later_ends_the_run(make: Any, kind: Kind) -> None:
    pool = make(FakeConfig(fault="reset", at=1, row=0), num_envs=1, kind=kind, max_restarts=1)
    pool.reset(0)
    pool.step(torch.zeros(1, 2))
    with pytest.raises(EnvError, match="no new episode"):
        for _ in range(2 * LENGTH + 4):
            pool.reset(0)
            pool.step(torch.zeros(1, 2))


@separate
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("build user", "^no GL here: install libegl1$"),
        ("build", "environment 1 of fake cannot be built: KeyError: 'whoops'"),
        ("spec", "all environments of a pool must have one spec"),
        ("reset user", "^no display here: set MUJOCO_GL$"),
        ("reset", "environment 1 of fake .*failed in its first reset: RuntimeError: no new episode"),
    ],
)
def test_mistake_of_the_setup_is_told_at_once(make: Any, kind: Kind, fault: str, text: str) -> None:
    told: list[str] = []
    start = time.monotonic()
    with pytest.raises(EnvError, match=text):
        make(FakeConfig(fault=fault, at=0), kind=kind, on_event=told.append).reset(0)
    assert told == [] and time.monotonic() - start < 60


def test_crash_while_building_is_told_at_once(make: Any) -> None:
    with pytest.raises(EnvError, match=r"environment 1 of fake cannot be built: .*exit code 7 during 'build'"):
        make(FakeConfig(fault="build exit", at=0), kind="process")


def test_failed_build_of_a_new_environment_counts_as_a_fault(make: Any, tmp_path: Path) -> None:
    pool = make(FakeConfig(fault="raise", at=1, once=str(tmp_path / "done")), kind="serial", max_restarts=2)
    pool.reset(0)
    engine = pool._engine
    object.__setattr__(engine, "_config", FakeConfig(fault="build", at=0))
    assert pool.step(torch.zeros(2, 2)).is_last[1]
    with pytest.raises(EnvError, match=r"failed 3 times .*KeyError: 'whoops'"):
        pool.step(torch.zeros(2, 2))


@separate
def test_picture_that_fails_ends_no_episode(make: Any, kind: Kind) -> None:
    told: list[str] = []
    pool = make(FakeConfig(fault="render", at=1), kind=kind, on_event=told.append)
    pool.reset(0)
    assert pool.render(1).tolist() == [[[0] * 3] * 8] * 6
    pool.step(torch.zeros(2, 2))
    assert pool.render(0).max() == 1
    assert pool.render(1) is None and pool.render(1) is None
    assert len(told) == 1 and "failed in render: RuntimeError: no paint" in told[0]
    assert pool.stats() == {"restarts": 0.0, "truncated_by_fault": 0.0}


@pytest.mark.parametrize("ask", ["render", "get_state"])
def test_worker_that_dies_outside_of_a_step_cuts_the_episode_at_the_next(make: Any, ask: str, tmp_path: Path) -> None:
    pool = make(FakeConfig(fault=f"{ask} exit", at=1, once=str(tmp_path / "done")), kind="process")
    pool.reset(0)
    before = pool.step(torch.zeros(2, 2))
    state = pool.get_state() if ask == "get_state" else pool.render(1)
    assert (state is None) == (ask == "render")
    assert pool.render(1) is None
    step = pool.step(torch.ones(2, 2))
    assert torch.equal(step.obs["vector"][1], before.obs["vector"][1])
    assert step.is_last.tolist() == [False, True] and not step.is_terminal.any() and step.reward.tolist() == [1, 0]
    following = pool.step(torch.ones(2, 2))
    assert following.is_first.tolist() == [False, True]
    assert pool.stats() == {"restarts": 1.0, "truncated_by_fault": 1.0}
    if ask == "get_state":
        again = make(FakeConfig(), kind="process")
        again.set_state(state)
        assert same(again.step(torch.ones(2, 2)), step) and same(again.step(torch.ones(2, 2)), following)


def test_action_that_is_not_finite_is_the_agents_fault(make: Any) -> None:
    pool = make(FakeConfig(), kind="serial")
    pool.reset(0)
    with pytest.raises(DivergenceError, match=r"environments \[1\] of fake"):
        pool.step(torch.tensor([[0.0, 0.0], [0.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"must be \(N, A\) = \(2, 2\), got \(2, 3\)"):
        pool.step(torch.zeros(2, 3))
    assert pool.stats()["restarts"] == 0


# Resuming


@pytest.mark.parametrize(
    ("source", "target"), [("serial", "serial"), ("process", "process"), ("serial", "process"), ("process", "serial")]
)
@pytest.mark.parametrize("at", [2, LENGTH, LENGTH + 1], ids=["mid-episode", "at the end", "at the start"])
def test_resumed_pool_continues_exactly(make: Any, source: Kind, target: Kind, at: int) -> None:
    a, b = make(FakeConfig(), kind=source), make(FakeConfig(), kind=target)
    a.reset(1)
    moves = actions(a, at + 3 * LENGTH)
    for action in moves[:at]:
        a.step(action)
    state = a.get_state()
    b.reset(2)
    b.step(moves[0])
    b.set_state(state)
    assert all(same_but_image(a.step(action), b.step(action)) for action in moves[at:])


@pytest.mark.parametrize("task", ["catch", "glide"])
@pytest.mark.parametrize("steps", [1, 3, 200], ids=str)
def test_resumed_batch_continues_exactly(make: Any, task: str, steps: int) -> None:
    config = ToyConfig(task=task)  # type: ignore[arg-type]
    a, b = make(config, 3), make(config, 3)
    a.reset(1)
    b.reset(2)
    moves = actions(a, steps + 300)
    step = None
    for action in moves[:steps]:
        step = a.step(action)
    while steps == 200 and step is not None and not step.is_last.any():  # exactly at an end
        step = a.step(moves[0])
    b.set_state(a.get_state())
    assert all(same(a.step(action), b.step(action)) for action in moves[steps:])


def test_resumed_cartpole_continues_exactly_across_an_end(make: Any) -> None:
    a, b = make(CARTPOLE, kind="process"), make(CARTPOLE, kind="serial")
    step = a.reset(1)
    moves = actions(a, 200)
    while not step.is_last.any():
        step = a.step(moves.pop())
    b.reset(9)
    b.set_state(a.get_state())
    assert all(same(a.step(action), b.step(action)) for action in moves[:60])


@separate
def test_state_after_a_fault_keeps_the_cut_and_the_new_seed(make: Any, kind: Kind, tmp_path: Path) -> None:
    a = make(FakeConfig(fault="raise", at=2, once=str(tmp_path / "done")), kind=kind)
    b = make(FakeConfig(), kind=kind)
    a.reset(1)
    moves = actions(a, 12)
    for action in moves[:2]:
        cut = a.step(action)
    assert cut.is_last[1]
    b.reset(3)
    b.set_state(a.get_state())
    assert all(same(a.step(action), b.step(action)) for action in moves[2:])


def test_fault_right_after_resuming_repeats_the_saved_observation(make: Any, tmp_path: Path) -> None:
    a, b = make(FakeConfig(), kind="serial"), make(FakeConfig(fault="raise", at=3), kind="serial")
    a.reset(1)
    for action in actions(a, 2):
        last = a.step(action)
    b.reset(5)
    b.set_state(a.get_state())
    assert torch.equal(b.step(torch.zeros(2, 2)).obs["vector"][1], last.obs["vector"][1])


@separate
def test_unclonable_environments_have_no_state(make: Any, kind: Kind) -> None:
    pool = make(FakeConfig(fault="unclonable"), kind=kind)
    pool.reset(0)
    assert pool.get_state() is None


def test_states_that_do_not_fit_are_refused(make: Any) -> None:
    pool, batch = make(FakeConfig(), kind="serial"), make(FakeBatchConfig())
    pool.reset(0)
    batch.reset(0)
    with pytest.raises(EnvError, match="1 states were given for 2"):
        pool.set_state(pool.get_state()[:1])
    with pytest.raises(EnvError, match="belongs to 'fake', not to 'fakes'"):
        batch.set_state(pool.get_state())
    with pytest.raises(EnvError, match="another kind of pool"):
        pool.set_state(batch.get_state())
    cartpole = make(CARTPOLE, kind="serial")
    cartpole.reset(0)
    with pytest.raises(EnvError, match="belongs to 'gym/CartPole-v1'"):
        pool.set_state(cartpole.get_state())
    refusing = make(FakeConfig(fault="set_state"), kind="serial")
    with pytest.raises(EnvError, match="does not take its state: the state belongs to another world"):
        refusing.set_state(pool.get_state())


def test_state_that_cannot_be_taken_is_told_and_costs_nothing(make: Any) -> None:
    told: list[str] = []
    pool = make(FakeConfig(fault="get_state", at=1), kind="process", on_event=told.append)
    pool.reset(0)
    pool.step(torch.zeros(2, 2))
    assert pool.get_state() is None and "no photo" in told[0]
    assert not pool.step(torch.zeros(2, 2)).is_last.any()


# Closing, and life outside


@pytest.mark.parametrize("fault", ["hang", "close hang", "stop"])
def test_hung_worker_does_not_delay_closing(make: Any, fault: str) -> None:
    pool = make(FakeConfig(fault=fault, at=1), kind="process")
    pool.reset(0)
    alive = pids(pool)
    if fault != "close hang":
        pool._engine._workers[1].send("step", torch.zeros(2).numpy(), 1.0)
        time.sleep(0.2)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 4.5
    pool.close()
    assert not any(exists(pid) for pid in alive)


@separate
def test_closed_pool_says_so(make: Any, kind: Kind) -> None:
    pool = make(FakeConfig(fault="close"), kind=kind)
    with pytest.raises(EnvError, match=r"has not begun; call reset"):
        pool.step(torch.zeros(2, 2))
    pool.reset(0)
    pool.close()
    pool.close()
    for call in (lambda: pool.reset(0), lambda: pool.step(torch.zeros(2, 2)), pool.get_state, pool.render):
        with pytest.raises(EnvError, match="is closed"):
            call()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_killed_worker_leaves_nothing_in_shared_memory(make: Any) -> None:
    files, descriptors = Path("/dev/shm"), Path("/proc/self/fd")
    before, opened = set(files.iterdir()), len(list(descriptors.iterdir()))
    pool = make(FakeConfig(), kind="process")
    pool.reset(0)
    os.kill(pids(pool)[0], signal.SIGKILL)
    step = pool.step(torch.zeros(2, 2))
    assert step.is_last.tolist() == [True, False]
    pool.step(torch.zeros(2, 2))
    pool.close()
    assert set(files.iterdir()) == before
    assert len(list(descriptors.iterdir())) <= opened + 1  # multiprocessing's resource tracker, once


def test_signals_to_the_group_do_not_end_workers(make: Any) -> None:
    pool = make(FakeConfig(), kind="process")
    pool.reset(0)
    for pid in pids(pool):
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, signum)
    assert not pool.step(torch.zeros(2, 2)).is_last.any()
    assert pool.stats()["restarts"] == 0


def test_without_shared_memory_observations_go_through_pipes(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cls: object, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(channel.SharedMemory, "new", classmethod(refuse))
    told: list[str] = []
    pool, serial = make(CARTPOLE, kind="process", on_event=told.append), make(CARTPOLE, kind="serial")
    assert len(told) == 1 and "No space left on device; they go through pipes" in told[0]
    assert same(pool.reset(0), serial.reset(0))
    assert all(same(pool.step(a), serial.step(a)) for a in actions(pool, 40))


def run_script(text: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(text)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=60, env=env, cwd=folder, **options
    )


def test_script_needs_no_main_guard_and_no_close(tmp_path: Path) -> None:
    script = """
import pool_fakes
from worldmodel.envs.processes import ProcessRows
pool = ProcessRows(pool_fakes.FakeConfig(), 2, say=print)
print(pool.reset(0).obs["choice"].tolist(), *[worker.pid for worker in pool._workers])
"""
    done = run_script(script, tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("[0, 0]") and done.stdout.count("\n") == 1
    assert not any(exists(int(pid)) for pid in done.stdout.split("]")[1].split())


def test_environment_may_be_defined_in_a_guarded_script(tmp_path: Path) -> None:
    script = """
import dataclasses, pool_fakes
from worldmodel.envs.processes import ProcessRows
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(pool_fakes.FakeConfig):
    pass
{guard}
    pool = ProcessRows(Mine(), 1, say=print)
    print(pool.reset(0).obs["choice"].tolist())
    pool.close()
"""
    done = run_script(script.format(guard='if __name__ == "__main__":'), tmp_path)
    assert (done.returncode, done.stdout) == (0, "[0]\n"), done.stderr
    done = run_script(script.format(guard="if True:"), tmp_path)
    assert done.returncode == 1 and 'needs `if __name__ == "__main__":`' in done.stderr


@pytest.mark.parametrize("fault", ["", "hang", "child"])
def test_workers_end_with_their_parent(tmp_path: Path, fault: str) -> None:
    script = f"""
import numpy, os, pool_fakes, signal, time
from worldmodel.envs.processes import ProcessRows
pool = ProcessRows(pool_fakes.FakeConfig(fault={fault!r}, at=1, once="child"), 2, say=print)
pool.reset(0)
print(*[worker.pid for worker in pool._workers], flush=True)
for worker in pool._workers:
    worker.send("step", numpy.zeros(2, numpy.float32), 1.0)
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run_script(script, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    workers += [int(path.read_text()) for path in tmp_path.glob("child.*")]
    assert len(workers) == (4 if fault == "child" else 2)
    until = time.monotonic() + 10
    while any(exists(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(exists(pid) for pid in workers)


def test_programs_of_a_killed_worker_end_with_it(make: Any, tmp_path: Path) -> None:
    pool = make(FakeConfig(fault="child", once=str(tmp_path / "child")), kind="process")
    pool.reset(0)
    child = int((tmp_path / "child.1").read_text())
    os.kill(pids(pool)[1], signal.SIGKILL)
    assert exists(child)
    assert pool.step(torch.zeros(2, 2)).is_last[1]
    until = time.monotonic() + 10  # it was killed with its group; a busy machine takes a moment to bury it
    while exists(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not exists(child)


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie that its parent has yet to reap does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Choosing


def test_auto_measures_and_says_what_it_chose(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(pools.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    slow = FakeConfig(step_seconds=0.005)
    assert make(slow, on_event=told.append).kind == "process"
    assert make(FakeConfig(), on_event=told.append).kind == "serial"
    assert make(slow, num_envs=1, on_event=told.append).kind == "serial"
    assert make(ToyConfig(), on_event=told.append).kind == "batched"
    monkeypatch.setattr(pools.os, "sched_getaffinity", lambda pid: {0}, raising=False)
    pool = make(slow, on_event=told.append)
    assert pool.kind == "serial" and told[-1] == pool.choice
    assert re.match(r"process pool: a step of fake takes [\d.]+ ms, worth 2 processes on 2 cores", told[0])
    assert told[1].startswith("serial pool: a step of fake takes 0.") and "one environment" in told[2]
    assert "one call" in told[3] and "there is one core" in told[4]


def test_auto_passes_the_sentence_of_a_mistake_on(make: Any) -> None:
    with pytest.raises(EnvError, match=r"^no GL here"):
        make(FakeConfig(fault="build user", at=0, row=0))
    with pytest.raises(EnvError, match="fake fails at once: ValueError: boom"):
        make(FakeConfig(fault="raise", at=0, row=0))


def test_arguments_out_of_range_are_refused(make: Any) -> None:
    for options, text in [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"kind": "proces"}, "kind must be one of"),
        ({"timeout": 0.0}, "timeout must be positive"),
        ({"max_restarts": -1}, "max_restarts not negative"),
    ]:
        with pytest.raises(ValueError, match=text):
            make(FakeConfig(), **options)
    with pytest.raises(EnvError, match="offers no batched environments"):
        make(FakeConfig(), kind="batched")


def test_configuration_that_cannot_be_pickled_is_refused_with_a_sentence(make: Any) -> None:
    class Local(FakeConfig):
        pass

    with pytest.raises(EnvError, match="Local cannot be sent to a worker process"):
        make(Local(), kind="process")


# Batched


def test_batch_is_passed_through_with_float32_rewards(make: Any) -> None:
    pool = make(FakeBatchConfig(), 3)
    step = pool.reset(0)
    assert step.is_first.all()
    for _ in range(LENGTH):
        step = pool.step(torch.eye(2)[[0, 1, 0]])
    assert step.is_last.all() and step.reward.tolist() == [LENGTH] * 3 and step.reward.dtype == torch.float32
    assert pool.step(torch.eye(2)[[0, 1, 0]]).is_first.all()
    assert pool.render(1) is None
    env = pool._engine._env
    pool.close()
    pool.close()
    assert env.closed == 1
    with pytest.raises(EnvError, match="is closed"):
        pool.step(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("build", "^no batch today$"),
        ("raise", "fakes failed in step: ValueError: boom"),
        ("shape", r"must be float32 \(2, 1\), got float32 \(2,\)"),
        ("nan", "obs\\['x'\\] is not finite: 2 of 2 values"),
    ],
)
def test_batch_that_breaks_its_contract_ends_the_run(make: Any, fault: str, text: str) -> None:
    with pytest.raises(EnvError, match=text):
        pool = make(FakeBatchConfig(fault=fault))
        pool.reset(0)
        pool.step(torch.zeros(2, 2))
        pool.step(torch.zeros(2, 2))
