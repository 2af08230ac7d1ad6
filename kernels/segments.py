"""Episodes in a batch of sequences, as integers: how every sequence kernel is told of resets.

Step t belongs to segment ``segments[b, t]``, and the state before the sequence to segment 0. Where the number differs
from the step before, the past is forgotten. Numbers never decrease.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(is_first: Tensor) -> Tensor:
    """(B, L) bool to (B, L) int32: how many episodes have begun up to and including each step.

    An episode that begins at step 0 is segment 1, so the state before the sequence is dropped; one that goes on is 0.
    """
    return is_first.cumsum(1, dtype=torch.int32)


def goes_on(segments: Tensor) -> Tensor:
    """(B, L) int to (B, L) bool: the step sees what came before it; false where an episode begins."""
    before = torch.cat([torch.zeros_like(segments[:, :1]), segments[:, :-1]], 1)
    return segments == before
