"""Cross-entropy of a categorical over bins to the two bins next to a number."""

from __future__ import annotations

from torch import Tensor

from worldmodel.kernels import dispatch
from worldmodel.kernels.twohot_loss import reference

__all__ = ["twohot_loss"]


def twohot_loss(logits: Tensor, bins: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """See :func:`reference.twohot_loss`."""
    if dispatch.backend("twohot_loss", logits) == "reference":
        return reference.twohot_loss(logits, bins, target, mask)
    from worldmodel.kernels.twohot_loss import triton

    return triton.twohot_loss(logits, bins, target, mask)
