"""Formats of data: what was lived is what is read, and a broken file is a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.unit import data_files as files
from worldmodel import cli
from worldmodel.data.describe import describe
from worldmodel.data.episodes import Actions, Dataset, Episode, Header, ReadOptions
from worldmodel.data.formats import formats, open_dataset, write_dataset
from worldmodel.data.mix import mix, parse_shares
from worldmodel.errors import DataError
from worldmodel.specs import ArraySpec

LAYOUTS: dict[str, tuple[str, Callable[[Path, list[files.Played]], Path]]] = {
    "d4rl": ("a.hdf5", files.d4rl), "minari": ("a", files.minari), "arrival": ("a", files.arrival),
    "departure": ("a", files.departure), "neorl": ("a.npz", files.neorl),
}
EVERY = {**LAYOUTS, "vd4rl": ("a.hdf5", files.vd4rl)}


@pytest.fixture
def played() -> list[files.Played]:
    return files.play()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_transition_of_a_file_written_by_hand_is_read_right(
    layout: str, tmp_path: Path, played: list[files.Played]
) -> None:
    name, write = LAYOUTS[layout]
    dataset = open_dataset(write(tmp_path / name, played))
    files.assert_right(list(dataset), played)
    files.assert_right(list(dataset), played)  # and again, from the beginning
    assert dataset.header.obs == {"vector": ArraySpec(shape=(3,), dtype="float32")}
    assert (dataset.header.action.kind, dataset.header.action.size) == ("continuous", 2)


def test_pixels_of_vd4rl_are_moved_and_belong_to_the_right_action(tmp_path: Path, played: list[files.Played]) -> None:
    dataset = open_dataset(files.vd4rl(tmp_path / "a.hdf5", played))
    assert dataset.header.obs == {"image": ArraySpec(shape=(8, 8, 3), dtype="uint8")}
    for episode, each in zip(dataset, played, strict=True):
        assert episode.obs["image"].dtype == np.uint8
        seen = np.ascontiguousarray(episode.obs["image"][..., 0]).reshape(len(each.x), 64)[:, :12]
        x = np.ascontiguousarray(seen).view(np.float32)
        told = files.reward_of(x[:-1], episode.action, x[1:])
        np.testing.assert_allclose(episode.reward, told, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(x, each.x)
        assert episode.terminated == each.terminated


def test_a_shifted_reading_would_be_noticed(tmp_path: Path, played: list[files.Played]) -> None:
    """The test's own test: the wrong alignment of the same files is far off."""
    for layout, wrong in (("arrival", "departure"), ("departure", "arrival")):
        path = LAYOUTS[layout][1](tmp_path / layout, played)
        with pytest.raises(AssertionError):
            files.assert_right(list(open_dataset(path, ReadOptions(align=wrong))), played)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["minari", "d4rl", "dreamer"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_what_is_read(layout: str, kind: str, tmp_path: Path, played: list[files.Played]) -> None:
    name, write = LAYOUTS[layout]
    source = open_dataset(write(tmp_path / name, played))
    assert write_dataset(tmp_path / "out.x", kind, source.header, source) == 3
    back = open_dataset(tmp_path / "out.x")
    files.assert_right(list(back), played)
    assert back.header.obs == source.header.obs


def make(obs: dict[str, np.ndarray], action: Actions, *, low: float = 0.0) -> Dataset:
    """One episode of observations (T + 1, ...), classes or numbers as actions."""
    steps = len(next(iter(obs.values()))) - 1
    chosen = np.arange(steps) % action.size
    if action.kind == "continuous":
        chosen = np.full((steps, action.size), low, np.float32)
    specs = {key: ArraySpec(shape=x.shape[1:], dtype=str(x.dtype)) for key, x in sorted(obs.items())}
    reward = np.arange(steps, dtype=np.float32)
    episode = Episode(obs=obs, action=chosen, reward=reward, terminated=True, truncated=False, source="here")
    return Dataset(header=Header(name="made", obs=specs, action=action), read=lambda: iter([episode]))


@pytest.mark.parametrize("kind", ["minari", "d4rl", "dreamer"])
def test_dicts_pictures_and_choices_survive_bit_for_bit(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 9, 7, 3), np.uint8)
    obs = {"image": image, "arm/pose": rng.normal(size=(6, 2)).astype(np.float32)}
    source = make(obs, Actions(kind="discrete", size=3))
    write_dataset(tmp_path / "o", kind, source.header, source)
    back = open_dataset(tmp_path / "o")
    (episode,) = back
    assert {key: x.dtype for key, x in episode.obs.items()} == {key: x.dtype for key, x in obs.items()}
    for key, x in obs.items():
        np.testing.assert_array_equal(episode.obs[key], x)
    assert back.header.action == source.header.action and episode.action.tolist() == [0, 1, 2, 0, 1]
    assert episode.terminated and not episode.truncated


@pytest.mark.parametrize("kind", ["minari", "d4rl"])
def test_actions_keep_the_units_and_bounds_of_their_source(kind: str, tmp_path: Path) -> None:
    action = Actions(kind="continuous", size=2, low=(-2.0, 0.0), high=(2.0, 1.0))
    source = make({"vector": np.zeros((4, 3), np.float32)}, action, low=0.5)
    write_dataset(tmp_path / "o", kind, source.header, source)
    back = open_dataset(tmp_path / "o")
    (episode,) = back
    assert back.header.action == action and episode.action.tolist() == [[0.5, 0.5]] * 3
    np.testing.assert_allclose(action.to_unit(episode.action), [[0.25, 0.0]] * 3)
    np.testing.assert_allclose(action.from_unit(action.to_unit(episode.action)), episode.action)


def test_minari_itself_reads_what_we_write(tmp_path: Path, played: list[files.Played]) -> None:
    minari = pytest.importorskip("minari")
    source = open_dataset(files.d4rl(tmp_path / "a.hdf5", played))
    write_dataset(tmp_path / "m", "minari", source.header, source)
    dataset = minari.MinariDataset(tmp_path / "m" / "data")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 12)
    for episode, each in zip(dataset, played, strict=True):
        np.testing.assert_array_equal(episode.observations, each.x)
        np.testing.assert_array_equal(episode.actions, each.action)
        np.testing.assert_allclose(episode.rewards, each.reward)
        assert bool(episode.terminations[-1]) == each.terminated and bool(episode.truncations[-1]) != each.terminated


def test_what_minari_itself_writes_is_read(
    tmp_path: Path, played: list[files.Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 16, 16, 3), np.uint8)
    buffers = [
        EpisodeBuffer(
            id=i, observations={"x": list(each.x), "image": list(image[: len(each.x)])},
            actions=[2 * a for a in each.action],
            rewards=[float(r) for r in each.reward], terminations=[False] * (len(each) - 1) + [each.terminated],
            truncations=[False] * (len(each) - 1) + [not each.terminated],
        )
        for i, each in enumerate(played)
    ]
    spaces = gymnasium.spaces
    box = spaces.Dict(x=spaces.Box(-9, 9, (3,)), image=spaces.Box(0, 255, (16, 16, 3), np.uint8))
    for jpeg in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about authors and links
            minari.create_dataset_from_buffers(
                f"toy/real-v{int(jpeg)}", buffers, observation_space=box, action_space=spaces.Box(-2, 2, (2,)),
                jpeg_encoding=jpeg,
            )
        dataset = open_dataset(f"minari:toy/real-v{int(jpeg)}")
        files.assert_right(list(dataset), played, "x", scale=2.0)
        assert dataset.header.action.low == (-2.0, -2.0)
        seen = next(iter(dataset)).obs["image"]
        assert seen.dtype == np.uint8 and seen.shape == (5, 16, 16, 3)
        assert jpeg or (seen == image[:5]).all()


def test_d4rl_without_next_observations_drops_what_timeouts_led_to(tmp_path: Path, played: list[files.Played]) -> None:
    dataset = open_dataset(files.d4rl(tmp_path / "a.hdf5", played, with_next=False))
    episodes = list(dataset)
    assert [len(episode) for episode in episodes] == [3, 3, 4]
    for episode, each in zip(episodes, played):
        steps = len(episode)
        np.testing.assert_array_equal(episode.action, each.action[:steps])
        np.testing.assert_array_equal(episode.reward, each.reward[:steps])
        np.testing.assert_array_equal(episode.obs["vector"][:steps], each.x[:steps])
    # never the first observation of the next episode, as D4RL's own helper gives
    assert [episode.invented for episode in episodes] == [False, True, False]
    np.testing.assert_array_equal(episodes[1].obs["vector"][-1], played[1].x[2])
    assert "no last observation" in describe(dataset)["notes"][0]


def test_d4rl_cuts_an_episode_where_rows_do_not_follow_each_other(tmp_path: Path, played: list[files.Played]) -> None:
    """Transitions in any order are all there, each with its own next observation."""
    path = files.d4rl(tmp_path / "a.hdf5", [played[0]])
    order = [0, 1, 3, 2]
    with h5py.File(path, "r+") as file:
        for key in file:
            file[key][...] = file[key][()][order]
        file["timeouts"][...] = False
    episodes = list(open_dataset(path))
    assert [len(episode) for episode in episodes] == [2, 1, 1] and all(episode.truncated for episode in episodes)
    told = np.concatenate([
        files.reward_of(e.obs["vector"][:-1], e.action, e.obs["vector"][1:]) for e in episodes
    ])
    np.testing.assert_allclose(told, played[0].reward[order], rtol=1e-4, atol=1e-3)


def test_d4rl_takes_columns_of_one(tmp_path: Path, played: list[files.Played]) -> None:
    path = files.d4rl(tmp_path / "a.hdf5", played)
    for key in ("rewards", "terminals", "timeouts"):
        broken(path, key, lambda x: x[:, None])
    files.assert_right(list(open_dataset(path)), played)


def test_d4rl_without_timeouts_wants_to_know_the_limit(tmp_path: Path) -> None:
    played = files.play((4, 4, 2), (False, False, True))
    path = files.d4rl(tmp_path / "a.hdf5", played, with_next=False, timeouts=False)
    with pytest.raises(DataError, match="--max-steps"):
        open_dataset(path)
    episodes = list(open_dataset(path, ReadOptions(max_steps=4)))
    found = [(len(e), e.terminated, e.truncated) for e in episodes]
    assert found == [(3, False, True), (3, False, True), (2, True, False)]


def test_a_chunk_whose_successor_is_missing_ends_in_a_cut(tmp_path: Path) -> None:
    played = files.play((9,), (True,))
    folder = files.departure(tmp_path / "a", played, size=4)
    next(folder.glob("*-id1-id2-*")).unlink()
    episodes = list(open_dataset(folder, ReadOptions(align="departure")))
    assert [(len(e), e.terminated) for e in sorted(episodes, key=len)] == [(1, True), (3, False)]


def test_unclear_alignment_is_asked_for(tmp_path: Path, played: list[files.Played]) -> None:
    folder = files.arrival(tmp_path / "a", played)
    for path in folder.iterdir():
        rows = dict(np.load(path))
        rows["action"][0] = 0.5
        np.savez(path, **rows)
    with pytest.raises(DataError, match="--align"):
        open_dataset(folder)
    files.assert_right(list(open_dataset(folder, ReadOptions(align="arrival"))), played)


def broken(path: Path, key: str, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Change one array of an HDF5 or npz file, or leave it out."""
    if path.suffix == ".npz":
        rows = dict(np.load(path))
        value = change(rows.pop(key))
        np.savez(path, **(rows if value is None else rows | {key: value}))
        return
    with h5py.File(path, "r+") as file:
        value = change(file[key][()])
        del file[key]
        if value is not None:
            file[key] = value


def nan(value: np.ndarray) -> np.ndarray:
    value[-2] = np.nan
    return value


BROKEN: dict[str, tuple[str, str, Callable[[np.ndarray], Any], tuple[str, ...]]] = {
    "d4rl misses": ("d4rl", "rewards", lambda x: None, ("a.hdf5", "'rewards'")),
    "d4rl shape": ("d4rl", "rewards", lambda x: x[:-1], ("a.hdf5", "'rewards'", "(12,)", "(11,)")),
    "d4rl nan": ("d4rl", "rewards", nan, ("a.hdf5", "episode 2", "reward", "step 3")),
    "minari misses": ("minari", "episode_1/rewards", lambda x: None, ("main_data.hdf5", "episode_1", "'rewards'")),
    "minari shape": ("minari", "episode_1/actions", lambda x: x[:-1], ("main_data", "episode_1", "action", "(3, 2)")),
    "minari nan": ("minari", "episode_2/rewards", nan, ("episode_2", "reward", "step 3")),
    "minari end": ("minari", "episode_0/terminations", lambda x: ~x, ("episode_0", "terminations")),
    "arrival misses": ("arrival", "is_terminal", lambda x: None, ("-abc0-5.npz", "'is_terminal'")),
    "arrival shape": ("arrival", "reward", lambda x: x[:-1], ("-abc0-5.npz", "4")),
    "arrival nan": ("arrival", "vector", nan, ("episode 0", "'vector'", "step 3")),
    "departure misses": ("departure", "is_terminal", lambda x: None, ("-id3-0-3.npz", "'is_terminal'")),
    "departure nan": ("departure", "vector", nan, ("-id3-0-3.npz, episode 2", "'vector'", "step 4")),
    "vd4rl misses": ("vd4rl", "discount", lambda x: None, ("a.hdf5", "'discount'")),
    "vd4rl shape": ("vd4rl", "action", lambda x: x[:-1], ("a.hdf5", "'action'")),
    "vd4rl nan": ("vd4rl", "reward", nan, ("a.hdf5, episode 2", "reward", "step 3")),
    "neorl misses": ("neorl", "next_obs", lambda x: None, ("a.npz",)),
    "neorl shape": ("neorl", "action", lambda x: x[1:], ("a.npz", "'action'")),
    "neorl nan": ("neorl", "reward", nan, ("episode 2", "reward", "step 3")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_a_sentence_with_file_key_and_episode(
    case: str, tmp_path: Path, played: list[files.Played], capsys: pytest.CaptureFixture[str]
) -> None:
    layout, key, change, said = BROKEN[case]
    name, write = EVERY[layout]
    path = write(tmp_path / name, played)
    chunk = next(path.glob("*-id3-0-*.npz"), path)
    target = {
        "minari": path / "data" / "main_data.hdf5", "arrival": min(path.glob("*.npz"), default=path), "departure": chunk
    }
    broken(target.get(layout, path), key, change)
    assert cli.main(["data", "inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in said), error


@pytest.mark.parametrize("layout", EVERY)
def test_a_file_cut_short_is_a_sentence(
    layout: str, tmp_path: Path, played: list[files.Played], capsys: pytest.CaptureFixture[str]
) -> None:
    name, write = EVERY[layout]
    path = write(tmp_path / name, played)
    victim = path if path.is_file() else max(path.rglob("*.*"), key=lambda each: each.stat().st_size)
    kind = {"arrival": "dreamer", "departure": "dreamer"}.get(layout, layout)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size * 2 // 3])
    assert cli.main(["data", "inspect", f"{kind}:{path}"]) == 2
    assert victim.name in capsys.readouterr().err


def test_what_cannot_be_read_or_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.bin").write_bytes(b"what is this")
    source = make({"vector": np.zeros((4, 3), np.float32)}, Actions(kind="continuous", size=2))
    write_dataset(tmp_path / "m", "minari", source.header, source)
    for words, said in [
        (["inspect", str(tmp_path / "no")], "there is no dataset"),
        (["inspect", str(tmp_path / "x.bin")], "FORMAT:PATH"),
        (["convert", str(tmp_path / "m"), str(tmp_path / "m")], "exists"),
        (["convert", str(tmp_path / "m"), str(tmp_path / "n"), "--format", "neorl"], "not written"),
        (["convert", str(tmp_path / "m"), str(tmp_path / "n"), "--format", "minarri"], "'minari'"),
        (["mix", str(tmp_path / "m")], "mix takes datasets"), (["inspct", "x"], "'inspect'"),
        (["collect", str(tmp_path / "c")], "--env ENV"), (["inspect", "x", "--low", "1"], "--low and --high"),
    ]:
        assert cli.main(["data", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "n").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["m", "x.bin"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = make({"vector": np.zeros((4, 3), np.float32)}, Actions(kind="continuous", size=2))

    def failing() -> Any:
        yield from source
        raise DataError("the source broke")

    for kind in ("minari", "d4rl", "dreamer"):
        with pytest.raises(DataError, match="broke"):
            write_dataset(tmp_path / "out", kind, source.header, failing())
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_has_its_shares_and_no_episode_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = files.play((5,) * 20, (False,) * 20), files.play((10,) * 30, (True,) * 30)
    a, b = files.d4rl(tmp_path / "a.hdf5", few), files.d4rl(tmp_path / "b.hdf5", many)
    assert cli.main(["data", "mix", f"{a}:1", f"{b}:2", str(tmp_path / "m"), "--seed", "3"]) == 0
    mixed = list(open_dataset(tmp_path / "m"))
    steps = {kind: sum(len(e) for e in mixed if e.terminated == kind) for kind in (False, True)}
    assert steps == {False: 100, True: 200}
    assert len({e.obs["vector"].tobytes() for e in mixed}) == len(mixed)
    again = mix([open_dataset(a), open_dataset(b)], [1 / 3, 2 / 3], seed=3)
    assert [e.obs["vector"].tobytes() for e in again] == [e.obs["vector"].tobytes() for e in mixed]
    with pytest.raises(DataError, match="at most 300"):
        mix([open_dataset(a), open_dataset(b)], [1 / 3, 2 / 3], steps=400)
    with pytest.raises(DataError, match="do not mix"):
        other = make({"vector": np.zeros((4, 2), np.float32)}, Actions(kind="continuous", size=2))
        mix([open_dataset(a), other], [0.5, 0.5])
    assert parse_shares(["a", "b"]) == [("a", 0.5), ("b", 0.5)]
    with pytest.raises(DataError):
        parse_shares(["a:-1"])


def test_inspecting_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played = files.play()
    path = files.minari(tmp_path / "a", played)
    assert cli.main(["data", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    returns = [float(each.reward.sum()) for each in played]
    assert (found["episodes"], found["transitions"], found["terminated"], found["truncated"]) == (3, 12, 1, 2)
    assert found["return"]["median"] == pytest.approx(np.median(returns), rel=1e-5)
    assert found["length"] == {"min": 3, "mean": 4.0, "max": 5} and found["notes"] == []
    assert cli.main(["data", "inspect", str(path)]) == 0
    assert "3 episodes, 12 transitions" in capsys.readouterr().out


def test_actions_beyond_their_bounds_are_told(tmp_path: Path) -> None:
    path = files.d4rl(tmp_path / "a.hdf5", files.play())
    with h5py.File(path, "r+") as file:
        file["actions"][...] = 2 * file["actions"][()]
    assert "beyond their bounds" in describe(open_dataset(path))["notes"][0]
    told = open_dataset(path, ReadOptions(low=(-2.0,), high=(2.0,)))
    assert describe(told)["notes"] == [] and told.header.action.low == (-2.0, -2.0)


def test_nothing_of_the_data_room_needs_torch(tmp_path: Path) -> None:
    path = files.d4rl(tmp_path / "a.hdf5", files.play())
    code = (
        "import sys; from worldmodel import cli; "
        f"assert cli.main(['data', 'inspect', {str(path)!r}]) == 0 and cli.main(['data', '--help']) == 0; "
        "assert cli.main(['data', 'collect', '--help']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_every_format_says_what_it_is() -> None:
    assert set(formats()) == {"d4rl", "dreamer", "lerobot", "minari", "neorl", "vd4rl"}
    assert all(each.summary for each in formats().values())
