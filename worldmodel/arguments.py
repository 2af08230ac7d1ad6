"""What each command takes beside a preset and its run: frozen dataclasses that the command line parses into."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from worldmodel.data.episodes import ReadOptions

RunFolder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of ``train`` that are not part of the run."""

    run_dir: str = ""
    """Folder of the run, new or empty; runs/PRESET-TASK-SEED-TIME where it is not given."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of ``info`` that are not part of the run."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of ``bench`` that are not part of the run."""

    json: str = ""
    """File for the result as JSON."""
    against: str = ""
    """Folder of a peer to measure side by side: a checkout of r2dreamer (update) or of TD-MPC2 (act), an
    installed TorchRL (replay)."""
    peer_python: str = sys.executable
    """The interpreter that the peer runs in."""
    peer_options: str = ""
    """Options of the same preset, in quotes, by whose agent the peer is sized where it shall not be ours: "--size 1m".
    Both learn from the same batches."""
    blocks: int = 5
    """Blocks of calls; those of ours and of a peer alternate."""
    seconds: float = 10.0
    """About how long a row takes; 0: one call a block."""
    warmup: int = 3
    """Calls before anything is measured."""
    held: int = 10_000
    """Steps that the replay holds."""
    batches: tuple[int, ...] = (1, 8, 64, 512)
    """act: environments that are acted for at once."""


@dataclass(frozen=True, kw_only=True)
class KernelBenchOptions:
    """Time kernels beside their references, after their tests; in a checkout."""

    kernels: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KERNEL...]")]] = ()
    """Folders of kernels/; all of them where none is named."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes the GPU where there is one."""
    json: str = ""
    """File for the result as JSON."""
    blocks: int = 5
    """Blocks of calls; those of the implementations alternate."""
    seconds: float = 1.0
    """About how long a row takes; 0: one call a block."""
    warmup: int = 3
    """Calls before anything is measured."""


@dataclass(frozen=True, kw_only=True)
class PlannerBenchOptions:
    """The same planners on known systems (analytic), on the truth of environments (truth), on the models of trained
    agents (runs), and against the clock (latency)."""

    layers: tyro.conf.Positional[
        Annotated[tuple[Literal["analytic", "truth", "runs", "latency"], ...], tyro.conf.arg(metavar="LAYER...")]
    ]
    """What to measure."""
    planners: tuple[str, ...] = ()
    """Some of `worldmodel list planners`, and yours, FILE:NAME; all shipped ones where none is given."""
    budgets: tuple[int, ...] = (100, 500)
    """Trajectories that a decision may look at."""
    seeds: int = 5
    """Seeds of planners."""
    episodes: int = 10
    """Episodes of each seed; all planners and seeds begin in the same states."""
    problems: tuple[str, ...] = ()
    """analytic: some of the problems, and yours, FILE:NAME; all shipped ones where none is given."""
    tasks: tuple[str, ...] = ("cartpole_swingup", "catch", "glide")
    """truth: tasks of the Control Suite and toys."""
    frames: int = 1000
    """truth: longest episode of the Control Suite."""
    runs: tuple[Path, ...] = ()
    """runs: folders of trained agents."""
    allow: tuple[str, ...] = ()
    """runs: modules or files outside of worldmodel that their configurations may use; they are imported."""
    presets: tuple[str, ...] = ("quickstart", "quickstart --task glide")
    """latency: presets with their options, a word each."""
    batches: tuple[int, ...] = (1, 8, 64)
    """latency: environments that are acted for at once."""
    seconds: float = 4.0
    """latency: about how long a row takes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """latency: where."""
    out: Path = Path("planners")
    """Folder for planners.json, planners.md, planners.html and a picture for each layer."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("name what to measure: analytic, truth, runs or latency")
        if "runs" in self.layers and not self.runs:
            raise ValueError("the layer runs measures trained agents; give their folders, --runs RUN...")


@dataclass(frozen=True, kw_only=True)
class ReachBenchOptions:
    """Agents that bootstrap from states no data reaches, and agents that know: experiments with known truth, their
    numbers, verdicts and figures; exit code 1 where a verdict fails."""

    experiments: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[EXPERIMENT...]")]] = ()
    """plateau, pendulum, arm, dreamer; all of them where none is named."""
    variants: tuple[str, ...] = ()
    """Of each experiment; all of them where none is named."""
    seeds: int = 3
    """Of variants that are named; of others at most, since some are worth one or none."""
    updates: int = 0
    """Instead of the experiment's own number; 0: that."""
    quick: bool = False
    """One seed of what verdicts are about."""
    parallel: int = 2
    """Runs side by side, of one thread each."""
    json: str = ""
    """File for the result as JSON; what it holds of other experiments and variants is kept."""
    markdown: str = ""
    """File for the tables."""
    figures: str = ""
    """Folder for three figures; needs the extra "report"."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.parallel) < 1 or self.updates < 0:
            given = f"{self.seeds}, {self.parallel} and {self.updates}"
            raise ValueError(f"--seeds and --parallel must be at least 1 and --updates not negative, got {given}")


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Options of ``resume`` that are not part of the run."""

    allow: tuple[str, ...] = ()
    """Modules or files outside of worldmodel that the run's configuration may use; they are imported."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Train a preset with many seeds and settings; what is finished is skipped, what is not goes on. Every other option
    of `worldmodel train PRESET` holds for all runs."""

    out: Path = Path()
    """Folder of the sweep: a run folder and a log for each run, sweep.md, sweep.json."""
    seeds: str = "0"
    """0..4, or 0,2,5."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """agent.lr=1e-4,3e-4: every combination of what is given so, options of the preset or its run; may be repeated."""
    search: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """agent.lr=1e-5..1e-2:log, or a list: Optuna chooses, to maximise the last evaluation by mode; may be repeated."""
    trials: int = 20
    """Settings that a search tries, each with all seeds."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How Optuna chooses."""
    on: Literal["local", "ray"] = "local"
    """Processes of this machine, or tasks of a Ray cluster (RAY_ADDRESS)."""
    parallel: int = 1
    """Runs side by side on this machine; in a search, runs of the same moment on either."""
    cpus: float = 1.0
    """ray: processors of a run."""
    gpus: float = 0.0
    """ray: GPUs of a run; 0.5 puts two on one."""
    dry_run: bool = False
    """Say what would be run, and how far it is."""

    def __post_init__(self) -> None:
        for name in ("trials", "parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluate the newest checkpoint of a run folder."""

    run: RunFolder
    """The run folder."""
    episodes: int = 100
    """Whole episodes to play."""
    sampled: bool = False
    """Sample from the policy; without this, take its mode."""
    seed: int = 10_000
    """Of environments and policy: the same seed gives the same episodes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes the GPU where there is one."""
    planner: str = ""
    """Act by this planner in the agent's world model: one of `worldmodel list planners`, or yours, FILE:NAME. Without
    it, or with --sampled, act as the agent was made to."""
    trajectories: int = 300
    """Sequences that the planner may look at in a decision."""
    horizon: int = 0
    """Steps that it looks ahead; 0 leaves it to the planner."""
    json: bool = False
    """Print JSON."""
    allow: tuple[str, ...] = ()
    """Modules or files outside of worldmodel that the run's configuration may use; they are imported."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {self.episodes}")
        if self.trajectories < 1 or self.horizon < 0:
            given = f"{self.trajectories} and {self.horizon}"
            raise ValueError(f"--trajectories must be at least 1 and --horizon not negative, got {given}")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """A page on runs: learning curves, statistics and dreams, beside the published scores of the same tasks."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders. Those that differ in nothing but seed, task and length are one group."""
    out: Path = Path("report")
    """Folder to write to: report.html, which needs no other file, and every chart as a PNG."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write encode, step and act of the newest checkpoint as torch.export programs, and how to call them."""

    run: RunFolder
    """The run folder, or one checkpoint in it."""
    out: Path
    """The new folder."""
    onnx: bool = False
    """Write ONNX too, where it has the operators; needs the extra "export"."""
    allow: tuple[str, ...] = ()
    """Modules or files outside of worldmodel that the run's configuration may use; they are imported."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What there is to choose from, a line each."""

    kind: tyro.conf.Positional[Literal["all", "presets", "envs", "cores", "objectives", "planners"]] = "all"
    """What to list."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The conformance test of a part of your own; exit code 1 where it breaks a promise."""

    target: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FILE:NAME")]]
    """A config (class, instance, or function that returns one): "./my_model.py:MyConfig", "my_pkg.models:MyConfig"; or
    an environment: a Gymnasium id, "my_envs:Maze-v0", "my_envs:Maze"."""
    kind: str = ""
    """world-model, core, objective, value, planner or env; empty: what ``build`` takes and returns tells."""
    obs: Literal["image", "vector", "both"] = "image"
    """What a world model shall observe."""
    pixels: int = 32
    """Height and width of the image."""
    action: Literal["discrete", "continuous"] = "discrete"
    """How a world model's actions are given."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks are checked."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"--pixels must be at least 1, got {self.pixels}")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What this machine has, lacks, and will use; exit code 1 where training cannot work."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(ReadOptions):
    """Read a dataset from its first episode to its last, check everything, and say what it holds."""

    path: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PATH")]]
    """A file or folder; FORMAT:PATH where its kind is not clear."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ReadOptions):
    """Write a dataset in another format."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    """A file or folder; FORMAT:PATH where its kind is not clear."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DST")]]
    """The new file (d4rl) or folder (minari, dreamer)."""
    format: str = "minari"
    """minari, d4rl or dreamer; or another of worldmodel/data/formats that can be written."""


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """Write a dataset of whole episodes of several, in shares of transitions, none of them twice."""

    words: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH:SHARE... OUT")]]
    """Datasets with their shares, and the new one."""
    format: str = "minari"
    """As of convert."""
    steps: int = 0
    """Transitions in all; 0: as many as go without drawing one twice."""
    seed: int = 0
    """Of the choice of episodes."""

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise ValueError("mix takes datasets and the new one: A:0.5 B:0.5 OUT")
        if self.steps < 0 or self.seed < 0:
            raise ValueError(f"--steps and --seed must not be negative, got {self.steps} and {self.seed}")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Write a dataset of one's own: played by a trained agent or by a policy, or what the replay of a run holds."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """The new file (d4rl) or folder (minari, dreamer)."""
    run: str = ""
    """A run folder, or one checkpoint in it: its agent plays."""
    replay: str = ""
    """A run folder: what the replay of its newest checkpoint holds is written as it is."""
    policy: str = "random"
    """Without --run or --replay: random, or FILE:NAME of a function (obs, rng) -> action, in [-1, 1] or one-hot."""
    env: str = ""
    """For --policy: a Gymnasium id, or a preset and its options in quotes ("dmc.vision --task walker_walk")."""
    episodes: int = 100
    """To play."""
    sampled: bool = False
    """--run: actions are samples of the policy, not its mode."""
    seed: int = 0
    """Of environments and actions."""
    format: str = "minari"
    """As of convert."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """--run: "auto" takes the GPU where there is one."""
    allow: tuple[str, ...] = ()
    """Modules or files outside of worldmodel that the run's configuration may use; they are imported."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.seed < 0:
            raise ValueError(f"--episodes must be positive and --seed not negative, got {self.episodes}, {self.seed}")
        if bool(self.run) + bool(self.replay) + bool(self.env) != 1:
            raise ValueError("give one of --run RUN, --replay RUN, or --env ENV with a --policy")
