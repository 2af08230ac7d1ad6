"""Our TD-MPC against the authors' (``make_golden_tdmpc.py``): the same weights, the same noise, the same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.parity import make_golden_tdmpc as made
from worldmodel.agents.tdmpc2.agent import TDMPC2
from worldmodel.configs.tdmpc2 import configured
from worldmodel.planning import noise as planning_noise
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec, Step

GOLDEN = json.loads(Path(__file__).with_name("golden_tdmpc.json").read_text())
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def theirs(name: str) -> Tensor:
    return made.weight(name, GOLDEN["layout"][name.removeprefix("target.")])


def filled(agent: TDMPC2) -> TDMPC2:
    """Their weights in our layout."""
    state = agent.modules.state_dict()

    def put(ours: str, name: str) -> None:
        for kind in ("weight", "bias"):
            state[f"{ours}.{kind}"].copy_(theirs(f"{name}.{kind}"))

    with torch.no_grad():
        for prefix, encoder, project in (
            ("", "model.encoder", "model.project"), ("target.", "model.slow.0", "model.slow.1"),
        ):
            put(f"{encoder}.mlp.0.linear", f"{prefix}_encoder.0")
            put(project, f"{prefix}_encoder.2")
        for ours, name in (("model.dynamics", "_dynamics"), ("model.reward", "_reward"), ("policy.net", "_pi")):
            for i, layer in enumerate(("0.linear", "1.linear", "2")):
                put(f"{ours}.{layer}", f"{name}.{2 * i}")
        for prefix, ours in (("", "value.fast"), ("target.", "value.slow")):
            for member, name in enumerate(("_Q1", "_Q2")):
                for i, layer in enumerate((0, 3, 5)):
                    state[f"{ours}.layers.{i}.weight"][member] = theirs(f"{prefix}{name}.{layer}.weight").T
                    state[f"{ours}.layers.{i}.bias"][member] = theirs(f"{prefix}{name}.{layer}.bias")
                state[f"{ours}.norms.0.scale"][member] = theirs(f"{prefix}{name}.1.weight")
                state[f"{ours}.norms.0.shift"][member] = theirs(f"{prefix}{name}.1.bias")
    return agent


@pytest.fixture
def agent() -> TDMPC2:
    config = configured("5m", mode="tdmpc", ends="never")
    search = {
        "samples": made.SAMPLES + made.PROPOSED, "policy_samples": made.PROPOSED, "elites": made.ELITES,
        "iterations": made.ITERATIONS,
    }
    encoder = replace(config.model.encoder, units=made.ENCODER)
    config = replace(
        config, model=replace(config.model, encoder=encoder, latent=made.LATENT, units=made.UNITS),
        policy=replace(config.policy, units=made.UNITS), value=replace(config.value, units=made.UNITS),
        planner=replace(config.planner, **search), evaluator=replace(config.evaluator, **search),
    )
    obs = {"state": ArraySpec(shape=(made.OBS,), dtype="float32")}
    return filled(config.build(EnvSpec(name="p", obs=obs, action=ActionSpec(kind="continuous", size=made.ACTIONS))))


@contextmanager
def same_noise() -> Iterator[None]:
    def normal(*shape: int, like: Tensor) -> Tensor:
        if len(shape) == 2:
            return made.executed().expand(shape)
        return torch.stack([made.search(i).transpose(0, 1) for i in range(made.ITERATIONS)]).unsqueeze(0)

    with (
        mock.patch.object(torch, "randn_like", lambda x: torch.tensor(made.NOISE).expand(x.shape)),
        mock.patch.object(planning_noise, "normal", normal),
        mock.patch.object(planning_noise, "gumbel", lambda *shape, like: torch.zeros(shape)),
    ):
        yield


def close(ours: Tensor, want: list[float]) -> None:
    torch.testing.assert_close(ours.detach().flatten(), torch.tensor(want), **TIGHT)


@pytest.mark.parametrize("step", made.STEPS)
def test_plans_at_the_beginning_and_later(agent: TDMPC2, step: int) -> None:
    agent.updates.fill_(step)
    agent.ramp.follow(agent.updates)
    agent.calls, depth = step, 2 if step == made.STEPS[0] else made.H
    no = torch.zeros(1, dtype=torch.bool)
    obs = {"state": made.data()["obs"][0, :1]}
    carry = agent.initial(1)
    for golden, first in zip(GOLDEN["plans"][str(step)], (True, False)):
        now = Step(obs=obs, reward=torch.zeros(1), is_first=no | first, is_last=no, is_terminal=no)
        with same_noise():
            action, carry = agent.act(carry, now, explore=not first)
        # their environment cuts actions to the bounds
        close(action, torch.tensor(golden["action"]).clamp(-1, 1).tolist())
        close(carry.plan.mean[:, :depth], golden["mean"])
        assert not carry.plan.mean[:, depth:].any()


def test_an_update(agent: TDMPC2) -> None:
    d = made.data()
    no = torch.zeros(made.ROWS, made.H + 1, dtype=torch.bool)
    nothing = torch.zeros(1, made.ROWS, made.ACTIONS)
    action = torch.cat([d["action"], nothing]).transpose(0, 1)
    batch = Batch(
        obs={"state": d["obs"].transpose(0, 1)}, action=action, prev_action=action.roll(1, 1),
        reward=torch.cat([torch.zeros(1, made.ROWS), d["reward"]]).transpose(0, 1), is_first=no, is_last=no,
        is_terminal=no, weight=d["weight"],
    )
    with same_noise():
        update = agent.learn(batch)
    told, golden = {key: float(x) for key, x in update.metrics.items()}, GOLDEN["update"]
    # theirs are sums over steps
    for ours, name in (("consistency", "consistency"), ("reward", "reward"), ("value", "value")):
        assert told[f"loss/{ours}"] * made.H == pytest.approx(golden[f"{name}_loss"], rel=1e-5)
    # their gradient is divided by the horizon, their loss is not
    assert told["loss/total"] * made.H == pytest.approx(golden["weighted_loss"], rel=1e-5)
    assert told["update/grad_norm"] == pytest.approx(golden["grad_norm"], rel=1e-4)
    assert told["loss/policy"] == pytest.approx(golden["pi_loss"], rel=1e-5)
    close(update.priority[:, 0] - 1e-6, GOLDEN["priorities"])
    obs, action, after = {"state": d["obs"][0]}, d["action"][0], GOLDEN["after"]
    with torch.no_grad():
        z = agent.model.encode(obs, shift=False)
        close(z, after["encode"])
        close(agent.model.slow(obs), after["slow"])
        told = torch.cat([z, action], -1)
        close(agent.model.dynamics(told), after["next"])
        close(agent.model.reward(told), after["reward"])
        close(agent.policy(z).mode(), after["pi"])
        close(agent.value.fast(told), after["q"])
        close(agent.value.slow(told), after["target_q"])
