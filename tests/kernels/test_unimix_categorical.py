"""Mixed categoricals: the reference against a slow loop, the Triton kernel against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldmodel.kernels import dispatch, unimix_categorical
from worldmodel.kernels.unimix_categorical import reference

SHAPES = [(2, 3, 4, 5), (1, 1, 3, 8), (5, 2, 33), (2, 1, 1)]
"""(..., Z, K): classes that fill their tile and classes that do not."""


def logits(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(row: list[float], noise: float, unimix: float) -> tuple[int, float, float, list[float]]:
    """Index, its log-probability, entropy and probabilities of one group, in Python floats."""
    weights = [math.exp(x - max(row)) for x in row]
    probs = [(1 - unimix) * w / sum(weights) + unimix / len(row) for w in weights]
    index, total = 0, probs[0]
    while total <= noise and index < len(row) - 1:
        index += 1
        total += probs[index]
    return index, math.log(probs[index]), -sum(p * math.log(p) for p in probs if p), probs


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.3])
def test_a_sample_equals_a_slow_loop(unimix: float) -> None:
    x, noise = logits(7, 6, scale=2.0), torch.rand(7, generator=torch.Generator().manual_seed(1))
    noise[0], noise[1] = 0.0, 1 - 1e-7
    got = unimix_categorical.sample(x, noise, unimix=unimix)
    for i, row in enumerate(x.double().tolist()):
        index, log_prob, entropy, _ = slow(row, noise[i].item(), unimix)
        assert got.onehot[i].argmax().item() == index and got.onehot[i].sum().item() == 1
        assert got.log_prob[i].item() == pytest.approx(log_prob, rel=1e-5, abs=1e-6)
        assert got.entropy[i].item() == pytest.approx(entropy, rel=1e-5, abs=1e-6)


def test_the_kl_equals_a_slow_loop_and_is_floored_over_all_groups() -> None:
    x, y = logits(2, 3, 4, scale=2.0), logits(2, 3, 4, seed=1)
    for floor in (0.0, 100.0):
        dyn, rep = unimix_categorical.balanced_kl(x, y, unimix=0.05, free_nats=floor)
        for i in range(2):
            total = 0.0
            for group in range(3):
                p, q = (slow(z[i, group].double().tolist(), 0, 0.05)[3] for z in (x, y))
                total += sum(a * math.log(a / b) for a, b in zip(p, q))
            assert dyn[i].item() == rep[i].item() == pytest.approx(max(floor, total), rel=1e-5)


@pytest.mark.parametrize("shape", [(300, 16, 8), (4, 15), (4, 16), (2, 1)])
def test_the_softmax_of_short_axes_is_the_softmax(shape: tuple[int, ...]) -> None:
    x = logits(*shape, scale=30.0).requires_grad_()
    ours, theirs = reference.softmax(x), torch.softmax(x, -1)
    torch.testing.assert_close(ours, theirs)
    weight = logits(*shape, seed=1)
    torch.testing.assert_close(
        *(torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, theirs)), rtol=1e-4, atol=1e-6
    )


def test_straight_through_is_the_gradient_of_the_mixture() -> None:
    x, weight = logits(3, 4).requires_grad_(), logits(3, 4, seed=1)
    onehot = unimix_categorical.sample(x, torch.rand(3), unimix=0.1).onehot
    expected = torch.autograd.grad(((0.9 * torch.softmax(x, -1) + 0.1 / 4) * weight).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((onehot * weight).sum(), x), expected)


def everything(x: Tensor, y: Tensor, noise: Tensor, unimix: float) -> list[Tensor]:
    """All that the kernels compute; some rows of the KL lie below the floor."""
    kl = unimix_categorical.balanced_kl(x, y, unimix=unimix, free_nats=0.5 * x.shape[-2])
    return [*unimix_categorical.sample(x, noise, unimix=unimix), *kl]


def both(
    shape: tuple[int, ...], device: torch.device, unimix: float, *, dtype: torch.dtype = torch.float32,
    compute: Callable[..., list[Tensor]] = everything,
) -> list[Tensor]:
    """Results, and the gradient of a random projection of them."""
    x, y = (logits(*shape, seed=s, scale=2.0).to(device, dtype).requires_grad_() for s in (0, 1))
    noise = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(2)).to(device)
    out = compute(x, y, noise, unimix)
    total = sum(((z * logits(*z.shape, seed=3).to(device)).sum() for z in out), torch.zeros((), device=device))
    return [*out, *torch.autograd.grad(total, [x, y])]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unimix", [0.01, 0.3])
def test_triton_equals_the_reference(shape: tuple[int, ...], unimix: float, triton_kernels: torch.device) -> None:
    ours = both(shape, triton_kernels, unimix)
    with dispatch.using("reference"):
        expected = both(shape, triton_kernels, unimix)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_takes_bfloat16(triton_kernels: torch.device) -> None:
    ours = both((64, 32, 16), triton_kernels, 0.01, dtype=torch.bfloat16)
    with dispatch.using("reference"):
        expected = both((64, 32, 16), triton_kernels, 0.01, dtype=torch.bfloat16)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_a_compiler_traces_it_whole(triton_kernels: torch.device) -> None:
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    results = (both((2, 3, 5), triton_kernels, 0.1, compute=compute) for compute in (compiled, everything))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
