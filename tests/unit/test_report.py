"""Reports: grouping, curves, comparison with published scores, the page, and bad input."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.run_folders import learning, write_run
from tests.unit.tiny import tiny_run, train
from worldmodel import cli, published
from worldmodel.errors import UserError
from worldmodel.report import charts, compare, curves, folders, page, stats, write
from worldmodel.report.folders import Series
from worldmodel.train.log import read_metrics


def series(*pairs: tuple[float, float]) -> Series:
    frames, returns = np.array(pairs).T
    return Series(frames=frames, returns=returns)


@pytest.fixture(scope="module")
def catch(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two groups of three seeds; one run of the second stopped early."""
    root = tmp_path_factory.mktemp("catch")
    return [
        write_run(
            root / f"lr{lr:g}-{seed}", "quickstart", task="catch", seed=seed, steps=1000, lr=lr,
            reached=600 if (group, seed) == (1, 2) else None, dream=seed == 0,
            train=learning(end, frames=1000, noise=0.3, seed=seed),
            mode=[(500, end / 2 + seed), (1000, end + seed)],
        )
        for group, (lr, end) in enumerate([(1e-4, 4.0), (3e-4, -1.0)]) for seed in range(3)
    ]


@pytest.fixture(scope="module")
def written(catch: list[Path], tmp_path_factory: pytest.TempPathFactory) -> write.Report:
    return write.write(catch, tmp_path_factory.mktemp("report"))


# Reading


def test_a_real_run_is_read_with_its_task_scores_and_status(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", tiny_run())
    record = folders.read(run_dir)
    assert (record.task, record.seed, record.is_finished, record.status) == ("toy/catch", 0, True, "finished")
    assert record.frames == 16 and set(record.series) >= {"mode", "sampled"}
    rows = [row for row in read_metrics(run_dir / "scores.jsonl") if row["kind"] == "eval_mode"]
    assert record.series["mode"].returns.tolist() == [row["return"] for row in rows]
    report = write.write([run_dir], tmp_path / "out")
    assert "toy/catch" in report.page.read_text() and report.warnings == ()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("atari/boxing/100k", ("atari100k", "boxing", "")),
        ("dmc/walker_walk/gl", ("dmc_vision", "walker_walk", "")),
        ("dmc/walker_walk/proprio", ("dmc_proprio", "walker_walk", "")),
        ("dmc/walker_walk/gl+proprio", ("", "", "")),
        ("gym/CartPole-v1", ("", "", "")),
    ],
)
def test_a_task_belongs_to_the_benchmark_that_its_name_says(name: str, found: tuple[str, str, str]) -> None:
    assert folders.find_benchmark(name) == found


def test_departures_from_a_benchmark_are_said() -> None:
    assert "ray" in folders.find_benchmark("dmc/walker_walk/ray")[2]
    assert "sticky=0.25" in folders.find_benchmark("atari/pong/100k/sticky=0.25")[2]


def test_status_tells_running_killed_diverged_and_stopped_apart(tmp_path: Path) -> None:
    def status(name: str, **row: Any) -> str:
        run = write_run(tmp_path / name, "quickstart", reached=400, mode=[(400, 1.0)])
        (run / "metrics.jsonl").write_text(json.dumps({"step": 400, "frames": 400, **row}) + "\n")
        if name != "stopped":
            (run / "lock").touch()
        if name == "killed":
            os.utime(run / "lock", (0, 0))
        if name.startswith("diverged"):
            (run / "lock").unlink()
        if name.endswith("between rows"):
            (run / "diverged" / "000000000417").mkdir(parents=True)
        if name.endswith("gone on"):
            (run / "diverged" / "000000000399").mkdir(parents=True)
        return folders.read(run).status

    where = "at 400 of 1,000 decisions"
    assert status("stopped") == f"unfinished: stopped {where}"
    assert status("running") == f"running, {where}"
    assert status("killed") == f"failed: killed {where}"
    assert status("diverged", **{"update/bad_streak": 3.0}) == f"failed: its last updates were not finite, {where}"
    assert status("diverged between rows") == f"failed: its last updates were not finite, {where}"
    assert status("diverged, gone on", **{"update/skipped": 3.0}) == f"unfinished: stopped {where}"
    assert folders.read(tmp_path / "diverged, gone on").notes == ("3 updates skipped: not finite",)


def test_a_foreign_environment_needs_no_permission_to_be_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", "quickstart", mode=[(1000, 1.0)])
    document = json.loads((run / "config.json").read_text())
    document["run"]["env"] = {"type": "my_envs.maze:MazeConfig", "task": "large"}
    (run / "config.json").write_text(json.dumps(document))
    assert folders.read(run).task == "MazeConfig/large"


# Groups and curves


def test_runs_that_differ_in_seed_task_and_length_are_one_method(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "dmc.vision", task="walker_walk", size="12m", seed=0, steps=500),
        write_run(tmp_path / "b", "dmc.vision", task="cheetah_run", size="12m", seed=1, steps=800),
        write_run(tmp_path / "c", "dmc.vision", task="walker_walk", size="12m", seed=0, lr=1e-4),
    ]
    first, second = curves.methods([folders.read(run) for run in runs])
    assert [record.name for record in first.records] == ["a", "b"] and first.letter == "A"
    assert second.label == "B dmc.vision (lr 0.0001)"
    assert curves.differences([first.settings, second.settings]) == [["agent.lr", 4e-5, 1e-4]]


def test_a_method_is_called_by_the_settings_that_tell_it_from_all_others() -> None:
    settings = [
        {"model.type": "x:Latent", "model.core.type": "x:RSSM", "lr": 1.0},
        {"model.type": "x:Latent", "model.core.type": "x:Mamba", "lr": 1.0},
        {"model.type": "x:Mine", "lr": 1.0},
        {"model.type": "x:Latent", "model.core.type": "x:RSSM", "lr": 2.0},
    ]
    assert curves.telling(settings, ["model.type", "model.core.type", "lr"]) == ["model.core.type", "lr"]
    assert curves.telling(settings[:1], []) == []


def test_training_episodes_are_averaged_over_the_window_that_a_point_ends() -> None:
    grid = np.array([10.0, 20.0, 30.0, 40.0])
    episodes = series((1, 2.0), (10, 4.0), (11, 7.0), (39, 1.0), (40, 3.0))
    # (0, 10]: 2, 4; (10, 20]: 7; (20, 30]: none, so between its neighbours; (30, 40]: 1, 3
    assert curves._binned(episodes, grid).tolist() == [3.0, 7.0, 4.5, 2.0]
    assert np.isnan(curves._binned(series((25, 1.0)), grid)).tolist() == [True, True, False, True]


def test_a_curve_scores_between_its_points_and_holds_its_last_score() -> None:
    returns = np.array([[1.0, 3.0, np.nan], [np.nan, 5.0, 7.0]])
    curve = curves.Curve(frames=np.array([10.0, 20.0, 30.0]), returns=returns)
    assert curve.at(15).tolist() == [2.0]  # the second seed has none yet
    assert curve.at(25).tolist() == [3.0, 6.0]


def test_a_band_counts_the_seeds_it_stands_on() -> None:
    returns = np.array([[1.0, 1.0, np.nan], [3.0, np.nan, np.nan], [5.0, np.nan, np.nan]])
    counts, interval = curves.band(curves.Curve(frames=np.array([1.0, 2.0, 3.0]), returns=returns))
    assert counts.tolist() == [3, 1, 0]
    assert interval.point[:2].tolist() == [3.0, 1.0] and np.isnan(interval.point[2])
    assert 1.0 <= interval.low[0] < 3.0 < interval.high[0] <= 5.0
    assert np.isnan(interval.low[1:]).all()  # one seed has no interval


def test_a_curve_of_one_score_is_still_seen() -> None:
    frames = np.array([1.0, 2.0, 3.0])

    def colours(*returns: float) -> int:
        curve = curves.Curve(frames=frames, returns=np.array([returns]))
        png = charts.learning_curves("task", "scores", [(charts.Line(label="", index=0), curve)], 3.0)
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[:500]  # above the legend
        return int((pixels == (0x00, 0x72, 0xB2)).all(axis=-1).sum())

    assert colours(np.nan, np.nan, np.nan) == 0
    assert colours(np.nan, np.nan, 1.0) > 20


# Comparison


def one_task(tmp_path: Path, preset: str, game: str, frames: int, value: float, **arguments: Any) -> compare.Task:
    repeat = 4 if preset == "atari100k" else 2
    run = write_run(
        tmp_path / f"{game}{frames}", preset, task=game, steps=frames // repeat, train=[(frames, value)],
        mode=[(frames, value)], **arguments,
    )
    return compare.tasks([folders.read(run)])[0]


def test_published_scores_are_those_of_the_same_frames(tmp_path: Path) -> None:
    table = published.table("dmc_vision", "dreamerv3_2024")
    early = one_task(tmp_path, "dmc.vision", "walker_walk", 100_000, 1.0)
    index = table.curve_frames.index(100_000)
    np.testing.assert_allclose(
        np.sort(compare.published_scores(table, early)), np.sort([seed[index] for seed in table.curves["walker_walk"]])
    )
    whole = one_task(tmp_path, "dmc.vision", "walker_walk", 1_000_000, 1.0)
    assert compare.published_scores(table, whole).tolist() == list(table.final["walker_walk"])
    tiny = one_task(tmp_path, "dmc.vision", "walker_walk", 1_000, 1.0)
    assert len(compare.published_scores(table, tiny)) == 0  # nobody published that early


def test_final_scores_without_a_curve_answer_to_whole_runs_only(tmp_path: Path) -> None:
    table = published.table("atari100k", "simulus")
    assert len(compare.published_scores(table, one_task(tmp_path, "atari100k", "pong", 200_000, 1.0))) == 0
    assert len(compare.published_scores(table, one_task(tmp_path, "atari100k", "pong", 400_000, 1.0))) == 5


def test_training_episodes_answer_to_training_episodes_and_evaluations_to_evaluations() -> None:
    assert {table.method for table in compare.tables("atari100k", "train")} == {
        "DreamerV3 2024", "DreamerV3 2023", "PPO"
    }
    assert "Simulus" in {table.method for table in compare.tables("atari100k", "mode")}
    assert compare.tables("", "train") == ()


def test_atari_scores_are_human_normalised_and_set_beside_every_complete_table(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "boxing", "atari100k", task="boxing", steps=100_000, mode=[(400_000, 12.1)]),
        write_run(tmp_path / "pong", "atari100k", task="pong", steps=100_000, mode=[(400_000, -20.7)]),
    ]
    records = [folders.read(run) for run in runs]
    (suite,) = compare.suites(curves.methods(records), compare.tasks(records))
    assert suite.kind == "mode" and suite.unit == "human-normalised score"
    assert stats.mean(suite.scores(0)) == pytest.approx(0.5)  # the human in Boxing, random in Pong
    labels = [line.label for line, _ in suite.rows]
    simulus = suite.scores(labels.index("Simulus, published"))
    final = published.table("atari100k", "simulus").final
    expected = (np.mean(final["boxing"]) - 0.1) / 12.0 / 2 + (np.mean(final["pong"]) + 20.7) / 35.3 / 2
    assert stats.mean(simulus) == pytest.approx(expected)
    assert len(labels) == 11  # ours and ten tables of evaluations


def test_runs_are_compared_where_all_of_them_have_been(catch: list[Path]) -> None:
    records = [folders.read(run) for run in catch]
    (task,) = compare.tasks(records)
    assert task.frames == 600
    first, second = curves.methods(records)
    # evaluations at 500 and 1000 are 2 + seed and 4 + seed; 600 lies a fifth of the way
    assert compare.our_scores(first, task, "mode") == pytest.approx([2.4, 3.4, 4.4], abs=0.05)
    assert compare.suites((first, second), (task,)) == ()  # a toy has no agreed scale, and one task is no suite
    improvement = compare.improvement(first, second, (task,), "train")
    assert improvement is not None and improvement[0] == 1 and improvement[1].point == 1.0


# The page


class Outside(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]


def test_the_page_needs_no_other_file_and_no_script(written: write.Report) -> None:
    text = written.page.read_text()
    parser = Outside()
    parser.feed(text)
    assert parser.loads and all(source.startswith("data:image/png;base64,") for source in parser.loads)
    assert not {"script", "link", "iframe"} & set(parser.tags)
    assert "url(" not in text and "@import" not in text


def test_the_page_has_curves_scores_dreams_differences_and_status(written: write.Report) -> None:
    text = written.page.read_text()
    for heading in ("toy/catch", "Probability of improvement", "Dreams", "What differs", "Runs"):
        assert f"<h2>{heading}" in text, heading
    assert "B quickstart (lr 0.0003)" in text and "<td>agent.lr</td><td>0.0001</td><td>0.0003</td>" in text
    assert "unfinished: stopped at 600 of 1,000 decisions" in text
    assert written.warnings == ("lr0.0003-2 is unfinished: stopped at 600 of 1,000 decisions.",)
    assert text.count("after 1,000 decisions") == 2  # one dream of each group
    dreams = re.findall(r'base64,([^"]+)" alt="dream', text)
    assert len(dreams) == 2


def test_pictures_are_whole_pngs_and_not_blank(written: write.Report) -> None:
    assert {path.name for path in written.pictures} == {"toy_catch_train.png", "toy_catch_mode.png"}
    for path in written.pictures:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 400 and len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_curves_stand_beside_the_published_ones_of_the_same_task(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "walker", "dmc.vision", task="walker_walk", size="12m", steps=50_000,
        train=learning(500, frames=100_000),
    )
    text = write.write([run], tmp_path / "out").page.read_text()
    assert "DreamerV3 2024, published" in text and "Sources of the published scores" in text
    assert "danijar/dreamerv3" in text and "commit e3f0224" in text
    assert "Simulus" not in text  # only what is shown is cited


def test_names_cannot_break_the_page() -> None:
    text = page.table(["a<b"], [['"><script>alert(1)</script>']])
    assert "<script>" not in text and "a&lt;b" in text
    assert 'alt="&quot;&gt;"' in page.pictures([(b"png", '">', "")])


def test_the_same_runs_give_the_same_page(catch: list[Path], written: write.Report, tmp_path: Path) -> None:
    again = write.write(catch, tmp_path)
    assert again.page.read_bytes() == written.page.read_bytes()


# Bad input


def test_what_is_no_run_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "is not a run folder: it has no config.json" in capsys.readouterr().err
    assert cli.main(["report"]) == 2
    assert "a report needs run folders" in capsys.readouterr().err


def test_runs_without_scores_are_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = write_run(tmp_path / "empty", "quickstart", reached=0)
    (empty / "scores.jsonl").write_text("")
    with pytest.raises(UserError, match="this run has no finite scores"):
        write.write([empty], tmp_path / "out")
    full = write_run(tmp_path / "full", "quickstart", seed=1, mode=[(500, 1.0), (1000, 2.0)])
    assert cli.main(["report", str(empty), str(full), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "empty is unfinished: not begun." in said.err and "empty: no scores yet." in said.err
    assert str(tmp_path / "out" / "report.html") in said.out


def test_scores_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "nan", "quickstart", mode=[(250, float("nan")), (500, float("inf")), (1000, 2.0)])
    record = folders.read(run)
    assert record.series["mode"].returns.tolist() == [2.0]
    assert record.notes == ("2 scores left out: not a finite number",)
    only = write_run(tmp_path / "only", "quickstart", mode=[(1000, float("nan"))])
    with pytest.raises(UserError, match="no finite scores"):
        write.write([only], tmp_path / "out")


def test_damaged_files_are_sentences(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "quickstart", mode=[(1000, 2.0)])
    (run / "scores.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"line 1 is not a JSON row.*leave this run out"):
        folders.read(run)
    (run / "scores.jsonl").write_text('{"kind": "train"}\n')
    with pytest.raises(UserError, match='a row without a whole number "step"'):
        folders.read(run)
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        folders.read(run)


def test_runs_of_different_tasks_are_compared_each_on_its_own(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / task, "quickstart", task=task, mode=[(1000, 2.0)]) for task in ("catch", "glide")
    ]
    text = write.write(runs, tmp_path / "out").page.read_text()
    assert "on 2 tasks, each compared on its own" in text
    assert "<h2>toy/catch</h2>" in text and "<h2>toy/glide</h2>" in text


def test_a_run_that_stopped_at_once_is_named_as_what_hinders_the_comparison(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "whole", "quickstart", mode=[(500, 1.0), (1000, 2.0)]),
        write_run(tmp_path / "short", "quickstart", seed=1, reached=10, train=[(10, 1.0)]),
    ]
    text = write.write(runs, tmp_path / "out").page.read_text()
    assert "There is no score at these frames yet; leave short out for later ones." in text


def test_a_seed_given_twice_is_said_and_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", "quickstart", mode=[(1000, 2.0)])
    two = write_run(tmp_path / "two", "quickstart", mode=[(1000, 2.0)])
    warnings = write.write([one, two, one], tmp_path / "out").warnings
    assert warnings == (
        "Group A has seed 0 on toy/catch more than once: these runs are not independent.",
    )


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=re.escape("pip install 'worldmodel[report]'")):
        charts.require()


def test_an_out_that_cannot_be_written_is_a_sentence(catch: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give a writable --out"):
        write.write(catch[:1], tmp_path / "file")
