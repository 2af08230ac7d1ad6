"""Minari's HDF5 (Farama): a folder ``data`` with main_data.hdf5, a group an episode, and metadata.json.

Files are read and written by h5py alone; every array is stored as it is, never as JPEG.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.episodes import Actions, Dataset, Episode, Header, ReadOptions, array_spec, picture
from worldmodel.data.files import hdf5, members, reading
from worldmodel.errors import DataError
from worldmodel.specs import ArraySpec

MAIN, META = "main_data.hdf5", "metadata.json"


class Minari:
    """Implements ``Format`` and ``Writes``."""

    name = "minari"
    summary = "a Minari dataset: data/main_data.hdf5 and data/metadata.json; minari:ID finds an installed one"

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and any((folder / META).is_file() for folder in (path, path / "data"))

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        folder = _folder(path)
        with reading(folder / META):
            meta = json.loads((folder / META).read_text())
            told = [json.loads(meta[f"{what}_space"]) for what in ("observation", "action")]
            env = json.loads(meta["env_spec"])["id"] if meta.get("env_spec") else meta.get("env", "")
        if meta.get("data_format", "hdf5") != "hdf5":
            raise DataError(f"{folder} holds {meta['data_format']}; this reads hdf5, so convert it with Minari first")
        leaves = dict(sorted(_leaves(told[0], folder)))
        name = str(meta.get("dataset_id", path.name))
        header = Header(name=name, obs=_specs(leaves), action=_actions(told[1], folder), env=str(env))
        start = int(told[1].get("start", 0))
        jpeg = bool(meta.get("jpeg_encoding", True))
        return Dataset(header=header, read=lambda: _episodes(folder / MAIN, leaves, header, start, jpeg))

    def write(self, path: Path, header: Header, episodes: Iterable[Episode]) -> int:
        folder = path / "data"
        folder.mkdir(parents=True)
        count, steps = -1, 0
        with hdf5(folder / MAIN, "w") as file:
            for count, episode in enumerate(episodes):
                group = file.create_group(f"episode_{count}")
                group.attrs["id"], group.attrs["total_steps"] = count, len(episode)
                for key, x in episode.obs.items():
                    group.create_dataset("observations" if len(header.obs) == 1 else f"observations/{key}", data=x)
                last = np.arange(len(episode)) == len(episode) - 1
                group["actions"], group["rewards"] = episode.action, episode.reward.astype(np.float64)
                group["terminations"], group["truncations"] = last & episode.terminated, last & episode.truncated
                steps += len(episode)
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", header.name).strip("-") or "dataset"
        meta = {
            "total_episodes": count + 1, "total_steps": steps, "data_format": "hdf5", "jpeg_encoding": False,
            "observation_space": json.dumps(_obs_space(header.obs)),
            "action_space": json.dumps(_action_space(header.action)), "env": header.env,
            "dataset_id": plain if re.search(r"-v\d+$", plain) else f"{plain}-v0",
            "minari_version": "0.5.4", "dataset_size": round((folder / MAIN).stat().st_size / 1e6, 1),
        }
        (folder / META).write_text(json.dumps(meta) + "\n")
        return count + 1


def _folder(path: Path) -> Path:
    """The folder of the two files. Raises DataError where there is none."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets"))
    for base in (path, path / "data", root / path / "data"):
        if (base / META).is_file():
            if not (base / MAIN).is_file():
                raise DataError(f"{base} has {META} but no {MAIN}; copy the whole dataset")
            return base
    raise DataError(f"there is no Minari dataset {path}, neither here nor in {root}; download it with Minari first")


def _leaves(space: dict[str, Any], folder: Path, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths inside an episode's observations ("" for a space of its own), and the spaces there."""
    if space["type"] == "Dict":
        for key, inner in space["subspaces"].items():
            yield from _leaves(inner, folder, (*path, key))
    elif space["type"] == "Tuple":
        for i, inner in enumerate(space["subspaces"]):
            yield from _leaves(inner, folder, (*path, f"_index_{i}"))
    elif space["type"] in ("Box", "Discrete", "MultiBinary", "MultiDiscrete"):
        yield "/".join(path), space
    else:
        raise DataError(f"{folder}: observations {'/'.join(path)!r} are {space['type']}, which no agent here can see")


def _specs(leaves: dict[str, dict[str, Any]]) -> dict[str, ArraySpec]:
    out = {}
    for key, space in leaves.items():
        if space["type"] == "Discrete":
            spec = ArraySpec(shape=(), dtype="int64", classes=int(space["n"]))
        else:
            shape = space.get("shape") or np.shape(space.get("nvec", ())) or (int(np.prod(space.get("n", 1))),)
            spec = array_spec(picture(np.empty((1, *shape), space.get("dtype", "int64"))))
        out[key or ("image" if spec.is_image else "vector")] = spec
    return out


def _actions(space: dict[str, Any], folder: Path) -> Actions:
    if space["type"] == "Discrete":
        return Actions(kind="discrete", size=int(space["n"]))
    if space["type"] != "Box":
        raise DataError(f"{folder}: actions are {space['type']}, expected Box or Discrete")
    low, high = (tuple(float(x) for x in np.ravel(space[side])) for side in ("low", "high"))
    return Actions(kind="continuous", size=len(low), low=low, high=high)


def _episodes(
    path: Path, leaves: dict[str, dict[str, Any]], header: Header, start: int, jpeg: bool
) -> Iterator[Episode]:
    with hdf5(path) as file:
        names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:]))
        if not names:
            raise DataError(f"{path} holds no episodes")
        for name in names:
            where = f"{path}, {name}"
            with reading(where):
                group = file[name]
                members(group, ("observations", "actions", "rewards", "terminations", "truncations"), where)
                obs = {}
                for (inside, space), key in zip(leaves.items(), header.obs, strict=True):
                    if inside:
                        members(group["observations"], (inside.split("/")[0],), f"{where}, observations")
                    found = group["observations"][inside] if inside else group["observations"]
                    if not hasattr(found, "shape"):
                        raise DataError(f"{where}: observations {inside!r} are a group, in metadata.json an array")
                    values = found[()]
                    # blobs of one length lie in a rectangle
                    if jpeg and (values.dtype == object or (len(space["shape"]) > 1 and values.ndim == 2)):
                        values = _decoded(values, tuple(space["shape"]))
                    obs[key] = picture(values) if space["type"] != "Discrete" else values - int(space.get("start", 0))
                action, reward = group["actions"][()], group["rewards"][()]
                ends = [group[key][()].astype(bool) for key in ("terminations", "truncations")]
            for key, flags in zip(("terminations", "truncations"), ends):
                if flags.shape != reward.shape or flags[:-1].any():
                    raise DataError(f"{where}: {key} must be ({len(reward)},), true at most at the last step")
            terminated, truncated = (bool(flags[-1]) for flags in ends)
            yield Episode(
                obs=obs, action=action - start if header.action.kind == "discrete" else action.reshape(len(action), -1),
                reward=reward, terminated=terminated, truncated=truncated or not terminated, source=where,
            )


def _decoded(blobs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(blob.tobytes()))).reshape(shape) for blob in blobs])


def _obs_space(obs: dict[str, ArraySpec]) -> dict[str, Any]:
    spaces = {key: _space(array) for key, array in obs.items()}
    return next(iter(spaces.values())) if len(spaces) == 1 else {"type": "Dict", "subspaces": spaces}


def _space(array: ArraySpec) -> dict[str, Any]:
    if array.classes is not None and array.shape == ():
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": array.classes}
    low, high = (0, 255) if array.dtype == "uint8" else (float("-inf"), float("inf"))
    full = {side: np.full(array.shape, value).tolist() for side, value in (("low", low), ("high", high))}
    return {"type": "Box", "dtype": array.dtype, "shape": list(array.shape), **full}


def _action_space(action: Actions) -> dict[str, Any]:
    if action.kind == "discrete":
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": action.size}
    low = action.low or (-1.0,) * action.size
    high = action.high or (1.0,) * action.size
    return {"type": "Box", "dtype": "float32", "shape": [action.size], "low": list(low), "high": list(high)}


FORMAT = Minari()
