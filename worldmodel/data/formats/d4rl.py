"""D4RL's HDF5 layout (Fu et al. 2020): all transitions of all episodes in flat arrays.

Row i has the observation left, the action, the reward for it, and whether the episode ended (``terminals``) or was cut
(``timeouts``) on arriving. Where the file has ``next_observations`` these are used, and an episode is cut wherever
what follows is something else: no transition is lost or made up. Where it has none, what a ``timeouts`` row led to is
not in the file and that row gives an episode its last observation only; a ``terminals`` row keeps its reward, and its
last observation is invented.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.episodes import Actions, Dataset, Episode, Header, ReadOptions, array_spec, obs_key, picture
from worldmodel.data.files import hdf5, is_hdf5, members, reading
from worldmodel.errors import DataError

CHUNK = 65_536
"""Rows compared at once."""


class D4RL:
    """Implements ``Format`` and ``Writes``."""

    name = "d4rl"
    summary = "D4RL's HDF5: flat observations, actions, rewards, terminals, timeouts"

    def recognises(self, path: Path) -> bool:
        if not is_hdf5(path):
            return False
        with hdf5(path) as file:
            return "observations" in file and "terminals" in file

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        with hdf5(path) as file, reading(path):
            members(file, ("observations", "actions", "rewards", "terminals"), str(path))
            if "timeouts" not in file and not options.max_steps and "next_observations" not in file:
                raise DataError(
                    f"{path} has no 'timeouts', so that where episodes were cut is not to be seen; say after how many "
                    f"steps with --max-steps"
                )
            rows = _rows(file, str(path))
            actions = file["actions"]
            if np.issubdtype(actions.dtype, np.integer):
                known = file.get("metadata/action_choices")
                size = int(known[()]) if known is not None else int(actions[()].max()) + 1
                action = Actions(kind="discrete", size=size)
            else:
                action = options.bounded(int(np.prod(actions.shape[1:])))
                if not options.low and "metadata/action_low" in file:
                    low, high = (tuple(map(float, file[f"metadata/action_{side}"][()])) for side in ("low", "high"))
                    action = Actions(kind="continuous", size=action.size, low=low, high=high)
            obs = {key: array_spec(picture(x[:1])) for key, x in _observations(file, "observations").items()}
            env = str(file.attrs.get("env", ""))
        header = Header(name=path.stem, obs=obs, action=action, env=env)
        return Dataset(header=header, read=lambda: _episodes(path, rows, options.max_steps))

    def write(self, path: Path, header: Header, episodes: Iterable[Episode]) -> int:
        """Every transition with its ``next_observations``, so that nothing is lost."""
        count = 0
        with hdf5(path, "w") as file:
            for count, episode in enumerate(episodes, 1):  # noqa: B007
                _append(file, _columns(episode, plain=len(header.obs) == 1))
            file.attrs["env"] = header.env
            if header.action.low is not None:
                file["metadata/action_low"], file["metadata/action_high"] = header.action.low, header.action.high
            if header.action.kind == "discrete":
                file["metadata/action_choices"] = header.action.size
        return count


def _rows(file: Any, where: str) -> int:
    rows = len(file["actions"])
    for key in ("rewards", "terminals", "timeouts"):
        if key in file and file[key].shape not in ((rows,), (rows, 1)):
            raise DataError(f"{where}: {key!r} must have shape ({rows},) as 'actions' has, got {file[key].shape}")
    for prefix in ("observations", "next_observations"):
        for key, value in _observations(file, prefix).items() if prefix in file else ():
            if len(value) != rows:
                raise DataError(f"{where}: {prefix!r} ({key}) must have {rows} rows as 'actions' has, got {len(value)}")
    if not rows:
        raise DataError(f"{where} holds no transitions")
    return rows


def _observations(file: Any, prefix: str) -> dict[str, Any]:
    """HDF5 datasets by our key: one of them, or a group."""
    found = file[prefix]
    if hasattr(found, "shape"):
        return {obs_key(array_spec(picture(found[:1]))): found}
    out: dict[str, Any] = {}
    found.visititems(lambda key, value: out.__setitem__(key, value) if hasattr(value, "shape") else None)
    return dict(sorted(out.items()))


def _episodes(path: Path, rows: int, max_steps: int) -> Iterator[Episode]:
    with hdf5(path) as file, reading(path):
        ended = file["terminals"][()].reshape(-1).astype(bool)
        cut = file["timeouts"][()].reshape(-1).astype(bool) if "timeouts" in file else np.zeros(rows, bool)
        has_next = "next_observations" in file
        over = ended | cut | _seams(file, rows) if has_next else ended | cut
        begin, index = 0, 0
        while begin < rows:
            end = _end(begin, over, max_steps)
            where = f"{path}, episode {index} (rows {begin} to {end - 1})"
            terminated = bool(ended[end - 1])
            truncated = bool(cut[end - 1]) or end - begin == max_steps or not terminated
            # without next_observations the last row's arrival is not in the file
            steps = end - begin - (not has_next and not terminated)
            if steps:
                obs = {}
                for key, now in _observations(file, "observations").items():
                    after = _observations(file, "next_observations")[key] if has_next else now
                    last = begin + steps if not has_next and not terminated else end - 1
                    obs[key] = picture(np.concatenate([now[begin : begin + steps], after[last : last + 1]]))
                action = file["actions"][begin : begin + steps]
                yield Episode(
                    obs=obs, action=action if action.ndim == 1 else action.reshape(steps, -1),
                    reward=file["rewards"][begin : begin + steps].reshape(-1), terminated=terminated,
                    truncated=truncated, source=where, invented=terminated and not has_next,
                )
            begin, index = end, index + 1


def _end(begin: int, over: np.ndarray, max_steps: int) -> int:
    """One past the last row of the episode that begins at ``begin``."""
    limit = min(begin + max_steps, len(over)) if max_steps else len(over)
    span = over[begin:limit]
    first = int(span.argmax())
    return begin + first + 1 if span[first] else limit


def _seams(file: Any, rows: int) -> np.ndarray:
    """(rows,) True where the row after is not what was arrived at; read a part at a time."""
    found = np.zeros(rows, bool)
    for first in range(0, rows - 1, CHUNK):
        last = min(first + CHUNK, rows - 1)
        for key, now in _observations(file, "observations").items():
            after = _observations(file, "next_observations")[key][first:last]
            follows = now[first + 1 : last + 1]
            if np.issubdtype(after.dtype, np.floating):
                same = np.isclose(follows, after, rtol=1e-4, atol=1e-5, equal_nan=True)
            else:
                same = follows == after
            found[first:last] |= ~same.reshape(last - first, -1).all(-1)
    return found


def _columns(episode: Episode, *, plain: bool) -> dict[str, np.ndarray]:
    steps = len(episode)
    at_end = np.arange(steps) == steps - 1
    out = {
        "actions": episode.action, "rewards": episode.reward,
        "terminals": at_end & episode.terminated, "timeouts": at_end & episode.truncated,
    }
    for key, x in episode.obs.items():
        tail = "" if plain else f"/{key}"
        out |= {f"observations{tail}": x[:-1], f"next_observations{tail}": x[1:]}
    return out


def _append(file: Any, columns: dict[str, np.ndarray]) -> None:
    for key, value in columns.items():
        if key not in file:
            file.create_dataset(key, data=value, maxshape=(None, *value.shape[1:]), chunks=True)
        else:
            held = file[key]
            held.resize(len(held) + len(value), axis=0)
            held[-len(value) :] = value


FORMAT = D4RL()
