"""LaProp with adaptive gradient clipping over flat buffers, and the slow copy that follows it."""

from __future__ import annotations

from torch import Tensor

from worldmodel.kernels import dispatch
from worldmodel.kernels.laprop_agc import reference
from worldmodel.kernels.laprop_agc.reference import Layout, Rule, make_layout

__all__ = ["Layout", "Rule", "make_layout", "step"]


def step(
    flat: Tensor, grad: Tensor, nu: Tensor, mu: Tensor, count: Tensor, slow: Tensor, healthy: Tensor, layout: Layout,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """See :func:`reference.step`."""
    if dispatch.backend("laprop_agc", flat) == "reference":
        return reference.step(flat, grad, nu, mu, count, slow, healthy, layout, rule)
    from worldmodel.kernels.laprop_agc import triton

    return triton.step(flat, grad, nu, mu, count, slow, healthy, layout, rule)
