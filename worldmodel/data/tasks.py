"""Datasets of several tasks as one: observations of one width, actions of one size, and which task it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from worldmodel.data.episodes import Actions, Dataset, Episode, Header
from worldmodel.errors import DataError
from worldmodel.specs import ArraySpec, EnvSpec, TaskSpec


def of_tasks(parts: Sequence[Dataset], spec: EnvSpec) -> Dataset:
    """One after another, the first of the first task of ``spec``, as ``envs.multitask`` shows them.

    A dataset that knows its tasks, because it was collected there, is taken alone and as it is.

    Raises: DataError for another number of datasets than tasks, and where one is not of its task.
    """
    if len(parts) == 1 and "task" in parts[0].header.obs:
        return parts[0]
    if len(parts) != len(spec.tasks):
        names = ", ".join(task.name for task in spec.tasks)
        raise DataError(f"{spec.name} learns from a dataset of each task ({names}), in this order; got {len(parts)}")
    for part, task in zip(parts, spec.tasks):
        _check(part.header, task)
    vector, count = spec.obs["vector"], len(spec.tasks)
    header = Header(
        name="+".join(part.header.name for part in parts),
        obs={"task": ArraySpec(shape=(), dtype="int64", classes=count), "vector": vector},
        action=Actions(kind="continuous", size=spec.action.size),
    )

    def read() -> Iterator[Episode]:
        for at, part in enumerate(parts):
            for episode in part:
                yield _filled(episode, part.header, at, vector.shape[0], spec.action.size)

    return Dataset(header=header, read=read)


def _check(header: Header, task: TaskSpec) -> None:
    numbers = sum(prod(array.shape) for array in header.obs.values())
    has_images = any(array.dtype == "uint8" and len(array.shape) >= 2 for array in header.obs.values())
    if has_images or header.action.kind != "continuous":
        raise DataError(f"{header.name} has images or choices; tasks share vectors and continuous actions alone")
    if (numbers, header.action.size) != (task.obs, task.action):
        raise DataError(
            f"{header.name} is no data of {task.name}: {numbers} numbers seen and {header.action.size} done, expected "
            f"{task.obs} and {task.action}; give the datasets in the order of the tasks"
        )


def _filled(episode: Episode, header: Header, at: int, width: int, size: int) -> Episode:
    """The same episode among several tasks, its actions in [-1, 1]."""
    rows = len(episode) + 1
    seen = [np.asarray(episode.obs[key], np.float32).reshape(rows, -1) for key in sorted(episode.obs)]
    vector, action = np.zeros((rows, width), np.float32), np.zeros((rows - 1, size), np.float32)
    at_vector, unit = np.concatenate(seen, 1), header.action.to_unit(episode.action)
    vector[:, : at_vector.shape[1]], action[:, : unit.shape[1]] = at_vector, unit
    return replace(episode, obs={"task": np.full(rows, at, np.int64), "vector": vector}, action=action)
