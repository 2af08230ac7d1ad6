"""What only a CUDA device can show: the same numbers as on a CPU, and an update that never waits for the device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import tree
from worldmodel.configs.sizes import OBJECTIVES, dreamer
from worldmodel.distributions import Categorical
from worldmodel.nn.optim import LaProp
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay
from worldmodel.rng import CUDA_BYTES, Stream
from worldmodel.train.meter import Meter
from worldmodel.types import ArraySpec, EnvSpec, Step, Update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE, HOST = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _plain_float32() -> Iterator[None]:
    """No TensorFloat-32, so that a GPU computes what a CPU computes."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """Random numbers of every device come from this generator on the host."""
    generator, rand, randn = torch.Generator(), torch.rand, torch.randn
    monkeypatch.setattr(
        torch, "rand", lambda *size, device=HOST, generator=generator: rand(*size, generator=generator).to(device)
    )
    monkeypatch.setattr(torch, "randn_like", lambda x: randn(x.shape, generator=generator).to(x.device))
    return generator


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pair(spec: EnvSpec, **changes):
    """The same agent on both devices, float32."""
    config = make_agent(spec, precision="float32", **changes).config
    return config.build(spec, device=HOST), config.build(spec, device=DEVICE)


def close(on_device: torch.Tensor, on_host: torch.Tensor, *, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    assert on_device.device.type == DEVICE.type
    torch.testing.assert_close(on_device.cpu(), on_host, rtol=rtol, atol=atol)


# Learning


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_losses_and_gradients_equal_those_of_the_cpu(kind, objective, noise):
    spec = make_spec(kind, vector=True)
    batch = make_batch(spec)
    results = []
    for agent in pair(spec, objective=objective):
        noise.manual_seed(0)
        losses, _, _ = agent.losses(tree.to(batch, agent.device))
        agent.total(losses).backward()
        results.append((losses, agent.optimizer.grad))
    (host_losses, host_grad), (losses, grad) = results
    for name, loss in losses.items():
        close(loss, host_losses[name])
    close(grad, host_grad, atol=1e-3 * host_grad.abs().max().item())


def test_the_optimiser_equals_that_of_the_cpu():
    spec = make_spec(vector=True)
    host, device = pair(spec)
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 100.0, float("nan"), 1e-3):
        grad = scale * torch.randn(host.optimizer.grad.shape, generator=generator)
        for agent in (host, device):
            agent.optimizer.grad.copy_(grad)
            agent.optimizer.step()
    close(device.optimizer.flat, host.optimizer.flat, atol=1e-6)
    close(device.optimizer.count, host.optimizer.count, atol=0)
    assert host.optimizer.count.item() == 3, "the gradient that is not finite counts for nothing"


def test_optimiser_state_lives_beside_its_parameters():
    layer = torch.nn.Linear(3, 2, device=DEVICE)
    optimizer = LaProp(layer.parameters())
    assert {x.device.type for x in (*optimizer.state_dict().values(), optimizer.flat)} == {DEVICE.type}
    assert layer.weight.data_ptr() == optimizer.flat.data_ptr()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_an_update_never_waits_for_the_device(kind, precision):
    spec = make_spec(kind, vector=True)
    agent = make_agent(spec, precision=precision).config.build(spec, device=DEVICE)
    batch = tree.to(make_batch(spec), DEVICE)
    agent.learn(batch)
    with no_waiting():
        update = agent.learn(batch)
    assert all(torch.isfinite(x) for x in update.metrics.values())
    assert {x.device.type for x in tree.leaves((update.metrics, update.memory, update.priority))} == {DEVICE.type}


def test_auto_precision_is_bfloat16_with_float32_losses_and_parameters():
    spec = make_spec(vector=True)
    agent = make_agent(spec).config.build(spec, device=DEVICE)
    assert agent.precision == "bfloat16"
    for _ in range(3):
        agent.learn(tree.to(make_batch(spec), DEVICE))
    losses, _, _ = agent.losses(tree.to(make_batch(spec), DEVICE))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    agent.optimizer.zero_grad()
    agent.total(losses).backward()
    assert [n for n, p in agent.modules.named_parameters() if p.requires_grad and p.grad.abs().sum() == 0] == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_of_the_published_sizes_learn(precision):
    spec = dataclasses.replace(make_spec("continuous"), obs={"image": ArraySpec(shape=(64, 64, 3), dtype="uint8")})
    agent = dreamer("12m", precision=precision).build(spec, device=DEVICE)
    update = agent.learn(tree.to(make_batch(spec), DEVICE))
    assert torch.isfinite(update.metrics["loss/total"]) and update.metrics["update/skipped"].item() == 0


def test_a_fixed_batch_is_learned():
    spec = make_spec(vector=True)
    agent = make_agent(spec, lr=3e-3, warmup=10).config.build(spec, device=DEVICE)
    batch = tree.to(make_batch(spec), DEVICE)
    totals = [agent.learn(batch).metrics["loss/reconstruction"] for _ in range(100)]
    assert totals[-1].item() < 0.7 * totals[0].item()


# Acting


def steps_of(spec: EnvSpec, n: int, time: int) -> list[Step]:
    batch = make_batch(spec, n, time, firsts=tuple((row, 0) for row in range(n)))
    fields = ("reward", "is_first", "is_last", "is_terminal")
    return [
        Step(obs={k: v[:, t] for k, v in batch.obs.items()}, **{name: getattr(batch, name)[:, t] for name in fields})
        for t in range(time)
    ]


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_acting_equals_that_of_the_cpu(kind, noise):
    spec = make_spec(kind, vector=True)
    actions = []
    for agent in pair(spec):
        noise.manual_seed(0)
        carry, chosen = agent.initial(2, seed=1), []
        for step in steps_of(spec, 2, 5):
            action, carry = agent.act(carry, step, explore=True)
            chosen.append(action)
        actions.append(torch.stack(chosen))
    close(actions[1], actions[0])


def test_acting_is_reproducible_and_leaves_the_devices_generator_alone():
    spec = make_spec(vector=True)
    agent = make_agent(spec).config.build(spec, device=DEVICE)
    runs = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        before = torch.cuda.get_rng_state()
        carry, chosen = agent.initial(2, seed=7), []
        for step in steps_of(spec, 2, 4):
            action, carry = agent.act(carry, step, explore=True)
            chosen.append(action)
        assert torch.equal(torch.cuda.get_rng_state(), before)
        runs.append(torch.stack(chosen))
    assert torch.equal(*runs)


def test_a_stream_gives_the_same_numbers_again_and_can_be_saved():
    state = Stream(seed=3, device=DEVICE).state
    assert state.numel() == CUDA_BYTES
    draws = []
    for _ in range(2):
        with Stream(state=state.clone(), device=DEVICE) as stream:
            draws.append(torch.rand(100, device=DEVICE))
        saved = stream.state.clone()
        with Stream(state=saved, device=DEVICE):
            draws[-1] = torch.cat([draws[-1], torch.rand(100, device=DEVICE)])
    assert torch.equal(*draws)
    with Stream(seed=4, device=DEVICE):
        assert not torch.equal(torch.rand(100, device=DEVICE), draws[0][:100])
    foreign = Stream(seed=3).state
    with Stream(state=foreign, device=DEVICE):
        torch.rand(2, device=DEVICE)


def test_samples_follow_the_distribution():
    probs = torch.tensor([0.1, 0.2, 0.7])
    with Stream(seed=0, device=DEVICE):
        drawn = Categorical(probs.log().to(DEVICE).expand(100_000, 3)).sample().mean(0)
    close(drawn, probs, rtol=0, atol=0.01)


# Keeping


def test_an_agent_saved_on_cuda_goes_on_bit_for_bit_and_loads_on_a_cpu(tmp_path: Path):
    spec = make_spec(vector=True)
    host, device = pair(spec)
    batch = tree.to(make_batch(spec), DEVICE)
    for _ in range(2):
        device.learn(batch)
    path = tmp_path / "agent.safetensors"
    save_file({name: x.detach().clone().contiguous() for name, x in device.state_dict().items()}, path)
    host.load_state_dict(load_file(path))
    assert torch.equal(host.optimizer.flat, device.optimizer.flat.cpu())
    assert torch.isfinite(host.learn(make_batch(spec)).metrics["loss/total"])
    twin = host.config.build(spec, device=DEVICE, seed=9)
    twin.load_state_dict(load_file(path))
    same = {n: torch.equal(x, device.state_dict()[n]) for n, x in twin.state_dict().items()}
    assert all(same.values()), same
    a, b = twin.learn(batch), device.learn(batch)
    close(a.metrics["loss/total"], b.metrics["loss/total"].cpu(), rtol=1e-5)


def test_metrics_of_both_devices_are_averaged_together():
    meter = Meter()
    for value in (1.0, 3.0):
        meter.add({"loss/total": torch.tensor(value, device=DEVICE), "episode/return": torch.tensor(2 * value)})
    assert meter.take() == {"loss/total": 2.0, "episode/return": 4.0}


# Replay


MEMORY = {"deter": ArraySpec(shape=(4,), dtype="bfloat16"), "stoch": ArraySpec(shape=(2,), dtype="uint8")}


def filled(home: torch.device, sampler: str, *, adds: int = 60) -> RingReplay:
    """A ring that has wrapped around; batches are delivered on the device."""
    spec = make_spec("discrete")
    config = ReplayConfig(capacity=80, batch_size=4, length=5, sampler=sampler, online_fraction=0.5)  # type: ignore[arg-type]
    replay = RingReplay(config, spec, MEMORY, 2, home=home, device=DEVICE, seed=0)
    rng = np.random.default_rng(1)
    for t in range(adds):
        flags = torch.from_numpy(rng.random((3, 2)) < 0.1)
        step = Step(
            obs={"image": torch.from_numpy(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))},
            reward=torch.from_numpy(rng.random(2, dtype=np.float32)),
            is_first=flags[0], is_last=flags[1], is_terminal=flags[1] & flags[2],
        )
        action = torch.eye(3)[torch.from_numpy(rng.integers(0, 3, 2))].to(DEVICE)
        memory = {
            "deter": torch.full((2, 4), t, dtype=torch.bfloat16, device=DEVICE),
            "stoch": torch.full((2, 2), t, dtype=torch.uint8, device=DEVICE),
        }
        replay.add(step, action, memory)
    return replay


def assert_equal_batches(a, b) -> None:
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        assert x.device.type == DEVICE.type == y.device.type
        # priorities become weights by a power, which devices round differently
        torch.testing.assert_close(x, y, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
def test_replay_on_the_device_equals_replay_on_the_host(sampler, tmp_path: Path):
    host, device = filled(HOST, sampler), filled(DEVICE, sampler)
    assert device.storage.device.type == DEVICE.type and host.digest() == device.digest()
    for i in range(8):
        a, b = host.sample(), device.sample()
        assert_equal_batches(a, b)
        memory = {
            "deter": torch.randn(4, 5, 4, device=DEVICE).bfloat16(),
            "stoch": torch.full((4, 5, 2), 200 + i, dtype=torch.uint8, device=DEVICE),
        }
        update = Update(metrics={}, memory=memory, priority=torch.rand(4, 5, device=DEVICE))
        host.write_back(a, update)
        device.write_back(b, update)
        assert host.digest() == device.digest()
    assert_equal_batches(host.peek(), device.peek())
    device.save(tmp_path)
    loaded = filled(HOST, sampler, adds=7)
    loaded.load(tmp_path)
    assert loaded.digest() == device.digest()
    assert_equal_batches(loaded.sample(), device.sample())


def test_drawing_from_the_device_and_writing_back_never_wait():
    replay = filled(DEVICE, "uniform")
    memory = {
        "deter": torch.zeros(4, 5, 4, device=DEVICE, dtype=torch.bfloat16),
        "stoch": torch.zeros(4, 5, 2, device=DEVICE, dtype=torch.uint8),
    }
    update = Update(metrics={}, memory=memory)
    replay.write_back(replay.sample(), update)
    with no_waiting():
        for _ in range(3):
            replay.write_back(replay.sample(), update)
