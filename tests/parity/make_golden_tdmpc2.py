"""Writes golden_tdmpc2.json: what nicklashansen/tdmpc2 says, with weights, data and noise made of formulas.

    git clone https://github.com/nicklashansen/tdmpc2 /tmp/tdmpc2
    PYTHONPATH=. python tests/parity/make_golden_tdmpc2.py /tmp/tdmpc2

Written at commit e9f5932 with tensordict 0.15.3. The authors' code wants a GPU: in a copy of it "cuda:0" becomes "cpu",
Adam is not capturable, and the model is not moved after it is made.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.parity.waves import wave

OBS, ACTIONS, LATENT, UNITS, ENCODER, MEMBERS, BINS = 7, 2, 16, 24, 20, 5, 101
ROWS, H = 4, 3
SAMPLES, ELITES, PROPOSED, ITERATIONS = 32, 8, 4, 3
TERMINAL = (2, 1)
"""(row, step) whose transition ends the episode for good, in its last step: it is the last one of its row that counts
in ours, so the authors' batch has it at the end."""


def weight(name: str, shape: torch.Size) -> Tensor:
    """A parameter by the authors' name: 1.5/sqrt(fan-in), scales around 1, biases 0.2; rewards and values with a bell
    over the bins."""
    phase = float(sum(map(ord, name)) % 89)
    if name.endswith("ln.weight"):
        return 1 + wave(*shape, phase=phase, scale=0.2)
    if name.endswith("weight"):
        return wave(*shape, phase=phase, scale=1.5 / shape[-1] ** 0.5)
    bell = -(((torch.arange(BINS) - 55) / 12) ** 2) if shape[-1] == BINS else 0.0
    return wave(*shape, phase=phase, scale=0.2) + bell


def batch() -> dict[str, Tensor]:
    """obs (H+1, ROWS, OBS), action (H, ROWS, A), reward and terminated (H, ROWS)."""
    terminated = torch.zeros(H, ROWS)
    terminated[H - 1, TERMINAL[0]] = 1.0
    return {
        "obs": wave(H + 1, ROWS, OBS, phase=3.0, scale=2.0), "action": wave(H, ROWS, ACTIONS, phase=4.0),
        "reward": wave(H, ROWS, phase=5.0, scale=3.0), "terminated": terminated,
    }


class Noise:
    """Random numbers by kind and by how many were drawn of it before."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def _next(self, kind: str) -> int:
        self.calls[kind] = self.calls.get(kind, -1) + 1
        return self.calls[kind]

    def policy(self, *shape: int) -> Tensor:
        """Standard normal, of a policy."""
        return wave(*shape, phase=11.0 + self._next("policy"), scale=1.3)

    def search(self, *shape: int) -> Tensor:
        """Of candidates (H, N, A), once an iteration, or (..., A) of the action that is executed."""
        # that of the action is the same every time: they draw it only where they explore
        return wave(*shape, phase=41.0 + (self._next("search") if len(shape) == 3 else 0), scale=1.3)

    def exponential(self, count: int) -> Tensor:
        """Of the choice among elites."""
        return 1.05 + wave(count, phase=71.0 + self._next("exponential"))

    def pair(self) -> Tensor:
        """The Q-functions that are asked."""
        n = self._next("pair")
        return torch.tensor([(2 * n) % MEMBERS, (2 * n + 3) % MEMBERS])


@contextmanager
def their_noise() -> Iterator[Noise]:
    """Their random functions replaced."""
    noise = Noise()

    class Drawn(Tensor):
        def exponential_(self, *args: Any, **kwargs: Any) -> Tensor:
            return noise.exponential(self.numel()).view(self.shape)

    real_empty = torch.empty_like
    patches = {
        "randn_like": lambda x, **_: noise.policy(*x.shape),
        "randn": lambda *shape, **_: noise.search(*shape),
        "randperm": lambda n, **_: noise.pair(),
        "empty_like": lambda x, **kw: real_empty(x).as_subclass(Drawn),
    }
    with mock.patch.multiple(torch, **patches):
        yield noise


def theirs(folder: Path) -> Any:
    """Their agent on a CPU, filled."""
    copy = Path(tempfile.mkdtemp()) / "tdmpc2"
    shutil.copytree(folder / "tdmpc2", copy)
    for path in (copy / "tdmpc2.py", *sorted((copy / "common").glob("*.py"))):
        text = path.read_text().replace("cuda:0", "cpu").replace("capturable=True", "capturable=False")
        path.write_text(text.replace("super().to(*args, **kwargs)", "pass"))
    sys.path.insert(0, str(copy))
    config = SimpleNamespace(
        obs="state", episodic=True, multitask=False, task_dim=0, obs_shape={"state": (OBS,)}, action_dim=ACTIONS,
        latent_dim=LATENT, mlp_dim=UNITS, enc_dim=ENCODER, num_enc_layers=2, num_q=MEMBERS, dropout=0.0, simnorm_dim=8,
        num_bins=BINS, vmin=-10, vmax=10, bin_size=0.2, log_std_min=-10, log_std_max=2, entropy_coef=1e-4, lr=3e-4,
        enc_lr_scale=0.3, grad_clip_norm=20, tau=0.01, rho=0.5, horizon=H, batch_size=ROWS, consistency_coef=20,
        reward_coef=0.1, value_coef=0.1, termination_coef=1, iterations=ITERATIONS, num_samples=SAMPLES,
        num_elites=ELITES, num_pi_trajs=PROPOSED, min_std=0.05, max_std=2, temperature=0.5, mpc=True, compile=False,
        episode_length=500, discount_denom=5, discount_min=0.95, discount_max=0.995, num_channels=32,
    )
    config.get = lambda name, default=None: getattr(config, name, default)
    agent = importlib.import_module("tdmpc2").TDMPC2(config)
    with torch.no_grad():
        for name, x in agent.model.state_dict().items():
            if isinstance(x, Tensor) and x.ndim and ".module." not in name:
                x.copy_(weight(name.replace("_detach_Qs_params", "_Qs.params"), x.shape))
    return agent


def listed(x: Tensor) -> Any:
    return [float(f"{v:.8g}") for v in x.detach().flatten().tolist()]


def run(agent: Any) -> dict[str, Any]:
    """Their answers; time comes first, as it does with them."""
    from common import math as their_math  # pyright: ignore[reportMissingImports]

    model, cfg, data = agent.model, agent.cfg, batch()
    out: dict[str, Any] = {
        "layout": {
            name: list(x.shape) for name, x in model.state_dict().items()
            if isinstance(x, Tensor) and ".module." not in name
        }
    }
    with torch.no_grad(), their_noise():
        z, action = model.encode(data["obs"][0], None), data["action"][0]
        pi, info = model.pi(z, None)
        out |= {
            "encode": listed(z), "next": listed(model.next(z, action, None)),
            "reward": listed(their_math.two_hot_inv(model.reward(z, action, None), cfg)),
            "q": listed(their_math.two_hot_inv(model.Q(z, action, None, return_type="all"), cfg)),
            "termination": listed(model.termination(z, None)),
            "pi": listed(pi), "pi_mean": listed(info["mean"]), "pi_log_std": listed(info["log_std"]),
            "pi_entropy": listed(info["entropy"]), "pi_scaled_entropy": listed(info["scaled_entropy"]),
        }
    plans = {}
    with their_noise():
        for name, t0, eval_mode in (("first", True, True), ("second", False, True), ("exploring", False, False)):
            action = agent.plan(data["obs"][0, :1], t0=t0, eval_mode=eval_mode)
            plans[name] = {"action": listed(action), "mean": listed(agent._prev_mean)}
    with their_noise():
        told = agent._update(data["obs"], data["action"], data["reward"][..., None], data["terminated"][..., None])
    keys = ("consistency_loss", "reward_loss", "value_loss", "termination_loss", "total_loss", "grad_norm", "pi_loss",
            "pi_grad_norm", "pi_entropy", "pi_scaled_entropy", "pi_scale")
    out |= {"plans": plans, "update": {key: float(f"{told[key].item():.8g}") for key in keys}}
    with torch.no_grad(), their_noise():
        z, action = model.encode(data["obs"][0], None), data["action"][0]
        out["after"] = {
            "encode": listed(z), "next": listed(model.next(z, action, None)), "pi": listed(model.pi(z, None)[0]),
            "q": listed(their_math.two_hot_inv(model.Q(z, action, None, return_type="all"), cfg)),
            "target_q": listed(their_math.two_hot_inv(model._target_Qs(torch.cat([z, action], -1)), cfg)),
        }
    return out


if __name__ == "__main__":
    answers = run(theirs(Path(sys.argv[1])))
    Path(__file__).with_name("golden_tdmpc2.json").write_text(json.dumps(answers) + "\n")
