"""NeoRL's npz (Qin et al. 2022): flat transitions obs, action, reward, next_obs, done, and ``index``, the row that each
trajectory begins at. A trajectory that is not done at its end was cut, and so is one of ``max_steps`` steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worldmodel.data.episodes import Dataset, Episode, Header, ReadOptions, array_spec, obs_key, picture
from worldmodel.data.files import load_npz, members, npz_keys
from worldmodel.errors import DataError

KEYS = ("obs", "next_obs", "action", "reward", "done", "index")


class NeoRL:
    """Implements ``Format``."""

    name = "neorl"
    summary = "NeoRL's npz: obs, next_obs, action, reward, done, index"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and set(KEYS) <= set(npz_keys(path))

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        if not path.is_file():
            raise DataError(f"{path} is no file; NeoRL's data is one .npz")
        rows = load_npz(path)
        members(rows, KEYS, str(path))
        obs = array_spec(picture(rows["obs"][:1]))
        header = Header(
            name=path.stem, obs={obs_key(obs): obs}, action=options.bounded(int(np.prod(rows["action"].shape[1:])))
        )
        return Dataset(header=header, read=lambda: _episodes(path, rows, obs_key(obs), options.max_steps))


def _episodes(path: Path, rows: dict[str, np.ndarray], key: str, max_steps: int) -> Iterator[Episode]:
    total = len(rows["reward"])
    for name in KEYS[:-1]:
        if len(rows[name]) != total:
            raise DataError(f"{path}: {name!r} has {len(rows[name])} rows and 'reward' {total}; it is damaged")
    starts = rows["index"].reshape(-1).astype(int)
    if not len(starts) or starts[0] != 0 or (np.diff(starts) < 1).any() or starts[-1] >= total:
        raise DataError(f"{path}: 'index' must be rows that trajectories begin at, rising from 0 to below {total}")
    done = rows["done"].reshape(-1).astype(bool)
    for number, (begin, end) in enumerate(zip(starts, np.append(starts[1:], total))):
        where = f"{path}, episode {number} (rows {begin} to {end - 1})"
        now, after = rows["obs"][begin:end], rows["next_obs"][begin:end]
        if done[begin : end - 1].any():
            raise DataError(f"{where}: it is done before its end; 'index' and 'done' contradict each other")
        if not np.allclose(now[1:], after[:-1], rtol=1e-4, atol=1e-5, equal_nan=True):
            raise DataError(f"{where}: 'next_obs' of a row is not 'obs' of the row after it")
        cut = end - begin == max_steps
        terminated = bool(done[end - 1]) and not cut
        yield Episode(
            obs={key: picture(np.concatenate([now, after[-1:]]))},
            action=rows["action"][begin:end].reshape(end - begin, -1),
            reward=rows["reward"][begin:end].reshape(-1), terminated=terminated, truncated=not terminated, source=where,
        )


FORMAT = NeoRL()
