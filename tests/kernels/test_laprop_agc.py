"""The fused optimiser: equal to the engine's LaProp, and its Triton kernel to both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from worldmodel.kernels import dispatch
from worldmodel.kernels.laprop_agc import Rule, make_layout, step
from worldmodel.kernels.laprop_agc.reference import CHUNK
from worldmodel.nn.optim import LaProp

SIZES = (12, 1, CHUNK + 3, 7)
"""A tensor of one number, and one that needs two chunks."""
GRADIENTS = (1.0, 100.0, float("nan"), 1e-3, 0.0, float("inf"), 1.0)
"""Scale of each update's gradient."""
STATE = ("flat", "nu", "mu", "count", "slow")


def gradient(i: int) -> Tensor:
    return GRADIENTS[i] * torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(i))


def parameters() -> Tensor:
    flat = torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(99))
    flat[-7:] = 0.0  # a zero-initialised head
    return flat


def run(device: torch.device, rule: Rule, compute=step, *, unhealthy: int = -1) -> list[dict[str, Tensor]]:
    """State after every update."""
    state = {name: torch.zeros(sum(SIZES), device=device) for name in ("flat", "nu", "mu")}
    state["flat"].copy_(parameters())
    state |= {"count": torch.zeros((), device=device), "slow": state["flat"][5:40].clone()}
    layout = make_layout(SIZES, device)
    out = []
    for i in range(len(GRADIENTS)):
        healthy = torch.tensor(i != unhealthy, device=device)
        norm, did = compute(
            state["flat"], gradient(i).to(device), state["nu"], state["mu"], state["count"], state["slow"], healthy,
            layout, rule,
        )
        out.append({**{name: x.clone() for name, x in state.items()}, "norm": norm, "did": did})
    return out


def said_of(name: str, update: int) -> Callable[[str], str]:
    return lambda message: f"{name} after update {update}: {message}"


@pytest.mark.parametrize("rule", [Rule(lr=0.01, warmup=3), Rule(lr=0.01, warmup=0, clip=0.0)])
def test_the_reference_equals_the_optimiser_of_the_engine(rule: Rule) -> None:
    tensors = [nn.Parameter(p.clone()) for p in parameters().split(SIZES)]
    optimizer = LaProp(tensors, lr=rule.lr, clip=rule.clip, warmup=rule.warmup)
    for i, ours in enumerate(run(torch.device("cpu"), rule)):
        optimizer.grad.copy_(gradient(i))
        said = optimizer.step()
        assert said["healthy"].item() == ours["did"].item() == (i not in (2, 5))
        for name, expected in {"flat": optimizer.flat, **optimizer.state_dict()}.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-7, msg=said_of(name, i))
        torch.testing.assert_close(ours["norm"], said["grad_norm"], equal_nan=True)


def test_the_slow_copy_follows_its_range_and_no_unhealthy_update() -> None:
    rule = Rule(lr=0.1, warmup=0, slow_start=5, slow_rate=0.25)
    states = run(torch.device("cpu"), rule, unhealthy=3)
    before = {"flat": parameters(), "slow": parameters()[5:40]}
    for i, state in enumerate(states):
        moved = before["slow"] + 0.25 * (state["flat"][5:40] - before["slow"])
        torch.testing.assert_close(state["slow"], before["slow"] if i in (2, 3, 5) else moved)
        assert torch.equal(state["flat"], before["flat"]) == (i in (2, 3, 5))
        before = state


@pytest.mark.parametrize(
    "rule",
    [Rule(lr=0.01, warmup=3, slow_start=5, slow_rate=0.02), Rule(lr=0.01, warmup=0, clip=0.0)],
    ids=["clipped", "unclipped"],
)
def test_triton_equals_the_reference(rule: Rule, triton_kernels: torch.device) -> None:
    ours = run(triton_kernels, rule, unhealthy=4)
    with dispatch.using("reference"):
        expected = run(triton_kernels, rule, unhealthy=4)
    for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a["did"].item() == b["did"].item()
        for name in STATE:
            # the reference's 1 - 0.999^t is a difference in single precision
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=said_of(name, i))


def test_an_unhealthy_update_changes_no_bit(triton_kernels: torch.device) -> None:
    states = run(triton_kernels, Rule(lr=0.01, warmup=0, slow_start=5, slow_rate=0.1), unhealthy=4)
    for i in (2, 4, 5):
        assert all(torch.equal(states[i][name], states[i - 1][name]) for name in STATE), i


def test_a_compiler_traces_it_whole(triton_kernels: torch.device) -> None:
    rule = Rule(lr=0.01, warmup=0)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(triton_kernels, rule, compiled), run(triton_kernels, rule), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in STATE)
