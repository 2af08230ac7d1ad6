"""torchrun's processes share a batch: halves give what the whole gives, and who is left behind says by whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unit.models import make_agent, make_batch, make_spec
from worldmodel import ranks, tree
from worldmodel.agents.dreamer.agent import Dreamer
from worldmodel.check.still import Still
from worldmodel.errors import UserError
from worldmodel.models.objectives.barlow import BarlowConfig
from worldmodel.models.objectives.infonce import InfoNCEConfig
from worldmodel.train.distributed import GONE, Place, begin_alike, join

ROOT = Path(__file__).parents[2]
UPDATES = 3


def start(*words: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """torchrun's two processes, each a Python with these words."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [*torchrun, sys.executable, *words], cwd=cwd, env={**os.environ, **variables}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def train(cwd: Path, *words: str) -> subprocess.Popen[str]:
    tiny = ["--train.train-ratio", "8", "--train.eval-episodes", "1", "--train.threads", "1", "--train.eval-every", "0"]
    where = ["--run-dir", "run", "--agent.imagination", "2", "--device", "cpu"]
    return start("-u", "-m", "worldmodel", "train", "quickstart", *where, *tiny, *words, cwd=cwd)


AGENTS: dict[str, Callable[[], Dreamer]] = {
    "reconstruction": lambda: make_agent(warmup=0),
    "barlow": lambda: make_agent(model={"objective": BarlowConfig()}, warmup=0),
    "infonce": lambda: make_agent(model={"objective": InfoNCEConfig()}, warmup=0),
}


def learn(agent: Dreamer, part: slice) -> dict[str, torch.Tensor]:
    """Three updates on some rows of four, the second of which has a NaN in the last row."""
    for i in range(UPDATES):
        batch = make_batch(make_spec(), batch=4, seed=i, firsts=((1, 4), (2, 2)))
        if i == 1:
            batch.reward[3, 2] = torch.nan
        with Still():
            agent.learn(tree.index(batch, part))
    state = {name: x for name, x in agent.state_dict().items() if not name.startswith("rng/")}
    return {**state, "gradient": agent.optimizer.grad}


def half(folder: str) -> None:
    """One of two processes: its half of each batch, from weights that are rank 0's."""
    place = Place.find()
    assert place is not None
    with join(place, torch.device("cpu")):
        for name, make in AGENTS.items():
            agent = make()
            if place.rank:
                agent.optimizer.flat.normal_()
            begin_alike(agent.modules.state_dict())
            state = learn(agent, slice(2 * place.rank, 2 * place.rank + 2))
            torch.save(state, Path(folder) / f"{name}-{place.rank}.pt")


def test_two_halves_learn_what_the_whole_learns_and_skip_what_it_skips(tmp_path: Path) -> None:
    both = start("-c", "import sys; from tests.unit.test_distributed import half; half(sys.argv[1])", str(tmp_path))
    said = both.communicate(timeout=300)
    assert both.returncode == 0, said
    for name, make in AGENTS.items():
        whole = learn(make(), slice(None))
        halves = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        assert whole["count/bad_total"] == 1 and whole["model/norm.high"] != 0
        for key, x in whole.items():
            assert torch.equal(halves[0][key], halves[1][key]), f"{name} {key}: ranks differ"
            # momentum is of gradients over their own size: rounding of the smallest ones shows there, undiminished
            bound = 1e-3 if key == "optim/mu" else 1e-6
            assert (halves[0][key] - x).abs().max() <= bound * max(1, x.abs().max()), f"{name} {key}"


def test_two_processes_train_one_run(tmp_path: Path) -> None:
    both = train(tmp_path, "--train.steps", "960")
    said, wrong = both.communicate(timeout=300)
    assert both.returncode == 0, wrong
    assert "2 processes share every batch" in said and said.count("960 decisions, ") == 1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if "updates" in row][-1]
    # 60 turns of 8 decisions here and 8 there
    assert row["step"] == 960 and row["replay/steps"] == 480 and row["updates"] >= 2


def test_who_is_left_behind_ends_and_names_the_rank(tmp_path: Path) -> None:
    both = train(tmp_path, "--train.steps", "1000000")
    assert both.stdout is not None
    while "2 processes share every batch" not in both.stdout.readline():
        assert both.poll() is None, both.communicate()
    os.kill(process_of(both.pid, rank=1), signal.SIGKILL)
    # torchrun adds a traceback of its own, and asks who is left to end as well
    _, said = both.communicate(timeout=60)
    assert both.returncode == 1 and f"exitcode  : {GONE}" in said, said
    sentence = "worldmodel: rank 1 of 2 has shown no sign of life for 8 s; rank 0 ends, for no update is possible"
    assert said.count(sentence) == 1 and "File " not in said[: said.index(sentence)]


def process_of(torchrun: int, *, rank: int) -> int:
    """The id of a rank's process."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has no rank {rank}")


def test_one_process_is_alone() -> None:
    x = torch.ones(2)
    ranks.average_(x)
    assert Place.find({}) is None and ranks.count() == 1 and ranks.index() == 0
    assert ranks.rows(x) is x and x.tolist() == [1, 1] and bool(ranks.all_true(torch.tensor(True)))


def test_incomplete_variables_are_a_sentence() -> None:
    with pytest.raises(UserError, match="RANK is missing or no number; start several processes with torchrun"):
        Place.find({"WORLD_SIZE": "2"})
