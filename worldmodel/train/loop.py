"""The training loop: five nouns, verbs in order."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from worldmodel import tree
from worldmodel.errors import CheckpointError, DivergenceError, StorageError
from worldmodel.protocols import Adopts, Agent, EnvPool, Replay
from worldmodel.train.checkpoint import Checkpoint, Checkpoints
from worldmodel.train.config import TrainConfig
from worldmodel.train.display import Display, Facts
from worldmodel.train.distributed import Alone
from worldmodel.train.diverged import dump, non_finite
from worldmodel.train.evaluate import Evaluator, Interrupted, Scores
from worldmodel.train.hold import hold_newest
from worldmodel.train.log import Logger
from worldmodel.train.meter import Clock, Episodes, Meter
from worldmodel.train.pictures import draw_curve
from worldmodel.train.schedule import Every, TrainRatio
from worldmodel.train.video import open_loop_grid
from worldmodel.types import Batch, Step, Update

DREAMS, DREAM_LENGTH = 5, 64
"""Sequences in an open-loop video, and their steps: the first half observed, the second dreamed."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended."""

    env_steps: int
    """Decisions; offline, updates."""
    updates: int
    reason: str
    """"steps", "return" (stop_at_return reached), "signal", or "followed": another process led."""
    signal: int | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    """The last evaluation."""
    seconds: float = 0.0


@dataclass(kw_only=True)
class Output:
    """Where a run tells about itself."""

    logger: Logger
    display: Display
    checkpoints: Checkpoints
    meta: dict[str, Any]
    """What every checkpoint says of the run: config hash, commit, versions."""


class Trainer:
    """Acts, remembers, learns; and evaluates, logs and saves on schedule."""

    def __init__(
        self, *, agent: Agent[Any], pool: EnvPool, replay: Replay, evaluator: Evaluator, output: Output,
        config: TrainConfig, batch_steps: int, seed: int, interrupted: Any, crew: Alone, offline: bool = False,
    ) -> None:
        """Args: batch_steps = batch_size * length; interrupted.requested is a signal number or None; crew: who shares
        each batch; offline: replay has everything that is learned from, and an update stands in the place of a decision
        in every counter and cadence."""
        self.offline = offline
        self.crew = crew
        self.agent, self.pool, self.replay, self.evaluator, self.out = agent, pool, replay, evaluator, output
        self.config, self.seed, self.interrupted = config, seed, interrupted
        self.ratio = TrainRatio(config.train_ratio, batch_steps, first=config.first_updates)
        self.env_steps = 0
        self.meter, self.clock, self.episodes = Meter(), Clock(), Episodes(pool.num_envs)
        self.recent: list[float] = []
        self.scores: dict[str, Scores] = {}
        self.when_log = Every(steps=config.log_steps, seconds=config.log_every)
        self.when_eval = Every(steps=config.eval_every)
        self.when_save = Every(steps=config.checkpoint_steps, seconds=config.checkpoint_every)
        self.carry: Any = agent.initial(pool.num_envs, seed=seed)
        self.step: Step | None = None
        self._saved_at = self._evaluated_at = -1
        self._owes_evaluation = False
        """A signal came in the middle of one: it is done again when the run goes on."""
        self._batch: Batch | None = None
        self._marks = (time.monotonic(), 0, 0)

    def run(self) -> Summary:
        """Train until the steps are done, the wished-for return is reached, or a signal asks to stop."""
        start = time.monotonic()
        if self.step is None and not self.offline:
            self.step = self.pool.reset(self.seed)
        self._study()
        reason = "return" if self._owes_evaluation and self._evaluate() else "steps"
        if self.interrupted.requested is not None:
            reason = "signal"
        while reason == "steps" and self.env_steps < self.config.steps:
            if self.step is None:
                self._learn()
                self.ratio.updates += 1
                self.env_steps += 1
            else:
                self._live(self.step)
            if self.when_log(self.env_steps):
                self._log()
            if self.config.eval_every and self.when_eval(self.env_steps) and self._evaluate():
                reason = "return"
                break
            if self.when_save(self.env_steps):
                self._save_or_warn()
            if self.interrupted.requested is not None:
                reason = "signal"
                break
        if reason == "steps" and self._evaluated_at != self.env_steps:
            self._evaluate()
        if self._owes_evaluation:
            reason = "signal"
        if reason != "signal" and self.meter.is_waiting:
            self._log()
        self.save()
        return Summary(
            env_steps=self.env_steps, updates=self.ratio.updates, reason=reason, signal=self.interrupted.requested,
            scores=self.scores, seconds=time.monotonic() - start,
        )

    def _live(self, step: Step) -> None:
        """A decision in every environment, and the updates that are due."""
        with self.clock("act"):
            action, self.carry = self.agent.act(self.carry, step, explore=True)
            self.pool.send(action)
        # while the environments step: what is learned here needs nothing of the step to come
        with self.clock("replay"):
            self.replay.add(step, action, self.agent.memory(self.carry))
            hold_newest(self.agent, self.replay, self.pool.num_envs)
        due = self.ratio.due(self.pool.num_envs, self.crew.ready(self.replay.is_ready))
        for _ in range(self.crew.order(due)):
            self._learn()
        with self.clock("env"):
            self.step = self.pool.receive()
        self.env_steps += self.pool.num_envs * self.crew.size
        self._note_episodes(self.step)

    def _study(self) -> None:
        """Learn from what replay holds until there were ``min_updates``; an evaluation follows."""
        if self.offline or self.ratio.updates >= self.config.min_updates or not self.replay.is_ready:
            return
        while self.ratio.updates < self.config.min_updates and self.interrupted.requested is None:
            self._learn()
            self.ratio.updates += 1
        # the same decisions, but another agent than the one that was saved
        self._saved_at, self._owes_evaluation = -1, True

    def _learn(self) -> None:
        with self.clock("sample"):
            batch = self._batch = self.replay.sample()
        with self.clock("learn"):
            update: Update = self.agent.learn(batch)
        with self.clock("replay"):
            self.replay.write_back(batch, update)
        self.meter.add(update.metrics)
        self._stop_when_diverged(update.metrics.get("update/bad_streak"))

    def _stop_when_diverged(self, streak: Tensor | None) -> None:
        # reading a device counter waits for the device: on a GPU only now and then
        limit = self.config.max_bad_updates
        if streak is None or (streak.is_cuda and self.ratio.updates % limit):
            return
        if int(streak) >= limit:
            raise DivergenceError(
                f"{int(streak)} updates in a row had a non-finite loss or gradient (limit train.max_bad_updates="
                f"{limit}); the last good checkpoint is intact: look at metrics.jsonl, and start a new run with a "
                f"lower --agent.lr"
            )

    def _note_episodes(self, step: Step) -> None:
        for return_, length in self.episodes.add(step.reward, step.is_first, step.is_last):
            self.recent.append(return_)
            self.out.logger.score(
                self.env_steps, {"kind": "train", "frames": self.frames, "return": return_, "length": length}
            )
            self.meter.add({"episode/return": torch.tensor(return_), "episode/length": torch.tensor(float(length))})

    @property
    def now(self) -> str:
        """How far the run is, in words."""
        return f"{self.env_steps:,} {'updates' if self.offline else 'decisions'}"

    @property
    def frames(self) -> int:
        """Simulator frames so far: decisions x action repeat; offline, updates."""
        return self.env_steps * (1 if self.offline else self.pool.spec.repeat)

    def _log(self) -> None:
        row = self.meter.take()
        spent = self.clock.take()
        now, (then, steps, updates) = time.monotonic(), self._marks
        seconds = max(now - then, 1e-9)
        rates = ((self.env_steps - steps) / seconds, (self.ratio.updates - updates) / seconds)
        self._marks = (now, self.env_steps, self.ratio.updates)
        row |= {"frames": float(self.frames), "updates": float(self.ratio.updates)}
        row |= {f"replay/{name}": value for name, value in self.replay.stats().items()}
        row |= {f"env/{name}": value for name, value in self.pool.stats().items()}
        row |= {f"time/{part}_ms": ms for part, ms in spent.items()}
        row |= {"fps/env": rates[0], "fps/update": rates[1]}
        self.out.logger.scalars(self.env_steps, row)
        left = self.config.steps - self.env_steps
        self.out.display.update(
            Facts(
                step=self.env_steps,
                env_rate=rates[0],
                update_rate=rates[1],
                ms=spent,
                returns=tuple(self.recent[-200:]),
                losses={k.removeprefix("loss/"): v for k, v in row.items() if k.startswith("loss/")},
                eta_s=left / rates[0] if rates[0] > 0 else None,
                replay_bytes=int(row.get("replay/bytes", 0)),
                notes={k.removeprefix("update/"): v for k, v in row.items() if k == "update/skipped" and v},
            )
        )
        self.recent = self.recent[-200:]

    def _evaluate(self) -> bool:
        """Evaluate, film, dream; True when the wished-for return is reached."""
        try:
            with self.clock("evaluate"):
                self.scores = self.evaluator(self.agent, lambda: self.interrupted.requested is not None)
        except Interrupted:
            self._owes_evaluation = True
            return False
        self._owes_evaluation, self._evaluated_at = False, self.env_steps
        for kind, scores in self.scores.items():
            summary = scores.summary()
            self.out.logger.score(
                self.env_steps, {"kind": f"eval_{kind}", "frames": self.frames, **summary, "returns": scores.returns}
            )
            self.out.logger.scalars(self.env_steps, {f"eval_{kind}/{name}": value for name, value in summary.items()})
        mode, sampled = self.scores["mode"], self.scores["sampled"]
        self.out.display.message(
            f"evaluation at {self.now}: return {mode.mean:.3g} by mode, {sampled.mean:.3g} sampled, "
            f"{len(mode.returns)} episodes each"
        )
        self._draw_curve()
        if mode.frames:
            self._film("episode", torch.stack([torch.from_numpy(f) for f in mode.frames]).numpy())
        if self.replay.is_ready:
            self._dream()
        target = self.config.stop_at_return
        return target is not None and mode.mean >= target

    def _draw_curve(self) -> None:
        """The learning curve so far, so that a killed run has one as well; without it training goes on."""
        try:
            draw_curve(self.out.logger.run_dir, self.pool.spec.name)
        except (StorageError, OSError, ValueError) as error:
            self.out.display.message(f"no learning curve at {self.now}, training goes on: {error}")

    def _dream(self) -> None:
        """Open-loop videos: truth, model, error."""
        report = self.agent.report(self.replay.peek(rows=DREAMS, length=DREAM_LENGTH))
        scalars = {name: float(x) for name, x in report.items() if name.startswith("report/")}
        if scalars:
            self.out.logger.scalars(self.env_steps, scalars)
        for name, truth in report.items():
            kind, _, key = name.partition("/")
            if kind == "truth":
                model = report[f"model/{key}"]
                context, scale = truth.shape[1] // 2, max(1, 96 // truth.shape[2])
                grid = open_loop_grid(truth.cpu().numpy(), model.cpu().numpy(), context=context, scale=scale)
                self._film("dream" if key == "image" else f"dream_{key.replace('/', '_')}", grid)

    def _film(self, name: str, frames: Any) -> None:
        path = self.out.logger.video(self.env_steps, name, frames, fps=12)
        if path is not None:
            self.out.display.message(f"{name}: {path}")

    # Checkpoints

    def save(self, *, with_envs: bool = True) -> None:
        """Write a checkpoint of everything, unless this very step has one; without the environments where these are
        broken: a resume then begins new episodes.

        Raises: StorageError, and DivergenceError where the agent holds anything that is not finite.
        """
        if self._saved_at == self.env_steps or (self.step is None and not self.offline):
            return
        agent = self._agent_groups()
        if broken := non_finite(agent):
            raise DivergenceError(
                f"at {self.now} {len(broken)} tensors of the agent are not finite, the first is "
                f"{broken[0]}; this is not saved, older checkpoints are intact: start a new run with a lower --agent.lr"
            )
        envs = self.pool.get_state() if with_envs and not self.offline else None
        documents = {
            "trainer": {
                "env_steps": self.env_steps,
                "ratio": self.ratio.state(),
                "episodes": self.episodes.state(),
                "meter": self.meter.state(),
                "recent": self.recent,
                "logger": self.out.logger.position(),
                "envs_cloned": envs is not None,
                "owes_evaluation": self._owes_evaluation,
                "threads": torch.get_num_threads(),
            },
            "envs": envs,
        }
        tensors = {
            **agent,
            "carry": {str(i): x for i, x in enumerate(tree.leaves(self.carry))},
        }
        if self.step is not None:
            tensors["step"] = {str(i): x for i, x in enumerate(tree.leaves(self.step))}
        path = self.out.checkpoints.save(
            self.env_steps, tensors=tensors, documents=documents, writers={"replay": self.replay.save},
            meta={**self.out.meta, "updates": self.ratio.updates, "frames": self.frames},
        )
        self._saved_at = self.env_steps
        self.out.display.message(f"checkpoint: {path}")

    def _agent_groups(self) -> dict[str, dict[str, Tensor]]:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, x in self.agent.state_dict().items():
            group, _, rest = name.partition("/")
            groups.setdefault(f"agent_{group}", {})[rest] = x
        return groups

    def dump(self) -> str:
        """Keep the last batch and the agent for who looks for the cause of a divergence; says where, in a sentence."""
        folder = self.out.logger.run_dir / "diverged"
        return dump(folder, self.env_steps, self._agent_groups(), self._batch, self.out.meta)

    def save_broken(self) -> None:
        """Keep what was learned when environments end the run."""
        try:
            self.save(with_envs=False)
        except StorageError as error:
            self.out.display.message(f"no checkpoint at {self.now}: {error}")

    def _save_or_warn(self) -> None:
        """A checkpoint on schedule may fail (a full disk): the older ones are intact, and training goes on."""
        try:
            self.save()
        except StorageError as error:
            self.out.display.message(f"no checkpoint at {self.now}, training goes on: {error}")

    def load(self, checkpoint: Checkpoint) -> str:
        """Go on from a checkpoint; returns how exactly, as a sentence.

        Raises: CheckpointError where it holds something else.
        """
        try:
            return self._load(checkpoint)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not hold what a run needs ({type(error).__name__}: {error}); use the version "
                f"of worldmodel that wrote it, or start a new run"
            ) from error

    def _load(self, checkpoint: Checkpoint) -> str:
        state = checkpoint.document("trainer")
        restore_agent(self.agent, checkpoint)
        lost = self.replay.load(checkpoint.folder("replay"), salvage=not checkpoint.is_whole)
        self.env_steps = self._saved_at = int(state["env_steps"])
        self.ratio.load(state["ratio"])
        self.out.logger.rewind(state["logger"])
        for every in (self.when_log, self.when_eval, self.when_save):
            every.resume(self.env_steps)
        self._marks = (time.monotonic(), self.env_steps, self.ratio.updates)
        self._owes_evaluation = bool(state.get("owes_evaluation", False))
        if not self.offline and (lost or not state["envs_cloned"]):
            # fresh episodes with fresh seeds; replay marks the broken one as truncated
            self.step = self.pool.reset(self.seed + 1_000_003 * (1 + self.env_steps))
            why = f"{lost:,} damaged steps of replay are left out" if lost else "these environments cannot be cloned"
            return f"resumed statistically: {why}, so their running episodes were cut (truncated)"
        self.carry = _fill(self.carry, checkpoint.tensors("carry"))
        if not self.offline:
            self.step = self.pool.reset(self.seed)
            self.pool.set_state(checkpoint.document("envs"))
            self.step = _fill(self.step, checkpoint.tensors("step"))
        self.episodes.load(state["episodes"])
        self.meter.load(state["meter"])
        self.recent = list(state["recent"])
        meta, mine = checkpoint.meta, self.out.meta
        then = (state["threads"], meta["versions"]["torch"], meta["device"], meta.get("compile", "eager"))
        now = (torch.get_num_threads(), torch.__version__, mine["device"], mine.get("compile", "eager"))
        names = ("--train.threads", "torch", "--device", "--train.compile")
        changed = [f"{name} {old} -> {new}" for name, old, new in zip(names, then, now) if old != new]
        if changed:
            return f"resumed, but not bit for bit, because rounding changes with {', '.join(changed)}"
        kept = "replay" if self.offline else "replay, environments"
        return f"resumed bit for bit: weights, optimiser, {kept} and every random stream"


def restore_agent(agent: Agent[Any], checkpoint: Checkpoint) -> None:
    """Load what a checkpoint keeps of an agent.

    Raises: CheckpointError where it is of an agent of other parts or sizes.
    """
    saved, mine = agent_state(checkpoint), agent.state_dict()
    # a random stream's state has another size on another kind of device
    difference = tree.differing(*({k: x for k, x in s.items() if not k.startswith("rng/")} for s in (saved, mine)))
    if difference:
        raise CheckpointError(
            f"{checkpoint.path} is of another agent: {difference} in what config.json describes; restore the run "
            f"folder from a copy, or start a new run"
        )
    agent.load_state_dict(saved)


def adopt_agent(agent: Agent[Any], checkpoint: Checkpoint) -> None:
    """Begin as the agent of another run: with all that it learned, and nothing that it holds of what it lived.

    Raises: CheckpointError where it is an agent of other parts or sizes.
    """
    if not isinstance(agent, Adopts):
        restore_agent(agent, checkpoint)
        return
    try:
        agent.adopt(agent_state(checkpoint))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.path} is of another agent ({error}); give the same preset and sizes that it was trained with"
        ) from error


def agent_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The flat ``Agent.state_dict`` kept in a checkpoint."""
    out = {}
    for file in checkpoint.groups():
        if file.startswith("agent_"):
            out |= {f"{file.removeprefix('agent_')}/{name}": x for name, x in checkpoint.tensors(file).items()}
    return out


def _fill(like: Any, saved: dict[str, Tensor]) -> Any:
    """A tree with the structure of ``like`` and the saved leaves, in order."""
    order = itertools.count()
    return tree.map(lambda x: saved[str(next(order))].to(x.device), like)
