"""A learner on Triton kernels learns what it learns on PyTorch: every kernel is reached, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.models import make_batch, make_spec
from worldmodel.agents.dreamer.agent import Dreamer
from worldmodel.configs.sizes import dreamer
from worldmodel.kernels import dispatch
from worldmodel.models.cores.mamba import MambaConfig
from worldmodel.models.cores.rssm import RSSMConfig
from worldmodel.nn import heads
from worldmodel.nn.encoders import PatchEncoderConfig
from worldmodel.types import Update

CORES = {
    "rssm": RSSMConfig(deter=8, hidden=8, stoch=2, classes=4, blocks=2),
    "mamba": MambaConfig(d_model=8, layers=1, headdim=8, d_state=2, stoch=2, classes=4),
}
BY_ALL = {"unimix_categorical", "twohot_loss", "lambda_return", "laprop_agc"}
BY_CORE = {"rssm": set(), "mamba": {"ssd_scan", "ssd_step", "causal_conv1d"}}


def make(core: str) -> Dreamer:
    config = dreamer("nano", objective="infonce", imagination=2, warmup=0, lr=1e-3)
    encoder = PatchEncoderConfig(patch=16, width=2, units=8, layers=1)
    model = replace(config.model, core=CORES[core], encoder=encoder, units=8, probe=False)
    small = {"units": 8, "layers": 1}
    config = replace(config, model=model, actor=replace(config.actor, **small), value=replace(config.value, **small))
    return config.build(make_spec("discrete"), seed=0)


def learned(core: str, choice: dispatch.Choice) -> tuple[list[Update], Dreamer]:
    agent = make(core)
    with dispatch.using(choice):
        return [agent.learn(make_batch(agent.spec, 2, 4, seed=i, firsts=((1, 2),))) for i in (0, 1)], agent


@pytest.mark.skipif(not dispatch.HAS_TRITON, reason="triton is not installed")
@pytest.mark.parametrize("core", list(CORES))
def test_an_update_on_triton_is_an_update_on_pytorch(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, real = set(), dispatch.backend

    def backend(kernel: str, like: torch.Tensor) -> dispatch.Backend:
        reached.add(kernel)
        return real(kernel, like)

    # of bins up to e^20 the last bit of a probability is worth 1.5 in a value, on some processors' matrix products
    monkeypatch.setattr(heads, "symexp_bins", lambda count: torch.linspace(-3, 3, count))
    expected, theirs = learned(core, "reference")
    monkeypatch.setattr(dispatch, "backend", backend)
    for name in BY_CORE[core]:
        monkeypatch.setattr(f"worldmodel.kernels.{name}.backend", backend)
    ours, agent = learned(core, "triton")
    assert reached == BY_ALL | BY_CORE[core]
    for a, b in zip(ours, expected):
        assert a.metrics.keys() == b.metrics.keys()
        for name, x in a.metrics.items():
            torch.testing.assert_close(x, b.metrics[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    # LaProp divides by the root of what may be rounding alone: such a parameter moves by the learning rate either way
    gap = (agent.optimizer.flat - theirs.optimizer.flat).abs()
    assert float(gap.max()) <= 2.1 * 2 * 1e-3 and float((gap > 1e-5).float().mean()) < 0.01


def test_the_optimiser_by_its_kernel_is_the_optimiser() -> None:
    if not dispatch.HAS_TRITON:
        pytest.skip("triton is not installed")
    from worldmodel.nn.optim import LaProp

    def run(choice: dispatch.Choice) -> LaProp:
        g = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(5, 3, generator=g)), torch.nn.Parameter(torch.zeros(7))]
        optimizer = LaProp(weights, lr=0.1, warmup=2, clip=0.3)
        with dispatch.using(choice):
            for i in range(4):
                optimizer.grad.copy_(torch.randn(22, generator=g))
                if i == 2:
                    optimizer.grad[3] = float("nan")
                said = optimizer.step(torch.tensor(i != 1))
                assert bool(said["healthy"]) == (i not in (1, 2))
        return optimizer

    ours, expected = run("triton"), run("reference")
    assert float(ours.count) == float(expected.count) == 2
    for name in ("flat", "nu", "mu"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=1e-4, atol=1e-6)
