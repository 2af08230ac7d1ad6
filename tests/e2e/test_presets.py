"""Every shipped preset, in each of its versions, builds, acts, learns, evaluates, films, saves and is read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from worldmodel import collect, config, presets, runs
from worldmodel.config import Run
from worldmodel.data.formats import write_dataset
from worldmodel.envs.gl import choose_backend
from worldmodel.envs.pool import Pool
from worldmodel.errors import EnvError, UserError

TINY = (
    "--train.steps 20 --train.num-envs 2 --train.train-ratio 2 --train.eval-every 0 --train.eval-episodes 1 "
    "--train.eval-envs 1 --train.threads 1 --train.log-steps 10 --replay.capacity 200 --replay.batch-size 2 "
    "--replay.length 4 --replay.min-starts 2 --device cpu"
)
NANO = "--size nano"
SHORT = "--env.max-frames 24"

SMALL = "--agent.first 4 --agent.policy.units 8 --agent.value.units 8"
DREAMS = f"{SMALL} --agent.branch.rows 16 --agent.model.max-rounds 1 --agent.model.units 8"
DYNA = {
    **dict.fromkeys(("sac", "redq", "edac", "bc", "td3bc", "iql", "cql"), SMALL),
    **dict.fromkeys(("mbpo", "ftfl", "mopo", "combo", "mobile", "ravl", "reach"), DREAMS),
    "coplanner": f"{DREAMS} --agent.dreaming.candidates 2 --agent.acting.candidates 2",
    "morel": f"{DREAMS} --agent.branch.length 4",
    "rambo": f"{DREAMS} --agent.clone-first 2 --agent.adversary.every 2 --agent.adversary.steps 3 "
             "--agent.adversary.rows 8",
    "leq": f"{DREAMS} --agent.batch-size 32 --agent.rule.horizon 2",
}
"""What makes each version of dyna small."""

CASES = [
    "quickstart --task catch",
    "quickstart --task glide --objective barlow",
    "quickstart --task recall --objective infonce",
    "quickstart --core mamba",
    "quickstart --core transformer",
    *[f"quickstart --task recall --delay 12 --core {core}" for core in ("rssm", "mamba", "transformer")],
    f"gym {NANO}",
    f"gym {NANO} --env Pendulum-v1",
    f"gym {NANO} --env worldmodel/Glide-v0 --objective barlow",
    f"dmc.vision {NANO} {SHORT} --render ray --version 2023",
    f"dmc.vision {NANO} {SHORT} --render ray --version 2024 --objective infonce",
    f"dmc.vision {NANO} {SHORT} --render ray --version main --objective barlow --task reacher_easy",
    f"dmc.vision --size 1m {SHORT} --render ray",
    f"dmc.vision {NANO} {SHORT} --render ray --core mamba",
    f"dmc.proprio {NANO} {SHORT} --core mamba",
    f"dmc.proprio {NANO} {SHORT} --version 2023",
    f"dmc.proprio {NANO} {SHORT} --version 2024 --task cartpole_swingup",
    f"dmc.proprio --size published {SHORT} --version main",
    f"atari100k {NANO} {SHORT} --version 2023 --objective infonce",
    f"atari100k {NANO} {SHORT} --version 2024",
    f"atari100k {NANO} {SHORT} --version main --objective barlow --task pong",
    f"atari100k {NANO} {SHORT} --core mamba",
    f"tdmpc2 {NANO} {SHORT} --task cartpole_balance --train.first-updates 2",
    f"tdmpc2 {NANO} {SHORT} --task cup_catch --mode parity --train.first-updates 1",
    f"tdmpc2 {NANO} --env.env.max-frames 24 --obs pixels --render ray --train.first-updates 0",
    f"tdmpc2 {NANO} --task catch --train.first-updates 0",
    f"tdmpc2 {NANO} --task glide --mode parity --train.first-updates 0",
    f"tdmpc2 {NANO} --task glide --mode bootstrapped --train.first-updates 12",
    f"tdmpc2 {NANO} --task catch --mode bootstrapped --train.first-updates 1",
    f"tdmpc2 {NANO} {SHORT} --task cartpole_balance --mode tdmpc --train.first-updates 2 --replay.length 6",
    f"tdmpc2 {NANO} {SHORT} --task cup_catch --mode tcrl --replay.length 6",
    f"tdmpc2 {NANO} {SHORT} --task humanoid_walk --mode tcrl_free --replay.length 6",
    f"tdmpc2 {NANO} {SHORT} --task cartpole_balance --mode fowm --replay.length 6",
    f"tdmpc2 {NANO} --task glide --mode tdmpc --train.first-updates 0 --replay.length 6",
    f"tdmpc2.multitask {NANO} --env.env.max-frames 24 --tasks cup_catch cartpole_balance",
    f"tdmpc2 {NANO} --task CartPole-v1 --actions discrete --train.first-updates 0",
    f"storm {NANO} {SHORT} --replay.windows 3 --replay.window 2",
    f"drama {NANO} {SHORT} --replay.windows 3 --replay.window 2",
    *[f"dyna --version {version} {options}" for version, options in DYNA.items()],
    *[f"offline.state --env Pendulum-v1 --version {version} --agent.recent 1000 {options}"
      for version, options in DYNA.items()],
    f"dyna --env dmc:cartpole_swingup {SHORT} {DYNA['mbpo']}",
    f"offline.vd4rl {NANO} {SHORT} --render ray --replay.length 3",
    "offline.toys",
    "quickstart --task glide --core mamba --agent.learns model",
    "dreamer_plans.toys --agent.collect.simulations 2 --agent.evaluate.simulations 2",
    "dreamer_plans.toys --task glide --objective barlow --plan evaluate --agent.evaluate.samples 8 "
    "--agent.evaluate.elites 2",
    "dreamer_plans.toys --core mamba --plan collect --agent.collect.simulations 2",
    "dreamer_plans.toys --task recall --objective infonce --core transformer --agent.collect.simulations 2 "
    "--agent.evaluate.simulations 2",
    *[f"dreamer_plans.vision {NANO} {SHORT} --render ray --version {version} --plan evaluate "
      f"--agent.evaluate.samples 32 --agent.evaluate.elites 8" for version in ("2023", "2024", "main")],
    f"coplanner {NANO} {SHORT} --render ray",
    "coplanner --task glide --env.course upwind --select acting",
    "coplanner --task catch --select dreaming",
    f"plan2explore {NANO} {SHORT} --render ray",
    "plan2explore --task glide --core mamba",
    f"atari {NANO} {SHORT} --version 2023",
    f"atari {NANO} {SHORT} --version 2024 --objective barlow",
    f"atari {NANO} {SHORT} --version main",
]


@dataclass(frozen=True, kw_only=True)
class NoMore:
    """The command has no options of its own."""


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def parsed(line: str) -> tuple[Run, dict[str, Any]]:
    name, *words = f"{line} {TINY}".split()
    return presets.parse(presets.find_preset(name), words, NoMore(), prog="test")[:2]


def lived(run: Run, run_dir: Path) -> None:
    """Train, and check all that a run leaves behind."""
    summary = runs.start(run, run_dir, live=False)
    assert summary.reason == "steps" and summary.env_steps == 20 and summary.updates >= 2
    assert all(len(scores.returns) == 1 for scores in summary.scores.values())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = {name: x for row in rows for name, x in row.items() if name.startswith("loss/")}
    learns = getattr(run.agent, "learns", "all")
    assert "loss/total" in losses
    assert ("loss/policy" in losses) == ("loss/value" in losses) == (learns != "model")
    assert bool({"loss/dyn", "loss/consistency", "loss/reach"} & losses.keys()) == (learns != "behaviour")
    assert all(math.isfinite(x) for x in losses.values())
    assert max(row.get("update/skipped", 0) for row in rows) == 0
    loaded = runs.load(run_dir, device="cpu")
    assert loaded.run == run and loaded.checkpoint.step == 20


@pytest.mark.parametrize("line", CASES)
def test_it_learns_two_updates_and_comes_back_from_its_folder(line: str, tmp_path: Path) -> None:
    run, _ = parsed(line)
    assert config.from_json(json.loads(json.dumps(config.to_json(run)))) == run
    if run.data:  # an offline preset: some data of its environment
        policy = collect.random_policy(collect.action_of(run.env))
        data = collect.play(run.env, policy, episodes=2)
        write_dataset(tmp_path / "data", "dreamer", data.header, data)
        run = replace(run, data=str(tmp_path / "data"))
    lived(run, tmp_path / "run")


def test_a_behaviour_learns_in_the_model_of_another_run_and_not_without_one(tmp_path: Path) -> None:
    model, _ = parsed("quickstart --task glide --agent.learns model")
    behaviour, _ = parsed("quickstart --task glide --agent.learns behaviour")
    lived(model, tmp_path / "model")
    behaviour = replace(behaviour, init=str(tmp_path / "model"))
    lived(behaviour, tmp_path / "behaviour")
    one, other = (runs.load(tmp_path / name, device="cpu").agent.model for name in ("model", "behaviour"))
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match="learns in a world model that is kept; name the run that learned it"):
        runs.start(replace(behaviour, init=""), tmp_path / "alone", live=False)


def test_the_cases_cover_every_preset_version_and_objective() -> None:
    seen: dict[str, set[Any]] = {}
    for line in CASES:
        name = line.split()[0]
        for key, value in parsed(line)[1].items():
            seen.setdefault(f"{name} {key}", set()).add(value)
    assert {key.split()[0] for key in seen} == presets.shipped().keys()
    for name in presets.shipped():
        parameters = presets.find_preset(name).parameters
        for key in parameters.keys() & {"version", "objective"}:
            missing = set(get_args(parameters[key][0])) - seen[f"{name} {key}"]
            assert not missing or key == "objective", f"{name} --{key} {missing} is not tried"
    for objective in ("reconstruction", "barlow", "infonce"):
        assert sum(objective in values for key, values in seen.items() if key.endswith("objective")) >= 3
    assert seen["quickstart task"] == {"catch", "glide", "recall"}


def test_pixels_drawn_by_opengl(tmp_path: Path) -> None:
    try:
        choose_backend()
    except EnvError as error:
        pytest.skip(str(error))
    run, _ = parsed(f"dmc.vision {NANO} {SHORT} --render gl")
    lived(run, tmp_path / "run")


def test_pixels_drawn_in_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Pool] = []
    real = runs.make_pool

    def make_pool(*args: Any, **kwargs: Any) -> Pool:
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(runs, "make_pool", make_pool)
    run, _ = parsed(f"dmc.vision {NANO} {SHORT} --render ray --train.pool process")
    lived(run, tmp_path / "run")
    assert made[0].kind == "process" and made[0].num_envs == 2
