"""Agents that hold what was lived get every transition once, in its order."""

from __future__ import annotations

from typing import Any

from worldmodel.errors import UserError
from worldmodel.protocols import Agent, Holds, Replay

CHUNK = 4096
"""Steps given at once."""


def hold_newest(agent: Agent[Any], replay: Replay, num_envs: int) -> None:
    """Give an agent that ``Holds`` the transition which the newest step of replay completes."""
    if isinstance(agent, Holds) and (count := replay.total_steps // num_envs) > 1:
        agent.hold(replay.read(count - 2, count))


def hold_all(agent: Agent[Any], replay: Replay, *, more: bool = False) -> None:
    """Give an agent that ``Holds`` everything in a replay of one stream.

    Args: more: whether others follow, that are lived.
    Raises: UserError where it is more than the agent keeps, or, without others, less than it needs.
    """
    if not isinstance(agent, Holds):
        return
    held, total = 0, replay.total_steps
    for first in range(0, total - 1, CHUNK):
        batch = replay.read(first, min(first + CHUNK + 1, total))
        held += int((~batch.is_first[:, 1:]).sum())
        if held <= agent.capacity:
            agent.hold(batch)
    if held > agent.capacity:
        raise UserError(
            f"the data has {held:,} transitions, but the agent holds {agent.capacity:,}; set --agent.recent {held}"
        )
    if held < agent.needed and not more:
        raise UserError(
            f"the data has {held:,} transitions, but the agent does not learn from fewer than {agent.needed:,}; set "
            f"--agent.first {held}"
        )
