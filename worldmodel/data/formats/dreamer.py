"""Dreamer's npz files, by two conventions that differ in where an action lies.

Arrival (V-D4RL, dreamerv3-torch, DreamerV2): a file an episode; row t has the action and reward that led to its
observation, and row 0 has zeros. Departure (dreamerv3's replay): chunks of 1024 steps, named time-id-successor-length,
episodes across them; row t has the reward that led to its observation and the action chosen there, zeros where an
episode is over. Which one a folder follows is seen from these zeros, in all rows where an episode begins or is over.

Written is the arrival form, actions in [-1, 1] or one-hot: files of V-D4RL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from worldmodel.data.episodes import Actions, Dataset, Episode, Header, ReadOptions, array_spec, picture
from worldmodel.data.files import load_npz, members, npz_keys, reading
from worldmodel.errors import DataError

Align = Literal["arrival", "departure"]

NEEDED = ("action", "reward", "is_first", "is_terminal")
OTHER = {*NEEDED, "is_last", "discount", "reset", "stepid", "consec", "seq", "logprob", "id", "physics"}
"""What is no observation; nor are names with one of these in front."""
PREFIXES = ("log_", "log/", "dyn/", "enc/", "dec/", "replay/")


class Dreamer:
    """Implements ``Format`` and ``Writes``."""

    name = "dreamer"
    summary = "a folder of Dreamer's npz: episodes (V-D4RL, dreamerv3-torch) or replay chunks (dreamerv3)"

    def recognises(self, path: Path) -> bool:
        first = next(iter(_files(path)), None)
        return first is not None and {"action", "reward", "is_first"} <= set(npz_keys(first))

    def read(self, path: Path, options: ReadOptions) -> Dataset:
        files = _files(path)
        if not files:
            raise DataError(f"{path} has no .npz files; give the folder that holds them")
        streams = _streams(files)
        first = _rows(streams[0][0])
        keys = sorted(key for key in first if key not in OTHER and not key.startswith(PREFIXES))
        if not keys:
            raise DataError(f"{streams[0][0]} has no observation beside {sorted(first)}")
        obs = {key: array_spec(picture(first[key])) for key in keys}
        action = _action(first["action"], files, options)
        align = options.align if options.align != "auto" else _align(streams, path)
        header = Header(name=path.stem, obs=obs, action=action)
        return Dataset(header=header, read=lambda: _episodes(streams, header, align))

    def write(self, path: Path, header: Header, episodes: Iterable[Episode]) -> int:
        path.mkdir(parents=True)
        count = 0
        for count, episode in enumerate(episodes, 1):
            unit, rows = header.action.to_unit(episode.action), len(episode) + 1
            at = np.arange(rows)
            is_terminal = (at == rows - 1) & episode.terminated
            arrays = {
                **episode.obs,
                "action": np.concatenate([np.zeros_like(unit[:1]), unit]),
                "reward": np.concatenate([[0.0], episode.reward]).astype(np.float32),
                "discount": (~is_terminal).astype(np.float32),
                "is_first": at == 0, "is_last": at == rows - 1, "is_terminal": is_terminal,
            }
            np.savez_compressed(path / f"{count - 1:08d}-worldmodel-{rows}.npz", **arrays)
        return count


def _files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".npz" and path.is_file() else sorted(path.glob("*.npz"))


def _rows(file: Path) -> dict[str, np.ndarray]:
    """Everything in a file. Raises DataError for one that lacks a column or has columns of several lengths."""
    rows = load_npz(file)
    members(rows, NEEDED, str(file))
    for key, value in rows.items():
        if value.ndim and len(value) != len(rows["reward"]):
            raise DataError(f"{file}: {key!r} has {len(value)} rows and 'reward' {len(rows['reward'])}; it is damaged")
    return rows


def _streams(files: list[Path]) -> list[list[Path]]:
    """Files that follow each other without a gap: chunks by the successor in their names, any other file alone."""
    named = {parts[1]: (file, parts[2]) for file in files if len(parts := file.stem.split("-")) == 4}
    if len(named) != len(files):
        return [[file] for file in files]
    followed = {successor for _, successor in named.values()}
    out = []
    for ident, (file, successor) in named.items():
        if ident in followed:
            continue
        chain, seen = [file], {ident}
        while successor in named and successor not in seen:
            seen.add(successor)
            file, successor = named[successor]
            chain.append(file)
        out.append(chain)
    return out


def _action(rows: np.ndarray, files: list[Path], options: ReadOptions) -> Actions:
    if np.issubdtype(rows.dtype, np.integer) and rows.ndim == 1:
        largest = 0
        for file in files:
            with reading(file), np.load(file, allow_pickle=False) as found:
                largest = max(largest, int(found["action"].max()))
        return Actions(kind="discrete", size=largest + 1)
    size = int(np.prod(rows.shape[1:]))
    ones = (rows == 1).reshape(len(rows), -1).sum(-1)
    if size > 1 and ((rows == 0) | (rows == 1)).all() and (ones <= 1).all() and ones.any():
        return Actions(kind="discrete", size=size)
    return options.bounded(size)


def _align(streams: list[list[Path]], path: Path) -> Align:
    """By the zeros, where an episode begins (arrival) or is over (departure). Raises DataError where both or neither
    have them."""
    zero = {"first": True, "last": True}
    seen = {"first": 0, "last": 0}
    for file in [file for chain in streams for file in chain][:64]:
        rows = _rows(file)
        action = rows["action"].reshape(len(rows["action"]), -1)
        is_first = rows["is_first"].astype(bool)
        over = rows.get("is_last", rows["is_terminal"]).astype(bool)
        if len(is_first) > 1:
            over = over | np.append(is_first[1:], False)
        for name, mask in (("first", is_first), ("last", over)):
            seen[name] += int(mask.sum())
            zero[name] &= not action[mask].any()
    if zero["first"] and seen["first"] and not (zero["last"] and seen["last"]):
        return "arrival"
    if zero["last"] and seen["last"] and not (zero["first"] and seen["first"]):
        return "departure"
    raise DataError(
        f"{path}: whether an action lies where it was chosen or where it led is not to be seen from zeros at the ends "
        f"of episodes; say it with --align arrival (V-D4RL, dreamerv3-torch) or departure (dreamerv3's replay)"
    )


def _episodes(streams: list[list[Path]], header: Header, align: Align) -> Iterator[Episode]:
    index = 0
    for chain in streams:
        held: list[dict[str, np.ndarray]] = []
        for file in chain:
            rows = _rows(file)
            members(rows, tuple(header.obs), str(file))
            starts = [at for at in np.flatnonzero(rows["is_first"]) if at]
            pieces = np.split(np.arange(len(rows["reward"])), starts)
            for piece in pieces:
                if held and rows["is_first"][piece[0]]:
                    yield from _finish(held, header, align, f"{file}, episode {index}")
                    held, index = [], index + 1
                held.append({key: rows[key][piece] for key in (*header.obs, *NEEDED)})
        if held:
            yield from _finish(held, header, align, f"{chain[-1]}, episode {index}")
            index += 1


def _finish(held: list[dict[str, np.ndarray]], header: Header, align: Align, where: str) -> Iterator[Episode]:
    """The episode of these rows; none where they are a single one."""
    with reading(where):
        rows = {key: np.concatenate([piece[key] for piece in held]) for key in held[0]}
    if len(rows["reward"]) < 2:
        return
    action = rows["action"][1:] if align == "arrival" else rows["action"][:-1]
    if header.action.kind == "discrete" and action.ndim > 1:
        if not (action.reshape(len(action), -1).sum(-1) == 1).all():
            raise DataError(f"{where}: action must be one-hot in every step, as in the dataset's first file")
        action = action.reshape(len(action), -1).argmax(-1)
    elif header.action.kind == "continuous":
        action = action.reshape(len(action), -1)
    terminated = bool(rows["is_terminal"][-1])
    yield Episode(
        obs={key: picture(rows[key]) for key in header.obs}, action=action, reward=rows["reward"][1:].reshape(-1),
        terminated=terminated, truncated=not terminated, source=where,
    )


FORMAT = Dreamer()
