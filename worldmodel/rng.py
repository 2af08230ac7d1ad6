"""Named random streams: acting, learning and evaluating never disturb each other, and each can be saved."""

from __future__ import annotations

import hashlib
from types import TracebackType

import torch
from torch import Tensor

CUDA_BYTES = 16
"""Size of a CUDA generator's state: seed and offset. A CPU generator's is far larger."""


class Stream:
    """A private state of torch's default generator on one device, installed while the ``with`` block runs.

    Code inside just calls ``torch.rand``: no generator argument travels through models and kernels, and a compiled
    region sees the ordinary default generator.

    >>> a, b = Stream(seed=1), Stream(seed=1)
    >>> with a: x = torch.rand(2)
    >>> with b: y = torch.rand(2)
    >>> bool((x == y).all())
    True
    """

    def __init__(self, *, seed: int = 0, state: Tensor | None = None, device: torch.device | str = "cpu") -> None:
        """Start from ``seed``, or go on from a saved ``state``.

        A state of the other kind of device (a checkpoint that moved between GPU and CPU) cannot be continued bit for
        bit: it becomes a seed here.
        """
        self._device = torch.device(device)
        if state is not None and (state.numel() == CUDA_BYTES) != (self._device.type == "cuda"):
            seed = int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7], "big")
            state = None
        if state is None:
            generator = torch.Generator(self._device if self._device.type == "cuda" else "cpu").manual_seed(seed)
            state = generator.get_state()
        self.state: Tensor = state
        self._outer: Tensor | None = None

    def __enter__(self) -> Stream:
        if self._outer is not None:
            raise RuntimeError("a Stream cannot be entered twice; use one stream for each purpose")
        self._outer = self._swap(self.state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._outer is not None
        self.state = self._swap(self._outer)
        self._outer = None

    def _swap(self, state: Tensor) -> Tensor:
        if self._device.type == "cuda":
            before = torch.cuda.get_rng_state(self._device)
            torch.cuda.set_rng_state(state, self._device)
        else:
            before = torch.get_rng_state()
            torch.set_rng_state(state)
        return before
