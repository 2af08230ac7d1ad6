"""The default of ``worldmodel train``: a world model learned from pixels on a laptop CPU in minutes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from worldmodel.agents.dreamer.agent import DreamerConfig
from worldmodel.config import Run
from worldmodel.configs.sizes import Core, Objective, dreamer
from worldmodel.envs.toys import ToyConfig
from worldmodel.errors import UserError
from worldmodel.models.cores.mamba import MambaConfig
from worldmodel.models.cores.transformer import TransformerConfig
from worldmodel.replay.config import ReplayConfig
from worldmodel.train.config import TrainConfig

STEPS = {"catch": 16_000, "glide": 48_000, "recall": 32_000}
"""Decisions of each toy: Catch is learned in a few minutes, Recall and Glide in about ten (docs/results)."""


PUBLISHED = "nobody's: the optimum is known (see the environment's reference returns)"


def quickstart(
    task: Literal["catch", "glide", "recall"] = "catch",
    objective: Objective = "reconstruction",
    core: Core = "rssm",
    delay: int = 8,
) -> Run:
    """Catch, Glide or Recall from 32 x 32 pixels, in minutes on two CPU cores.

    Args: delay, the empty pictures through which Recall asks to remember; more than 8 take longer.
    """
    if delay != 8 and task != "recall":
        raise UserError(f"--delay is of --task recall; {task} has none")
    # Catch and Recall pay little until the model is good: noise must not talk the policy out of trying before.
    entropy = 3e-4 if task == "glide" else 0.03
    agent = dreamer("nano", objective=objective, core=core, imagination=10, lr=3e-3)
    agent = replace(agent, actor=replace(agent.actor, entropy=entropy))
    if delay > 8:
        return _long(agent, delay)
    return Run(
        env=ToyConfig(task=task, delay=delay),
        agent=_precise(agent, objective) if task == "glide" else agent,
        replay=ReplayConfig(capacity=100_000, batch_size=16, length=16),
        train=TrainConfig(
            steps=STEPS[task],
            num_envs=8,
            train_ratio=32,
            eval_every=4_000,
            eval_episodes=100,
            eval_envs=25,
            log_steps=1_000,
            checkpoint_steps=4_000,
            threads=1,
        ),
        published=PUBLISHED,
    )


def _long(agent: DreamerConfig, delay: int) -> Run:
    """For Recall across many empty pictures. A cue is worth ln 4 = 1.39 nats once in an episode, among ``delay``
    pictures that are worth nothing: none of it is free, the posterior shall say each thing once, games begin short and
    grow with what is remembered, and sequences hold the longest from end to end. The core begins with a memory that
    reaches so far; where that lies beside the features, these look things up when they have seen the question, not a
    step before. And the policy tries every answer until it knows better: it begins to guess before it can know."""
    core, lr = agent.model.core, 1.5e-3
    if isinstance(core, TransformerConfig):
        core, lr = replace(core, window=delay + 4, actions="prior"), 1e-3
    elif isinstance(core, MambaConfig):
        core = replace(core, remember=delay, headdim=8, actions="prior")
    else:
        core = replace(core, remember=delay)
    length = delay + delay // 2
    model = replace(agent.model, core=core, free_nats=0.0, rep_scale=0.3)
    return Run(
        env=ToyConfig(task="recall", delay=delay, shortest=4),
        agent=replace(
            agent, model=model, imagination=3, context="blank", lr=lr, actor=replace(agent.actor, entropy=0.1)
        ),
        replay=ReplayConfig(capacity=100_000, batch_size=max(2, 512 // length), length=length),
        train=TrainConfig(
            steps=48_000, num_envs=8, train_ratio=64, eval_every=4_000, eval_episodes=100, eval_envs=25,
            log_steps=1_000, checkpoint_steps=4_000, threads=1,
        ),
        published=PUBLISHED,
    )


def _precise(agent: DreamerConfig, objective: Objective) -> DreamerConfig:
    """For Glide, where a pixel matters. Its episodes are 50 steps: a discount that looks 333 ahead drowns the price of
    being slightly off in the sum of all that follows. Remembered latents are some hundred updates old, in which a small
    model moves far: it then filters what it can no longer read. And the posterior shall stay where the prior can
    follow. Without a decoder to shape the latents, the score function finds too little in them; the gradient of the
    dynamics finds more, in smaller steps. On Mamba's it was the policy that was imprecise, not the model, so it is
    taken there too. Blocks take smaller steps: at 3e-3 they lost what they had learned. Their features say more of the
    next step where they have seen this one, and one block is enough for two pictures."""
    core = agent.model.core
    if objective != "reconstruction" or isinstance(core, MambaConfig):
        agent = replace(agent, lr=1.5e-3, actor=replace(agent.actor, gradient="dynamics"))
    if isinstance(core, TransformerConfig):
        core, agent = replace(core, actions="prior", layers=1), replace(agent, lr=1e-3)
    elif isinstance(core, MambaConfig):
        core = replace(core, actions="prior")
    model = replace(agent.model, core=core, continue_target=1 - 1 / 30, rep_scale=0.1)
    return replace(agent, model=model, horizon=30.0, context="blank")
