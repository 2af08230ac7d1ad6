"""A trained agent as users hold it: act on what any environment says, in a loop of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.config import Run
from worldmodel.envs.spaces import Translator
from worldmodel.errors import EnvError
from worldmodel.protocols import Agent
from worldmodel.specs import ArraySpec, EnvSpec
from worldmodel.train.checkpoint import Checkpoint
from worldmodel.types import Step


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained agent, what it was trained on, and where its weights come from; made by ``worldmodel.load``."""

    agent: Agent[Any]
    run: Run
    spec: EnvSpec
    """Observations and actions that the agent knows."""
    checkpoint: Checkpoint

    def initial(self, num_envs: int = 1, *, seed: int = 0) -> Any:
        """The carry of ``num_envs`` environments that knows nothing yet; ``seed`` starts its random stream."""
        return self.agent.initial(num_envs, seed=seed)

    def act(self, carry: Any, step: Step, *, explore: bool = False) -> tuple[Tensor, Any]:
        """Actions (N, A) for the observations of now, and the carry for the next call; by mode unless ``explore``."""
        return self.agent.act(carry, step, explore=explore)

    def connect(self, env: Any) -> GymLink:
        """What translates between this agent and a Gymnasium environment.

        Raises: EnvError where its spaces are not those that the agent was trained on.
        """
        return GymLink(env, self.spec)


class GymLink:
    """Between a trained agent and one Gymnasium environment: observations to a Step of N = 1, actions back.

    ``spec.repeat`` steps of the environment are one decision of the agent; this is left to the caller.
    """

    def __init__(self, env: Any, spec: EnvSpec) -> None:
        """Args: env a gymnasium.Env; spec of the agent's observations and actions."""
        sides = {array.shape[:2] for array in spec.obs.values() if array.is_image}
        height, width = sides.pop() if len(sides) == 1 else (0, 0)
        # what training has resized is square; anything else came as it is
        size = height if height == width else 0
        self._translator = Translator(str(env), env.observation_space, env.action_space, size=size)
        given = (self._translator.obs, self._translator.action)
        if given != (spec.obs, spec.action):
            raise EnvError(
                f"{env} does not fit: the agent was trained on {spec.name}, observations {_said(spec.obs)} and "
                f"{spec.action}, this offers {_said(given[0])} and {given[1]}; use the same environment and wrappers"
            )

    def step(
        self, obs: Any, reward: float = 0.0, terminated: bool = False, truncated: bool = False, *,
        is_first: bool = False,
    ) -> Step:
        """What ``reset`` (then with ``is_first``) or ``step`` of the environment returned, as the agent expects it."""
        return Step(
            obs={key: torch.from_numpy(x).unsqueeze(0) for key, x in self._translator.observe(obs).items()},
            reward=torch.tensor([float(reward)]),
            is_first=torch.tensor([is_first]),
            is_last=torch.tensor([bool(terminated or truncated)]),
            is_terminal=torch.tensor([bool(terminated)]),
        )

    def action(self, action: Tensor) -> Any:
        """An action (1, A) of the agent as the environment's ``step`` expects it."""
        return self._translator.act(action[0].detach().cpu().numpy().astype(np.float32))


def _said(obs: dict[str, ArraySpec]) -> str:
    return ", ".join(f"{key} {array.shape} {array.dtype}" for key, array in obs.items())
