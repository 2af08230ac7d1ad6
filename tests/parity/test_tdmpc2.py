"""Our TD-MPC2 against the authors' (``make_golden_tdmpc2.py``): their weights by the importer, the same noise, the same
numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.parity import make_golden_tdmpc2 as made
from tests.parity.make_golden_tdmpc2 import ELITES, ITERATIONS, PROPOSED, SAMPLES, Noise
from worldmodel.agents.tdmpc2.agent import TDMPC2, TDMPC2Config
from worldmodel.agents.tdmpc2.importer import load_official
from worldmodel.agents.tdmpc2.policy import PriorConfig
from worldmodel.agents.values.ensemble_q import EnsembleQ, EnsembleQConfig
from worldmodel.distributions import log_slope
from worldmodel.errors import CheckpointError
from worldmodel.models.implicit import ImplicitModelConfig, Latent
from worldmodel.nn.normed import NormedEncoderConfig
from worldmodel.planning import noise as planning_noise
from worldmodel.planning.policy_mppi import PolicyMPPI
from worldmodel.types import ActionSpec, ArraySpec, Batch, EnvSpec, Step

GOLDEN = json.loads(Path(__file__).with_name("golden_tdmpc2.json").read_text())
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def official(old: bool = False):
    """A state dict laid out as theirs, of today or of before the end of 2024."""
    state = {name: made.weight(name.replace("_detach_Qs_params", "_Qs.params"), torch.Size(shape))
             for name, shape in GOLDEN["layout"].items() if shape}
    if not old:
        return {"model": state | {"_Qs.params.__batch_size": torch.Size([5]), "log_std_min": torch.tensor(-10)}}
    order = ("weight", "bias", "ln.weight", "ln.bias")
    out = {}
    for name, x in state.items():
        for now, then in (("_Qs.params.", "_Qs.params."), ("_target_Qs_params.", "_target_Qs.params.")):
            if name.startswith(now):
                layer, _, kind = name.removeprefix(now).partition(".")
                name = f"{then}{4 * int(layer) + order.index(kind)}"
        out[name] = x
    return {"model": {name: x for name, x in out.items() if not name.startswith("_detach")}}


def spec(keys=("state",)) -> EnvSpec:
    sizes = {"state": 7, "orientations": 4, "height": 1, "velocity": 2}
    obs = {key: ArraySpec(shape=(sizes[key],) if key != "height" else (), dtype="float32") for key in keys}
    return EnvSpec(name="parity", obs=obs, action=ActionSpec(kind="continuous", size=made.ACTIONS), max_steps=500)


def parity_agent(keys=("state",)) -> TDMPC2:
    search = PolicyMPPI(samples=SAMPLES, policy_samples=PROPOSED, elites=ELITES, iterations=ITERATIONS)
    config = TDMPC2Config(
        model=ImplicitModelConfig(
            encoder=NormedEncoderConfig(units=made.ENCODER), latent=made.LATENT, units=made.UNITS, shifts="always"
        ),
        policy=PriorConfig(units=made.UNITS, entropy="scaled"),
        value=EnsembleQConfig(units=made.UNITS, dropout=0.0, evaluates="all"),
        planner=PolicyMPPI(
            samples=SAMPLES, policy_samples=PROPOSED, elites=ELITES, iterations=ITERATIONS, exploration=1.0
        ),
        evaluator=search, continuation="threshold",
    )
    return config.build(spec(keys))


@pytest.fixture
def agent() -> TDMPC2:
    agent = parity_agent()
    load_official(agent, official())
    return agent


@contextmanager
def same_noise() -> Iterator[None]:
    """What their noise was, in our layout: rows first, and a whole search drawn ahead."""
    noise = Noise()

    def policy(x):
        if x.ndim == 3 and x.shape[1] > 1:
            return noise.policy(x.shape[1], x.shape[0], x.shape[2]).transpose(0, 1)
        return noise.policy(*x.shape)

    def normal(*shape, like):
        if len(shape) == 5:
            b, iterations, samples, horizon, actions = shape
            assert b == 1
            drawn = [noise.search(horizon, samples, actions).transpose(0, 1) for _ in range(iterations)]
            return torch.stack(drawn).unsqueeze(0)
        return noise.search(*shape)

    def gumbel(b, elites, *, like):
        return -noise.exponential(elites).log().unsqueeze(0)

    with (
        mock.patch.object(torch, "randn_like", policy), mock.patch.object(planning_noise, "normal", normal),
        mock.patch.object(planning_noise, "gumbel", gumbel),
        mock.patch.object(EnsembleQ, "draw", lambda q: noise.pair()),
    ):
        yield


def close(ours: torch.Tensor, name: str, golden=GOLDEN) -> None:
    torch.testing.assert_close(ours.detach().flatten(), torch.tensor(golden[name]), **TIGHT)


def seen() -> tuple[Latent, torch.Tensor, dict[str, torch.Tensor]]:
    data = made.batch()
    return data["obs"][0], data["action"][0], data


def encoded(agent: TDMPC2, obs: torch.Tensor) -> Latent:
    one = torch.zeros(len(obs), 1, dtype=torch.bool)
    states = agent.model.observe(
        agent.model.initial(len(obs)), {"state": obs.unsqueeze(1)}, torch.zeros(len(obs), 1, made.ACTIONS), one
    )
    return Latent(z=states.z[:, 0])


@torch.no_grad()
def test_every_head_says_what_theirs_says(agent: TDMPC2) -> None:
    obs, action, _ = seen()
    state = encoded(agent, obs)
    close(state.z, "encode")
    after = agent.model.step(state, action)
    close(after.z, "next")
    close(agent.model.predict(state, action, after).reward, "reward")
    close(torch.sigmoid(agent.model.end_logit(state)), "termination")
    close(agent.value.every(state.z, action), "q")
    policy = agent.policy(state.z)
    close(policy.mode(), "pi_mean")
    close(policy.log_std, "pi_log_std")
    with same_noise():
        close(policy.sample(), "pi")
    with same_noise():
        u, before = policy.draw()
    # log(relu(1 - a^2) + 1e-6) is theirs, the exact logarithm ours: near the bounds they differ
    inside = (torch.tanh(u).abs() < 0.99).all(-1)
    theirs = torch.tensor(GOLDEN["pi_entropy"])
    assert inside.any()
    torch.testing.assert_close((log_slope(u) - before)[inside], theirs[inside], rtol=1e-4, atol=1e-4)
    close(-before * made.ACTIONS, "pi_scaled_entropy")


def test_a_plan_is_theirs_at_the_beginning_warm_and_exploring(agent: TDMPC2) -> None:
    obs, _, _ = seen()
    carry = agent.initial(1)
    agent.calls = 1
    with same_noise():
        for name, first, explore in (("first", True, False), ("second", False, False), ("exploring", False, True)):
            mark, no = torch.tensor([first]), torch.tensor([False])
            step = Step(obs={"state": obs[:1]}, reward=torch.zeros(1), is_first=mark, is_last=no, is_terminal=no)
            action, carry = agent.act(carry, step, explore=explore)
            close(action, "action", GOLDEN["plans"][name])
            close(carry.plan.mean, "mean", GOLDEN["plans"][name])


def our_batch() -> Batch:
    """Rows first, rewards and ends at the step that is arrived in."""
    data = made.batch()
    rows, time = made.ROWS, made.H + 1
    no = torch.zeros(rows, time, dtype=torch.bool)
    late = lambda x: torch.cat([torch.zeros_like(x[:1]), x]).transpose(0, 1).contiguous()  # noqa: E731
    action = torch.cat([data["action"], torch.zeros_like(data["action"][:1])]).transpose(0, 1).contiguous()
    terminal = late(data["terminated"]).bool()
    return Batch(
        obs={"state": data["obs"].transpose(0, 1).contiguous()}, action=action, prev_action=torch.zeros_like(action),
        reward=late(data["reward"]), is_first=no, is_last=terminal, is_terminal=terminal,
    )


def test_an_update_has_their_losses_gradients_and_weights(agent: TDMPC2) -> None:
    with same_noise():
        metrics = agent.learn(our_batch()).metrics
    want = GOLDEN["update"]
    pairs = {
        "loss/consistency": "consistency_loss", "loss/reward": "reward_loss", "loss/value": "value_loss",
        "loss/end": "termination_loss", "loss/total": "total_loss", "update/grad_norm": "grad_norm",
        "loss/policy": "pi_loss", "update/policy_grad_norm": "pi_grad_norm", "policy/entropy": "pi_scaled_entropy",
        "value/scale": "pi_scale",
    }
    for ours, theirs in pairs.items():
        assert float(metrics[ours]) == pytest.approx(want[theirs], rel=1e-5, abs=1e-5), ours
    obs, action, _ = seen()
    with torch.no_grad():
        state = encoded(agent, obs)
        close(state.z, "encode", GOLDEN["after"])
        close(agent.model.step(state, action).z, "next", GOLDEN["after"])
        close(agent.value.every(state.z, action), "q", GOLDEN["after"])
        slow = copy.copy(agent.value)
        slow.fast = agent.value.slow
        close(slow.every(state.z, action), "target_q", GOLDEN["after"])
        with same_noise():
            close(agent.policy(state.z).sample(), "pi", GOLDEN["after"])


def test_files_of_both_layouts_are_read_and_give_one_agent(agent: TDMPC2, tmp_path: Path) -> None:
    for old in (False, True):
        torch.save(official(old), tmp_path / "agent.pt")
        other = parity_agent()
        load_official(other, tmp_path / "agent.pt")
        for name, x in agent.modules.state_dict().items():
            assert torch.equal(x, other.modules.state_dict()[name]), name


@torch.no_grad()
def test_observations_are_put_in_the_order_of_the_checkpoint(agent: TDMPC2) -> None:
    order = ("orientations", "height", "velocity")
    other = parity_agent(order)
    load_official(other, official(), order=order)
    x = made.wave(3, 7, phase=1.0)
    ours = {"orientations": x[:, :4], "height": x[:, 4], "velocity": x[:, 5:]}
    torch.testing.assert_close(other.model.encode(ours, shift=False), agent.model.encode({"state": x}, shift=False))
    with pytest.raises(CheckpointError, match="order must name"):
        load_official(other, official(), order=("orientations",))


def test_other_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    agent = parity_agent()
    with pytest.raises(CheckpointError, match="there is no file"):
        load_official(agent, tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="no checkpoint of tensors"):
        load_official(agent, tmp_path / "bad.pt")
    torch.save(agent.policy, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="need code to be read are refused"):
        load_official(agent, tmp_path / "code.pt")
    small = official()
    del small["model"]["_pi.0.weight"]
    with pytest.raises(CheckpointError, match=r"1 are missing \(the first: policy.net.0.linear.weight\)"):
        load_official(agent, small)
    small["model"]["_reward.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"model.reward.0.linear.weight \(3, 3\)"):
        load_official(agent, small)
