"""LeRobot's folders, versions 2 and 3: ``meta/info.json`` names the features, parquet files in ``data`` hold rows of
them, an episode's in their order, one episode or many to a file. What a robot felt is read; videos are not.

Row t has what was seen, the action chosen there, and ``next.reward``, where there is one, for arriving at row t + 1.
What the last action led to is not recorded. Recordings end (``next.done``) because somebody stopped them: only where
the task succeeded there (``next.success``) did it end, and the last observation stands for the one that is missing;
elsewhere the last row is where the episode was cut. Without rewards all are 0: such data is for cloning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.episodes import Dataset, Episode, Header, ReadOptions
from worldmodel.data.files import reading
from worldmodel.errors import DataError
from worldmodel.specs import ArraySpec

INFO = Path("meta") / "info.json"
ROWS = 4096
"""Read at once."""


class LeRobot:
    """Implements ``Format``."""

    name = "lerobot"
    summary = "LeRobot's folder, what robots feel without videos: meta/info.json, data/**/*.parquet; read only"

    def recognises(self, path: Path) -> bool:
        return (path / INFO).is_file()

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        where = path / INFO
        with reading(where):
            features = json.loads(where.read_text())["features"]
        felt = {key: tuple(x["shape"]) for key, x in features.items() if _is_felt(key, x)}
        if "action" not in features:
            raise DataError(f"{where}: features have no 'action'; they are {', '.join(map(repr, sorted(features)))}")
        if not felt:
            raise DataError(f"{where}: no observation of numbers; videos are not read, and there is nothing else")
        names = {key: "vector" if len(felt) == 1 else key.removeprefix("observation.") for key in felt}
        files = sorted((path / "data").rglob("*.parquet"))
        if not files:
            raise DataError(f"{path / 'data'} has no parquet files; the folder is not whole")
        header = Header(
            name=path.name, obs={names[key]: ArraySpec(shape=shape, dtype="float32") for key, shape in felt.items()},
            action=options.bounded(int(np.prod(features["action"]["shape"]))),
        )
        paid = [key for key in ("next.reward", "next.success") if key in features]
        return Dataset(header=header, read=lambda: _episodes(files, felt, names, paid))


def _is_felt(key: str, feature: dict[str, Any]) -> bool:
    return key.startswith("observation.") and feature["dtype"] in ("float32", "float64")


def _episodes(
    files: list[Path], felt: dict[str, tuple[int, ...]], names: dict[str, str], paid: list[str]
) -> Iterator[Episode]:
    """Whole ones, each from the rows that follow each other with one ``episode_index``."""
    wanted = ["episode_index", "frame_index", "action", *felt, *paid]
    held: dict[str, np.ndarray] = {}
    for file in files:
        for rows in _tables(file, wanted):
            held = {key: np.concatenate([held[key], x]) for key, x in rows.items()} if held else rows
            seams = np.flatnonzero(np.diff(held["episode_index"])) + 1
            for begin, end in zip([0, *seams[:-1]], seams):
                yield from _episode(file, {key: x[begin:end] for key, x in held.items()}, felt, names)
            if len(seams):
                held = {key: x[seams[-1] :] for key, x in held.items()}
    if held:
        yield from _episode(files[-1], held, felt, names)


def _tables(file: Path, wanted: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Columns of a parquet file, some rows at a time."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"{file} is a parquet file, which takes pyarrow; install it with pip install 'worldmodel[lerobot]'"
        ) from error
    with reading(file):
        table = parquet.ParquetFile(file)
        if missing := [key for key in wanted if key not in table.schema_arrow.names]:
            raise KeyError(f"no column {missing[0]!r} in it")
        for batch in table.iter_batches(ROWS, columns=wanted):
            yield {key: np.array(batch.column(key).to_pylist()) for key in wanted}


def _episode(
    file: Path, rows: dict[str, np.ndarray], felt: dict[str, tuple[int, ...]], names: dict[str, str]
) -> Iterator[Episode]:
    """The episode, unless it has no transition."""
    count, where = len(rows["action"]), f"{file}, episode {int(rows['episode_index'][0])}"
    if (rows["frame_index"] != np.arange(count)).any():
        raise DataError(f"{where}: its 'frame_index' does not count from 0 in steps of 1; rows are missing or mixed up")
    terminated = "next.success" in rows and bool(np.ravel(rows["next.success"][-1])[0])
    steps = count if terminated else count - 1
    if not steps:
        return
    obs = {}
    for key, shape in felt.items():
        seen = np.asarray(rows[key], np.float32).reshape(count, -1)
        if seen.shape[1] != int(np.prod(shape)):
            raise DataError(f"{where}: {key!r} has {seen.shape[1]} numbers, info.json says {shape}")
        seen = seen.reshape(count, *shape)
        obs[names[key]] = np.concatenate([seen, seen[-1:]]) if terminated else seen
    reward = rows.get("next.reward", np.zeros(count, np.float32))
    yield Episode(
        obs=obs, action=np.asarray(rows["action"], np.float32).reshape(count, -1)[:steps],
        reward=np.asarray(reward, np.float32).reshape(count)[:steps], terminated=terminated, truncated=not terminated,
        source=where, invented=terminated,
    )


FORMAT = LeRobot()
