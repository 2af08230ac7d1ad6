"""V-D4RL's HDF5 (Lu et al. 2022), 84 x 84 pixels: flat files of rows, each with the action and the reward that led to
its observation (channels first), step_type 0 where an episode begins and 2 where it is over, discount 0 where it ended.
Its npz files, 64 x 64, are Dreamer's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worldmodel.data.episodes import Dataset, Episode, Header, ReadOptions, array_spec, obs_key, picture
from worldmodel.data.files import hdf5, is_hdf5, members, reading
from worldmodel.errors import DataError

KEYS = ("observation", "action", "reward", "discount", "step_type")


class VD4RL:
    """Implements ``Format``."""

    name = "vd4rl"
    summary = "V-D4RL's HDF5, 84 x 84 pixels: a file, or a folder of them"

    def recognises(self, path: Path) -> bool:
        first = next(iter(_files(path)), None)
        if first is None or not is_hdf5(first):
            return False
        with hdf5(first) as file:
            return "step_type" in file

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        files = _files(path)
        if not files:
            raise DataError(f"{path} has no .hdf5 files; give the folder that holds them")
        with hdf5(files[0]) as file, reading(files[0]):
            members(file, KEYS, str(files[0]))
            obs = array_spec(picture(file["observation"][:1]))
            action = options.bounded(int(np.prod(file["action"].shape[1:])))
        header = Header(name=path.stem, obs={obs_key(obs): obs}, action=action)
        return Dataset(header=header, read=lambda: _episodes(files, obs_key(obs)))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted([*path.glob("*.hdf5"), *path.glob("*.h5")])


def _episodes(files: list[Path], key: str) -> Iterator[Episode]:
    index = 0
    for path in files:
        with hdf5(path) as file, reading(path):
            members(file, KEYS, str(path))
            rows = len(file["reward"])
            for name in KEYS:
                if len(file[name]) != rows:
                    raise DataError(f"{path}: {name!r} has {len(file[name])} rows and 'reward' {rows}; it is damaged")
            kind = file["step_type"][()].reshape(-1)
            starts = np.flatnonzero(kind == 0)
            if not len(starts) or starts[0] != 0:
                raise DataError(f"{path}: the first row must begin an episode (step_type 0), got {kind[:1]}")
            for begin, end in zip(starts, np.append(starts[1:], rows)):
                where = f"{path}, episode {index} (rows {begin} to {end - 1})"
                index += 1
                if end - begin < 2:
                    continue
                terminated = bool(kind[end - 1] == 2 and float(file["discount"][end - 1].item()) == 0)
                yield Episode(
                    obs={key: picture(file["observation"][begin:end])},
                    action=file["action"][begin + 1 : end].reshape(end - begin - 1, -1),
                    reward=file["reward"][begin + 1 : end].reshape(-1),
                    terminated=terminated, truncated=not terminated, source=where,
                )


FORMAT = VD4RL()
