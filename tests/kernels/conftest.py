"""What every kernel test runs under: outputs that a kernel forgot to write are NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from worldmodel.kernels import dispatch


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = allocate(*args, **kwargs)
        if out.is_floating_point():
            return out.fill_(torch.nan)
        return out.fill_(True if out.dtype == torch.bool else torch.iinfo(out.dtype).min)

    return poisoned


@pytest.fixture
def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Triton runs every kernel, on the GPU or interpreted; uninitialised memory holds NaN. Gives the device."""
    pytest.importorskip("triton")
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    with dispatch.using("triton"):
        yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
