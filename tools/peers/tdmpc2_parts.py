"""nicklashansen/tdmpc2 at the sizes of one of our runs, from state.

Needs beside torch: tensordict and, for its replay, torchrl. On a GPU it runs as shipped (compiled, TF32). On a CPU,
which it does not foresee, a copy runs eagerly with the changes below. Its weights are as it draws them; time does not
depend on them.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from checkouts import commit
from serving import Refused

CHANGES = {
    "cuda:0": "cpu", "capturable=True": "capturable=False",
    "super().to(*args, **kwargs)": "pass",  # the model is not moved after it is made
    "torch.cuda.mem_get_info()": "(2**36, 2**36)",
}
"""What a copy for a CPU has in the place of what only a GPU has."""


def made(folder: Path, request: dict[str, Any]) -> tuple[Any, Any]:
    """Its agent and its configuration, on the device that is asked for."""
    compiled = request["device"] == "cuda"
    sys.path.insert(0, str(folder / "tdmpc2" if compiled else on_cpu(folder / "tdmpc2")))
    if compiled:
        torch.set_float32_matmul_precision("high")  # as its train.py does
    batch = request["run"]["replay"]["batch_size"]
    config = settings(request["run"]["agent"], request["spec"], batch=batch, compiled=compiled)
    try:
        return importlib.import_module("tdmpc2").TDMPC2(config), config
    except ModuleNotFoundError as error:
        raise Refused(
            f"it needs {error.name}, which {sys.executable} does not have; install it there, or name another "
            "interpreter with --peer-python"
        ) from error


def facts(folder: Path, agent: Any, config: Any) -> dict[str, Any]:
    """What is said of it beside its times."""
    again = ("_Qs.module", "_detach_Qs", "_target_Qs")  # other views and copies of "_Qs.params"
    trained = [p for name, p in agent.model.named_parameters() if p.requires_grad and not name.startswith(again)]
    return {
        "parameters": sum(p.numel() for p in trained),
        "commit": commit(folder),
        "versions": {name: metadata.version(name) for name in ("torch", "tensordict")},
        "settings": f"{'compiled' if config.compile else 'eager'}, {torch.get_num_threads()} threads",
    }


def settings(agent: dict[str, Any], spec: dict[str, Any], *, batch: int, compiled: bool) -> Any:
    """Our configuration in its terms. Refuses what it has no word for."""
    try:
        model, value, planner = agent["model"], agent["value"], agent["evaluator"]
        encoder, latent = model["encoder"], model["latent"]
        numbers = {
            "enc_dim": encoder["units"], "num_enc_layers": encoder["layers"] + 1, "mlp_dim": model["units"],
            "latent_dim": latent, "simnorm_dim": model["simplex"], "num_bins": model["bins"], "num_q": value["members"],
            "dropout": value["dropout"], "horizon": planner["horizon"], "iterations": planner["iterations"],
            "num_samples": planner["samples"], "num_elites": planner["elites"],
            "num_pi_trajs": planner["policy_samples"], "min_std": planner["min_std"], "max_std": planner["max_std"],
            "temperature": planner["temperature"],
        }
    except KeyError as error:
        raise Refused(f"it has nothing like this run's {error.args[0]!r}; take the preset tdmpc2") from error
    if any(len(array["shape"]) == 3 for array in spec["obs"].values()):
        raise Refused("it is measured on states alone here; leave --obs state")
    if spec["action"]["kind"] != "continuous":
        raise Refused("its planner is for continuous actions; take another task")
    size = sum(max(1, *array["shape"]) if array["shape"] else 1 for array in spec["obs"].values())
    limit = float(model["limit"])
    config = types.SimpleNamespace(
        **numbers, obs="state", episodic=model["ends"] == "predicted", multitask=False, task_dim=0,
        obs_shape={"state": (size,)}, action_dim=spec["action"]["size"], vmin=-limit, vmax=limit,
        bin_size=2 * limit / (model["bins"] - 1), log_std_min=-10, log_std_max=2, entropy_coef=1e-4, lr=3e-4,
        enc_lr_scale=0.3, grad_clip_norm=20, tau=0.01, rho=0.5, batch_size=batch, consistency_coef=20, reward_coef=0.1,
        value_coef=0.1, termination_coef=1, mpc=True, compile=compiled, episode_length=spec["max_steps"] or 500,
        discount_denom=5, discount_min=0.95, discount_max=0.995, num_channels=32, buffer_size=1_000_000,
        steps=1_000_000,
    )
    config.get = lambda name, default=None: getattr(config, name, default)
    return config


def on_cpu(source: Path) -> Path:
    """A copy that needs no GPU."""
    copy = Path(tempfile.mkdtemp()) / "tdmpc2"
    shutil.copytree(source, copy)
    for path in (copy / "tdmpc2.py", *sorted((copy / "common").glob("*.py"))):
        text = path.read_text()
        for gpu, cpu in CHANGES.items():
            text = text.replace(gpu, cpu)
        path.write_text(text)
    return copy
