"""Mamba-2's scan and step: chunks, Triton, the loop over steps, and separate episodes all say the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.sequences import Outputs, assert_same, is_first
from worldmodel.kernels.segments import segment_ids
from worldmodel.kernels.ssd_scan import reference, ssd_scan
from worldmodel.kernels.ssd_step import ssd_step
from worldmodel.kernels.ssd_step.reference import ssd_step as reference_step


def make(
    batch: int, length: int, heads: int = 2, width: int = 4, groups: int = 1, size: int = 3,
    dtype: torch.dtype = torch.float32, device: torch.device | None = None,
) -> list[Tensor]:
    """x, dt, A, B, C, D, state."""
    generator = torch.Generator().manual_seed(length)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    inputs = [
        normal(batch, length, heads, width).to(dtype),
        torch.nn.functional.softplus(normal(batch, length, heads) - 2),
        -torch.exp(normal(heads)),
        normal(batch, length, groups, size).to(dtype),
        normal(batch, length, groups, size).to(dtype),
        normal(heads),
        normal(batch, heads, width, size),
    ]
    return [tensor.to(device) for tensor in inputs]


def looped(segments: Tensor, return_states: bool):
    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> Outputs:
        y, states = reference.ssd_scan(x, dt, A, B, C, D, segments, state)
        return (y, states[:, -1], states) if return_states else (y, states[:, -1])

    return call


def scanned(segments: Tensor, return_states: bool):
    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> Outputs:
        out = ssd_scan(x, dt, A, B, C, D, segments=segments, state=state, return_states=return_states)
        assert (out.states is None) is not return_states
        return (out.y, out.final) if out.states is None else (out.y, out.final, out.states)

    return call


@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 100])
def test_chunks_are_the_loop_over_steps(length: int, return_states: bool) -> None:
    segments = segment_ids(is_first(2, length))
    assert_same(scanned(segments, return_states), looped(segments, return_states), make(2, length, groups=2))


@pytest.mark.parametrize(
    ("length", "heads", "groups", "return_states"),
    [(1, 2, 2, False), (17, 4, 2, False), (63, 2, 1, False), (100, 2, 2, False), (1, 2, 1, True), (17, 2, 1, True)],
)
def test_triton_is_the_loop_over_steps(
    triton_kernels: torch.device, length: int, heads: int, groups: int, return_states: bool
) -> None:
    inputs = make(2, length, heads, groups=groups, device=triton_kernels)
    segments = segment_ids(is_first(2, length)).to(triton_kernels)
    assert_same(scanned(segments, return_states), looped(segments, return_states), inputs)


@pytest.mark.slow
def test_triton_gives_the_state_after_each_of_many_steps(triton_kernels: torch.device) -> None:
    inputs = make(2, 63, 1, device=triton_kernels)
    segments = segment_ids(is_first(2, 63)).to(triton_kernels)
    assert_same(scanned(segments, True), looped(segments, True), inputs)


def test_triton_reads_slices_of_a_projection_in_place(triton_kernels: torch.device) -> None:
    x, dt, A, B, C, D, state = make(2, 18, 2, 4, 1, 4, device=triton_kernels)
    segments = segment_ids(is_first(2, 18)).to(triton_kernels)
    packed = torch.cat([x.flatten(2), B.flatten(2), C.flatten(2)], 2)

    def split(call):
        def of_packed(packed: Tensor, dt: Tensor, A: Tensor, D: Tensor, state: Tensor) -> Outputs:
            x, B, C = packed.split([8, 4, 4], 2)
            return call(x.unflatten(2, (2, 4)), dt, A, B.unflatten(2, (1, 4)), C.unflatten(2, (1, 4)), D, state)

        return of_packed

    assert_same(split(scanned(segments, False)), split(looped(segments, False)), [packed, dt, A, D, state])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_batch_with_resets_is_the_separate_episodes(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "triton":
        request.getfixturevalue("triton_kernels")
    x, dt, A, B, C, D, state = make(1, 37)
    first = torch.zeros(1, 37, dtype=torch.bool)
    first[0, [9, 16, 36]] = True
    whole = ssd_scan(x, dt, A, B, C, D, segments=segment_ids(first), state=state)
    for start, stop in ((0, 9), (9, 16), (16, 36), (36, 37)):
        part = slice(start, stop)
        alone = ssd_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, state=None if start else state)
        torch.testing.assert_close(whole.y[:, part], alone.y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.final, alone.final, rtol=1e-5, atol=1e-5)


def test_a_reset_cuts_the_gradient() -> None:
    x, dt, A, B, C, D, state = make(1, 20)
    x.requires_grad_()
    first = torch.zeros(1, 20, dtype=torch.bool)
    first[0, 11] = True
    ssd_scan(x, dt, A, B, C, D, segments=segment_ids(first), state=state).y[:, 11:].sum().backward()
    assert x.grad is not None and x.grad[:, :11].abs().max() == 0 and x.grad[:, 11:].abs().min() > 0


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_step_is_the_formula(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "triton":
        request.getfixturevalue("triton_kernels")
    reset = torch.tensor([True, False, False])
    *inputs, state = make(3, 1, groups=2)
    inputs = [tensor[:, 0] if tensor.ndim > 1 else tensor for tensor in inputs]
    assert_same(
        lambda x, dt, A, B, C, D, h: ssd_step(x, dt, A, B, C, D, h, reset=reset),
        lambda x, dt, A, B, C, D, h: reference_step(x, dt, A, B, C, D, reset, h),
        [*inputs, state],
    )


def test_one_step_by_hand() -> None:
    """h = e^(-0.5 ln 4) [4] + 0.5 * 2 * [3] = 2 + 3 = 5; y = 5 * 2 + 10 * 2 = 30."""
    one = torch.ones(1, 1, 1)
    y, state = ssd_step(
        2 * one, 0.5 * one[0], -torch.tensor([4.0]).log(), 3 * one, 2 * one, torch.tensor([10.0]), 4 * one[None]
    )
    torch.testing.assert_close((y, state), (30 * one, 5 * one[None]))


def test_gradients_of_the_reference_are_exact() -> None:
    segments = segment_ids(is_first(2, 5))
    inputs = [tensor.double().requires_grad_() for tensor in make(2, 5, 2, 2, 1, 2)]
    assert torch.autograd.gradcheck(looped(segments, True), inputs)


def test_strong_decays_and_resets_stay_finite() -> None:
    x, dt, A, B, C, D, state = make(2, 64)
    inputs = [x, dt * 100, A * 100, B, C, D, state]
    segments = segment_ids(is_first(2, 64))
    assert_same(scanned(segments, False), looped(segments, False), inputs)


def test_a_compiler_sees_one_node(triton_kernels: torch.device) -> None:
    from worldmodel.kernels.ssd_scan.triton import ssd_scan_op

    x, dt, A, B, C, D, state = [tensor.requires_grad_() for tensor in make(2, 2, 1, device=triton_kernels)]
    segments = segment_ids(is_first(2, 2)).to(triton_kernels)
    for return_states in (False, True):
        torch.library.opcheck(
            ssd_scan_op, (x, dt, A, B, C, D, segments, state, return_states),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_a_wrong_shape_says_what_it_must_be() -> None:
    x, dt, A, B, C, D, state = make(2, 5)
    with pytest.raises(ValueError, match=r"dt must be \(2, 5, 2\) beside x \(2, 5, 2, 4\), got \(2, 4, 2\)"):
        ssd_scan(x, dt[:, 1:], A, B, C, D, state=state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(("length", "size"), [(1, 16), (63, 16), (64, 128), (1000, 16)])
def test_large_shapes_on_a_gpu(
    triton_kernels: torch.device, length: int, size: int, dtype: torch.dtype, limit: float, return_states: bool
) -> None:
    inputs = make(4, length, 16, 64, 1, size, dtype, triton_kernels)
    segments = segment_ids(is_first(4, length)).to(triton_kernels)
    assert_same(scanned(segments, return_states), looped(segments, return_states), inputs, limit)
