"""Categoricals mixed with a share of the uniform distribution: samples and what is known of them, and their KL."""

from __future__ import annotations

from torch import Tensor

from worldmodel.kernels import dispatch
from worldmodel.kernels.unimix_categorical import reference
from worldmodel.kernels.unimix_categorical.reference import Sample

__all__ = ["Sample", "balanced_kl", "sample"]


def sample(logits: Tensor, noise: Tensor, *, unimix: float) -> Sample:
    """One-hot sample, its log-probability and the entropy; see :func:`reference.sample`."""
    if dispatch.backend("unimix_categorical", logits) == "reference":
        return reference.sample(logits, noise, unimix=unimix)
    from worldmodel.kernels.unimix_categorical import triton

    return Sample(*triton.sample(logits, noise, unimix))


def balanced_kl(posterior: Tensor, prior: Tensor, *, unimix: float, free_nats: float) -> tuple[Tensor, Tensor]:
    """KL both ways with a floor, (dyn, rep); see :func:`reference.balanced_kl`."""
    if dispatch.backend("unimix_categorical", posterior) == "reference":
        return reference.balanced_kl(posterior, prior, unimix=unimix, free_nats=free_nats)
    from worldmodel.kernels.unimix_categorical import triton

    return triton.balanced_kl(posterior, prior, unimix, free_nats)
