"""nicklashansen/tdmpc2: ``TDMPC2.act`` at the sizes of one of our runs, for one environment after another.

Needs beside torch: tensordict. On a GPU it runs as shipped (compiled, TF32). On a CPU, which it does not foresee,
a copy runs eagerly: "cuda:0" becomes "cpu", Adam is not capturable, and the model is not moved after it is made. Its
weights are as it draws them; time does not depend on them.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from serving import Calls, Refused, serve


def setup(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], Calls]:
    """Build its agent, and a call for each number of environments."""
    warnings.simplefilter("ignore")
    device, spec, agent = request["device"], request["spec"], request["run"]["agent"]
    source = folder / "tdmpc2" if device == "cuda" else on_cpu(folder / "tdmpc2")
    sys.path.insert(0, str(source))
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as its train.py does
    config = settings(agent, spec, compiled=device == "cuda")
    try:
        made = importlib.import_module("tdmpc2").TDMPC2(config)
    except ModuleNotFoundError as error:
        raise Refused(
            f"it needs {error.name}, which {sys.executable} does not have; install it there, or name another "
            "interpreter with --peer-python"
        ) from error
    obs = torch.randn(config.obs_shape["state"])

    def act(count: int) -> Callable[[], object]:
        def call() -> None:
            for _ in range(count):
                made.act(obs, t0=False, eval_mode=True)

        return call

    facts = {
        "parameters": sum(p.numel() for p in made.model.parameters() if p.requires_grad),
        "commit": commit(folder),
        "versions": {name: metadata.version(name) for name in ("torch", "tensordict")},
        "settings": f"{'compiled' if config.compile else 'eager'}, {torch.get_num_threads()} threads, one environment "
        f"after another",
    }
    return facts, {f"{n} environments": act(n) for n in request["batches"]}


def settings(agent: dict[str, Any], spec: dict[str, Any], *, compiled: bool) -> Any:
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
        enc_lr_scale=0.3, grad_clip_norm=20, tau=0.01, rho=0.5, batch_size=256, consistency_coef=20, reward_coef=0.1,
        value_coef=0.1, termination_coef=1, mpc=True, compile=compiled, episode_length=spec["max_steps"] or 500,
        discount_denom=5, discount_min=0.95, discount_max=0.995, num_channels=32,
    )
    config.get = lambda name, default=None: getattr(config, name, default)
    return config


def on_cpu(source: Path) -> Path:
    """A copy that needs no GPU."""
    copy = Path(tempfile.mkdtemp()) / "tdmpc2"
    shutil.copytree(source, copy)
    for path in (copy / "tdmpc2.py", *sorted((copy / "common").glob("*.py"))):
        text = path.read_text().replace("cuda:0", "cpu").replace("capturable=True", "capturable=False")
        path.write_text(text.replace("super().to(*args, **kwargs)", "pass"))
    return copy


def commit(folder: Path) -> str:
    """Of the checkout, where it is one."""
    if not (folder / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    serve(setup)
