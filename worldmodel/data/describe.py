"""What a dataset holds, read once from its first episode to its last."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldmodel.data.episodes import Dataset
from worldmodel.errors import DataError


def describe(dataset: Dataset) -> dict[str, Any]:
    """Everything as plain JSON: header, counts, returns, ranges. Every episode is checked on the way.

    Raises: DataError for the first that is broken, and for a dataset without episodes.
    """
    header = dataset.header
    returns, lengths = [], []
    terminated = truncated = invented = nbytes = 0
    low = {key: np.inf for key in ("action", "reward", *header.obs)}
    high = {key: -np.inf for key in low}
    zeros = firsts = 0
    for episode in dataset:
        returns.append(float(np.sum(episode.reward, dtype=np.float64)))
        lengths.append(len(episode))
        terminated, truncated = terminated + episode.terminated, truncated + episode.truncated
        invented += episode.invented
        for key, value in (("action", episode.action), ("reward", episode.reward), *episode.obs.items()):
            low[key], high[key] = min(low[key], float(value.min())), max(high[key], float(value.max()))
            nbytes += value.nbytes
        zeros += int(not np.any(episode.action[0])) + int(not np.any(episode.action[-1]))
        firsts += 2
    if not returns:
        raise DataError(f"{header.name} holds no episodes")
    quantiles = np.quantile(returns, [0, 0.25, 0.5, 0.75, 1])
    return {
        "name": header.name, "env": header.env, "episodes": len(returns), "transitions": sum(lengths),
        "bytes": nbytes, "terminated": terminated, "truncated": truncated,
        "both": terminated + truncated - len(returns), "invented_last_observations": invented,
        "length": {"min": min(lengths), "mean": float(np.mean(lengths)), "max": max(lengths)},
        "return": {"mean": float(np.mean(returns)), "std": float(np.std(returns)),
                   **dict(zip(("min", "q25", "median", "q75", "max"), map(float, quantiles)))},
        "observations": {
            key: {"shape": list(array.shape), "dtype": array.dtype, "low": low[key], "high": high[key]}
            for key, array in header.obs.items()
        },
        "action": {
            "kind": header.action.kind, "size": header.action.size, "low": low["action"], "high": high["action"],
            "bounds": None if header.action.low is None else [list(header.action.low), list(header.action.high or ())],
            "zero_at_ends": zeros / firsts,
        },
        "reward": {"low": low["reward"], "high": high["reward"]},
        "notes": _notes(header.action, low, high, invented, zeros / firsts),
    }


def _notes(action: Any, low: dict[str, float], high: dict[str, float], invented: int, zeros: float) -> list[str]:
    """What should be looked at before training on it, a sentence each."""
    out = []
    if invented:
        out.append(
            f"{invented} episodes end where the file has no last observation; the one before it stands in its place, "
            "which a world model should not learn from"
        )
    if action.kind == "continuous":
        least, most = action.bounds()
        if low["action"] < least.min() - 1e-3 or high["action"] > most.max() + 1e-3:
            out.append(
                f"actions reach from {low['action']:g} to {high['action']:g}, beyond their bounds; give these with "
                "--low and --high"
            )
        if zeros > 0.4:
            out.append("the first or last action of most episodes is zero: is the alignment right? See --align")
    return out


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    returns, length, action = found["return"], found["length"], found["action"]
    size = f"{found['bytes'] / 2**20:.1f} MiB" if found["bytes"] >= 2**20 else f"{found['bytes'] / 2**10:.1f} KiB"
    lines = [
        f"{found['name']}" + (f" of {found['env']}" if found["env"] else ""),
        f"  {found['episodes']:,} episodes, {found['transitions']:,} transitions, {size}",
        f"  {found['terminated']:,} terminated, {found['truncated']:,} truncated"
        + (f" ({found['both']:,} both)" if found["both"] else ""),
        f"  length   {length['min']} to {length['max']}, mean {length['mean']:.1f}",
        f"  return   mean {returns['mean']:.4g}, std {returns['std']:.3g}; from {returns['min']:.4g} by quarters "
        f"{returns['q25']:.4g}, {returns['median']:.4g}, {returns['q75']:.4g} to {returns['max']:.4g}",
        f"  reward   {found['reward']['low']:g} to {found['reward']['high']:g}",
    ]
    said = f"  action   {action['kind']} {action['size']}, {action['low']:g} to {action['high']:g}"
    bounds = action["bounds"]
    lines.append(said + (f", bounds {_span(bounds[0])} to {_span(bounds[1])}" if bounds else ""))
    lines += [
        f"  obs      {key} {tuple(array['shape'])} {array['dtype']}, {array['low']:g} to {array['high']:g}"
        for key, array in found["observations"].items()
    ]
    return "\n".join([*lines, *(f"  note: {note}" for note in found["notes"])])


def _span(values: list[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else "[" + ", ".join(f"{x:g}" for x in values) + "]"
