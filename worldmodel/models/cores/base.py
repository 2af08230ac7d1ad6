"""The seam between a latent core and the model around it."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from worldmodel.tree import struct
from worldmodel.types import ArraySpec

S = TypeVar("S")


@struct
class CoreOutput(Generic[S]):
    """What filtering a sequence gives."""

    states: S
    """(B, T, ...) posterior states."""
    posterior: Tensor
    """(B, T, Z, K) logits of what was seen."""
    prior: Tensor
    """(B, T, Z, K) logits of what was expected."""


class Core(Protocol[S]):
    """Latent dynamics. Resets are an argument, never hidden state.

    A state of step t has seen the observation of step t: its stochastic part is a sample of the posterior, or, in a
    dream, of the prior. Its deterministic part comes from what was seen and done before t and gives the prior of t; or
    it has seen t as well, and gives that of t + 1 once an action is chosen (``sequence.SequenceCore``). A core whose
    states carry caches also has ``trim`` (``protocols.Trims``).
    """

    feature_dim: int
    deter_size: int
    stoch_size: int
    config: Any
    """Offers ``unimix``."""

    def initial(self, batch_size: int) -> S: ...
    def observe(self, state: S, tokens: Tensor, prev_action: Tensor, is_first: Tensor) -> CoreOutput[S]:
        """(B, ...), (B, T, E), (B, T, A), (B, T) -> (B, T, ...)."""
        ...

    def step(self, state: S, action: Tensor) -> S: ...
    def features(self, state: S) -> Tensor:
        """(..., deter_size + stoch_size), deterministic part first."""
        ...

    @property
    def memory_spec(self) -> dict[str, ArraySpec]:
        """What replay keeps of a state; {} where sequences begin from ``initial``."""
        ...

    def pack(self, state: S) -> dict[str, Tensor]: ...
    def unpack(self, memory: dict[str, Tensor]) -> S: ...


class CoreConfig(Protocol):
    """Names a core."""

    def build(self, action_size: int, token_size: int) -> Any: ...
