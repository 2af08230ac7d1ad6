"""Writes golden_tdmpc.json: what nicklashansen/tdmpc says, with weights, data and noise made of formulas.

    git clone https://github.com/nicklashansen/tdmpc /tmp/tdmpc
    PYTHONPATH=. python tests/parity/make_golden_tdmpc.py /tmp/tdmpc

Written at commit f4d85ec. The authors' code wants a GPU: in a copy of it ".cuda()" is gone and 'cuda' is 'cpu'.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from tests.parity.waves import wave

OBS, ACTIONS, LATENT, UNITS, ENCODER = 7, 2, 10, 24, 20
ROWS, H = 4, 5
SAMPLES, PROPOSED, ELITES, ITERATIONS = 40, 2, 8, 3
NOISE = (0.9, -0.4)
"""Of a policy, the same everywhere; times 0.05."""
STEPS = (10_000, 50_000)
"""Updates after which is planned: with a horizon of 2 and a floor of 0.32, and with 5 and 0.05."""


def weight(name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """A parameter by the authors' name: 1.5/sqrt(fan-in), scales of norms around 1, biases 0.2."""
    phase = float(sum(map(ord, name)) % 89)
    if len(shape) == 2:
        return wave(*shape, phase=phase, scale=1.5 / shape[-1] ** 0.5)
    return wave(*shape, phase=phase, scale=0.2) + (1.0 if name.endswith("1.weight") else 0.0)


def data() -> dict[str, Tensor]:
    """obs (H+1, ROWS, OBS), action (H, ROWS, A), reward (H, ROWS), weight (ROWS,)."""
    return {
        "obs": wave(H + 1, ROWS, OBS, phase=3.0, scale=2.0), "action": wave(H, ROWS, ACTIONS, phase=4.0),
        "reward": wave(H, ROWS, phase=5.0, scale=3.0), "weight": 0.6 + wave(ROWS, phase=6.0, scale=0.4),
    }


def search(iteration: int) -> Tensor:
    """(H, SAMPLES, A) of candidates."""
    return wave(H, SAMPLES, ACTIONS, phase=41.0 + iteration, scale=1.3)


def executed() -> Tensor:
    """(A,) of the action that is executed."""
    return wave(ACTIONS, phase=71.0)


class Replay:
    """Gives one batch and keeps the priorities."""

    def sample(self) -> tuple[Tensor, ...]:
        """As theirs, with a further step that nobody reads."""
        d = data()
        ahead = torch.cat([d["obs"][1:], d["obs"][:1]])
        action, reward = (torch.cat([d[key], d[key][:1]]) for key in ("action", "reward"))
        return d["obs"][0], ahead, action, reward.unsqueeze(2), torch.arange(ROWS), d["weight"]

    def update_priorities(self, index: Tensor, priorities: Tensor) -> None:
        self.priorities = priorities


def theirs(folder: Path) -> Any:
    """Their agent on a CPU, filled."""
    copy = Path(tempfile.mkdtemp()) / "src"
    shutil.copytree(folder / "src", copy)
    for path in (copy / "algorithm").glob("*.py"):
        path.write_text(path.read_text().replace(".cuda()", "").replace("'cuda'", "'cpu'"))
    sys.path.insert(0, str(copy))
    config = SimpleNamespace(
        modality="state", obs_shape=(OBS,), action_dim=ACTIONS, latent_dim=LATENT, mlp_dim=UNITS, enc_dim=ENCODER,
        img_size=84, iterations=ITERATIONS, num_samples=SAMPLES, num_elites=ELITES, mixture_coef=PROPOSED / SAMPLES,
        min_std=0.05, temperature=0.5, momentum=0.1, horizon=H, reward_coef=0.5, value_coef=0.1, consistency_coef=2,
        rho=0.5, lr=1e-3, std_schedule="linear(0.5, 0.05, 25000)", horizon_schedule=f"linear(1, {H}, 25000)",
        grad_clip_norm=10, seed_steps=0, update_freq=2, tau=0.01, discount=0.99,
    )
    agent = importlib.import_module("algorithm.tdmpc").TDMPC(config)
    with torch.no_grad():
        for prefix, model in (("", agent.model), ("target.", agent.model_target)):
            for name, x in model.state_dict().items():
                x.copy_(weight(prefix + name, x.shape))
    return agent


def listed(x: Tensor) -> Any:
    return [float(f"{v:.8g}") for v in x.detach().flatten().tolist()]


def run(agent: Any) -> dict[str, Any]:
    """Their answers; time comes first, as it does with them."""
    helper, d = importlib.import_module("algorithm.helper"), data()
    calls = iter(range(1000))

    def randn(*shape: int, **_: Any) -> Tensor:
        return search(next(calls) % ITERATIONS)[: shape[0]] if len(shape) == 3 else executed()

    def standard(shape: Any, **_: Any) -> Tensor:
        return torch.tensor(NOISE).expand(shape).clone()

    chosen = mock.patch.object(np.random, "choice", lambda a, p: int(p.argmax()))
    out: dict[str, Any] = {"layout": {name: list(x.shape) for name, x in agent.model.state_dict().items()}, "plans": {}}
    with mock.patch.object(helper, "_standard_normal", standard), mock.patch.object(torch, "randn", randn), chosen:
        for step in STEPS:
            agent.std = helper.linear_schedule(agent.cfg.std_schedule, step)
            plans = []
            for t0, eval_mode in ((True, True), (False, False)):
                action = agent.plan(d["obs"][0, 0].numpy(), eval_mode=eval_mode, step=step, t0=t0)
                plans.append({"action": listed(action), "mean": listed(agent._prev_mean)})
            out["plans"][str(step)] = plans
        replay = Replay()
        told = agent.update(replay, 0)
    out["update"] = {key: float(f"{x:.8g}") for key, x in told.items()}
    out["priorities"] = listed(replay.priorities)
    with torch.no_grad():
        obs, action = d["obs"][0], d["action"][0]
        z, slow = agent.model.h(obs), agent.model_target.h(obs)
        out["after"] = {
            "encode": listed(z), "slow": listed(slow), "next": listed(agent.model.next(z, action)[0]),
            "reward": listed(agent.model.next(z, action)[1]), "pi": listed(agent.model.pi(z)),
            "q": listed(torch.stack(agent.model.Q(z, action))),
            "target_q": listed(torch.stack(agent.model_target.Q(z, action))),
        }
    return out


if __name__ == "__main__":
    answers = run(theirs(Path(sys.argv[1])))
    Path(__file__).with_name("golden_tdmpc.json").write_text(json.dumps(answers) + "\n")
