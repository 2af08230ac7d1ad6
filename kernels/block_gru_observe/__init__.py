"""The whole observe loop of a block-GRU RSSM as one differentiable operation."""

from worldmodel.kernels.block_gru_observe.fused import observe
from worldmodel.kernels.block_gru_observe.reference import Weights

__all__ = ["Weights", "observe"]
