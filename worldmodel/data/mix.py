"""One dataset of several, in shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from worldmodel.data.episodes import Dataset, Episode
from worldmodel.errors import DataError


def parse_shares(words: Sequence[str]) -> list[tuple[str, float]]:
    """["A:0.5", "B:0.5"] -> [("A", 0.5), ("B", 0.5)]; a word without a number has share 1. Shares need not sum to 1.

    >>> parse_shares(["a.hdf5:3", "minari:x-v0:1"])
    [('a.hdf5', 0.75), ('minari:x-v0', 0.25)]
    """
    found = []
    for word in words:
        path, _, share = word.rpartition(":")
        try:
            found.append((path, float(share)) if path else (word, 1.0))
        except ValueError:
            found.append((word, 1.0))
    total = sum(share for _, share in found)
    if not found or any(not 0 < share < float("inf") for _, share in found):
        raise DataError(f"shares must be positive, as in A:0.5 B:0.5, got {' '.join(words) or 'nothing'}")
    return [(path, share / total) for path, share in found]


def mix(datasets: Sequence[Dataset], shares: Sequence[float], *, steps: int = 0, seed: int = 0) -> Dataset:
    """Whole episodes of each, drawn without replacement until each has its share of the transitions.

    Args: steps in all; 0: as many as go without drawing one twice.
    Raises: DataError where headers differ, or one has too few for its share of ``steps``.
    """
    first = datasets[0].header
    for other in datasets[1:]:
        mine, theirs = (({k: (x.shape, x.dtype) for k, x in h.obs.items()}, h.action) for h in (first, other.header))
        if mine != theirs:
            raise DataError(
                f"{first.name} and {other.header.name} do not mix: observations and actions are {mine} and {theirs}"
            )
    lengths = [[len(episode) for episode in dataset] for dataset in datasets]
    most = min(sum(each) / share for each, share in zip(lengths, shares))
    if steps > most * 1.001:
        raise DataError(f"{steps:,} transitions in these shares are more than there are; at most {int(most):,}")
    wanted = [share * (steps or most) for share in shares]
    streams = [np.random.default_rng([seed, i]) for i in range(len(datasets))]
    kept = [_choose(each, target, rng) for each, target, rng in zip(lengths, wanted, streams)]

    def read() -> Iterator[Episode]:
        for dataset, chosen in zip(datasets, kept):
            for index, episode in enumerate(dataset.read()):
                if index in chosen:
                    yield episode

    return Dataset(header=first, read=read)


def _choose(lengths: list[int], target: float, rng: np.random.Generator) -> set[int]:
    """Episodes whose lengths sum to about ``target``: the last one is taken where that comes closer."""
    chosen: set[int] = set()
    held = 0
    for index in rng.permutation(len(lengths)):
        if held + lengths[index] / 2 > target and chosen:
            break
        chosen.add(int(index))
        held += lengths[index]
    return chosen
