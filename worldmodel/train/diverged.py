"""What is not finite, and what is kept of a run that diverged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.errors import StorageError
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.types import Batch


def non_finite(groups: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """"group/name" of every floating tensor that holds a NaN or an infinity."""
    return [
        f"{group}/{name}"
        for group, held in groups.items()
        for name, x in held.items()
        if x.is_floating_point() and not bool(torch.isfinite(x).all())
    ]


def dump(
    folder: Path, step: int, agent: Mapping[str, Mapping[str, Tensor]], batch: Batch | None, meta: Mapping[str, Any]
) -> str:
    """Write the last batch ("batch") and the agent with its random streams into ``folder``, in the form of a
    checkpoint and apart from these, so that no resume takes it; ``open_checkpoint`` reads it. Says where, or why not.
    """
    tensors = {**agent, **({} if batch is None else {"batch": _named(batch)})}
    try:
        path = Checkpoints(folder, keep=1).save(step, tensors=tensors, documents={}, meta=meta)
    except StorageError as error:
        return f"the batch and the agent could not be kept ({error})"
    return f"the last batch and the agent are kept in {path}"


def _named(batch: Batch) -> dict[str, Tensor]:
    """Tensors by field, those of a mapping and of another batch as "field/key"."""
    named: dict[str, Tensor] = {}
    for field in fields(batch):  # pyright: ignore[reportArgumentType]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            named[field.name] = value
        elif isinstance(value, Batch):
            named |= {f"{field.name}/{key}": x for key, x in _named(value).items()}
        elif isinstance(value, Mapping):
            named |= {f"{field.name}/{key}": x for key, x in value.items()}
    return named
