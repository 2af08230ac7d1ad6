"""yihaosun1124/OfflineRL-Kit: ``EnsembleDynamics`` as it trains the ensemble of its MOPO, at the sizes of ours.

Nothing of it is changed. gym and its MuJoCo, which it imports for a class that is not timed here, are replaced by empty
modules; its logger writes nowhere.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving import Calls, Refused, serve


class Silent:
    """In its logger's place."""

    def __init__(self) -> None:
        self.model_dir = tempfile.mkdtemp()

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def setup(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], Calls]:
    """Build the ensemble, and calls for an update and for rounds over all data."""
    for name in ("gym", "gym.envs", "gym.envs.mujoco"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["gym.envs.mujoco"].mujoco_env = types.SimpleNamespace(MujocoEnv=object)  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    try:
        from offlinerlkit.dynamics import EnsembleDynamics
        from offlinerlkit.modules import EnsembleDynamicsModel
        from offlinerlkit.utils.scaler import StandardScaler
    except ModuleNotFoundError as error:
        raise Refused(f"it needs {error.name}, which {sys.executable} does not have; install it there") from error
    torch.manual_seed(0)
    model = EnsembleDynamicsModel(
        request["features"], request["actions"], request["units"], request["members"], request["elites"],
        weight_decays=request["decays"], device=request["device"],
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=request["lr"])
    dynamics = EnsembleDynamics(model, optimizer, StandardScaler(), None)
    given, batch = np.load(request["data"]), request["batch"]
    x, y = (given[key][: request["members"] * batch] for key in ("inputs", "targets"))
    x, y = (part.reshape(request["members"], batch, -1) for part in (x, y))
    data = {key: given[key] for key in ("observations", "actions", "next_observations", "rewards")}
    calls: Calls = {
        "update": lambda: dynamics.learn(x, y, batch),
        "rounds": lambda: dynamics.train(
            data, Silent(), max_epochs=request["rounds"], max_epochs_since_update=request["rounds"] + 1,
            batch_size=batch, holdout_ratio=request["holdout"],
        ),
    }
    return {
        "parameters": sum(p.numel() for p in [*model.parameters()] if p.requires_grad), "commit": commit(folder),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy")},
    }, calls


def commit(folder: Path) -> str:
    """Of the checkout; empty where it is none."""
    said = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip()


if __name__ == "__main__":
    serve(setup)
