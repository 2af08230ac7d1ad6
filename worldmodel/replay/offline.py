"""A dataset as a replay: every step of it once and in order, and nothing is ever added."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch

from worldmodel.data.episodes import Dataset, Episode, Header
from worldmodel.errors import DataError, UserError
from worldmodel.replay.config import ReplayConfig
from worldmodel.replay.ring import RingReplay
from worldmodel.replay.storage import bytes_per_step, choose_device
from worldmodel.types import ArraySpec, Batch, EnvSpec

BEYOND = 1e-3
"""By how much an action may exceed its bounds, for rounding."""


class Fit:
    """Turns episodes of a dataset into steps of an environment's spec: names, shapes, types and units."""

    def __init__(self, header: Header, spec: EnvSpec) -> None:
        """Raises: DataError where the dataset is not one of such an environment."""
        self.header, self.spec = header, spec
        theirs, ours = header.action, spec.action
        fits = theirs.size == ours.size or (theirs.kind == "discrete" and theirs.size < ours.size)
        if theirs.kind != ours.kind or not fits:
            raise DataError(
                f"actions of {header.name} are {theirs.kind} {theirs.size}, of {spec.name} {ours.kind} {ours.size}; "
                f"take the environment that the data is of"
            )
        self.source = {key: self._find(key, array) for key, array in spec.obs.items()}

    def _find(self, key: str, array: ArraySpec) -> str:
        """The dataset's name of an observation: the same, or the only one where there is one on both sides."""
        have = self.header.obs
        found = key if key in have else next(iter(have)) if len(have) == len(self.spec.obs) == 1 else ""
        if not found:
            raise DataError(f"{self.header.name} has no observation {key!r} of {self.spec.name}; it has {sorted(have)}")
        given = have[found]
        same = given.shape == array.shape or (not array.is_image and prod(given.shape) == prod(array.shape))
        same |= array.is_image and (*given.shape, 1) == array.shape
        if not same or array.is_image != (given.dtype == "uint8" and len(given.shape) >= 2):
            raise DataError(
                f"observation {found!r} of {self.header.name} is {given.dtype} {given.shape}, of {self.spec.name} "
                f"{array.dtype} {array.shape}; set the environment to what the data has, or convert the data"
            )
        return found

    def steps(self, episode: Episode) -> Batch:
        """(1, T + 1, ...) the steps of an episode. Raises DataError for actions beyond their bounds."""
        rows = len(episode) + 1
        obs = {}
        for key, array in self.spec.obs.items():
            value = np.ascontiguousarray(episode.obs[self.source[key]].reshape(rows, *array.shape))
            obs[key] = torch.from_numpy(value.astype(array.dtype, copy=False)).unsqueeze(0)
        action = np.zeros((rows, self.spec.action.size), np.float32)
        unit = self.header.action.to_unit(episode.action)
        if self.spec.action.kind == "continuous" and self.spec.action.is_bounded:
            if (most := float(np.abs(unit).max())) > 1 + BEYOND:
                raise DataError(
                    f"{episode.source}: action reaches {most:.3g} times its bounds; give these, as in `worldmodel data "
                    f"convert SRC DST --low -2 --high 2`"
                )
            unit = unit.clip(-1, 1)
        action[:-1, : unit.shape[1]] = unit
        at = torch.arange(rows).unsqueeze(0)
        taken = torch.from_numpy(action).unsqueeze(0)
        reward = torch.from_numpy(np.append(np.float32(0), episode.reward.astype(np.float32))).unsqueeze(0)
        is_last = at == rows - 1
        return Batch(
            obs=obs, action=taken, prev_action=taken.roll(1, 1), reward=reward, is_first=at == 0, is_last=is_last,
            is_terminal=is_last & episode.terminated,
        )


def fill_replay(
    dataset: Dataset, config: ReplayConfig, spec: EnvSpec, memory_spec: dict[str, ArraySpec], *,
    device: torch.device, seed: int, scratch: Path | None = None,
) -> RingReplay:
    """A replay of one stream with every step of a dataset, which is read twice, an episode at a time.

    What it saves is what training changes; the steps are known by their digest, and filled in anew by who resumes.

    Raises: DataError for data that is broken, does not fit ``spec`` or is too short; UserError for want of memory.
    """
    fit = Fit(dataset.header, spec)
    rows = 1 + sum(len(episode) + 1 for episode in dataset)
    if rows < config.length + 2:
        most = f"set replay.length to at most {rows - 2}"
        raise DataError(f"{dataset.header.name} has {rows - 1} steps, too few for one sequence; {most}")
    # without a queue of fresh sequences: all of this is old
    config = replace(config, capacity=rows, online_fraction=0.0, min_starts=1)
    try:
        home = choose_device(config, bytes_per_step(spec, memory_spec, config.sampler), 1, device)
    except UserError:
        if config.device != "auto":
            raise
        config, home = replace(config, device="disk"), torch.device("cpu")
    replay = RingReplay(
        config, spec, memory_spec, 1, home=home, device=device, seed=seed, scratch=scratch, prefix="data-"
    )
    digest = hashlib.sha256()
    for at, episode in enumerate(dataset):
        steps = fit.steps(episode)
        if not at:
            # an episode of no transitions goes before, so that a sequence may start at the first step of the data
            replay.extend(_alone(steps))
        for x in (*steps.obs.values(), steps.action, steps.reward, steps.is_terminal):
            digest.update(x.numpy().tobytes())
        replay.extend(steps)
    replay.take_as_known(digest.hexdigest())
    return replay


def _alone(steps: Batch) -> Batch:
    first = torch.ones(1, 1, dtype=torch.bool)
    return replace(
        steps, obs={key: x[:, :1] for key, x in steps.obs.items()}, action=torch.zeros_like(steps.action[:, :1]),
        prev_action=torch.zeros_like(steps.action[:, :1]), reward=torch.zeros(1, 1), is_first=first, is_last=first,
        is_terminal=~first,
    )
