"""NM512/r2dreamer: ``Dreamer.update`` at the sizes of one of our runs.

Needs beside torch: torchrl, tensordict, omegaconf, pyyaml, tensorboard. On a GPU it runs as shipped (compiled;
float16 where ours is bfloat16); in float32 its autocast is off. Where the two differ in what an update does, it is said
in "settings".
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkouts import commit
from serving import Calls, Refused, serve

OBJECTIVES = {"ReconstructionConfig": "dreamer", "BarlowConfig": "r2dreamer", "InfoNCEConfig": "infonce"}


def setup(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], Calls]:
    """Build its agent, its batch and its replay."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(folder))
    try:
        from omegaconf import OmegaConf
        from tensordict import TensorDict

        dreamer, buffers = importlib.import_module("dreamer"), importlib.import_module("buffer")
    except ModuleNotFoundError as error:
        raise Refused(
            f"it needs {error.name}, which {sys.executable} does not have; install it there, or name another "
            "interpreter with --peer-python"
        ) from error
    device, agent = request["device"], request["run"]["agent"]
    torch.manual_seed(0)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as its train.py does
    base = OmegaConf.to_container(OmegaConf.load(folder / "configs" / "model" / "_base_.yaml"), resolve=False)
    compiled = device == "cuda"
    images = [key for key, array in request["spec"]["obs"].items() if len(array["shape"]) == 3]
    keys = {"cnn_keys": "|".join(images) or "$^", "mlp_keys": "$^" if images else ".*"}
    config = OmegaConf.merge(
        {"device": device, "env": {"encoder": keys, "decoder": keys}},
        {"model": base}, {"model": sizes(agent) | {"compile": compiled, "act": "SiLU", "norm": True}},
    ).model
    if request["precision"] == "float32":
        dreamer.autocast = lambda *args, **kwargs: contextlib.nullcontext()
    spaces = {key: types.SimpleNamespace(shape=tuple(a["shape"])) for key, a in request["spec"]["obs"].items()}
    made = dreamer.Dreamer(config, types.SimpleNamespace(spaces=spaces), action_space(request["spec"])).to(device)
    given = np.load(request["batch"])
    batch = TensorDict({rename(key): torch.from_numpy(given[key]) for key in given}, given["reward"].shape).to(device)
    for key in ("reward", "is_terminal", "is_last"):
        batch[key] = batch[key].unsqueeze(-1)
    fixed = Fixed(batch, made)
    replay = filled(buffers, request, made, TensorDict)
    facts = {
        "parameters": sum(p.numel() for p in made._named_params.values()),
        "commit": commit(folder),
        "versions": {name: metadata.version(name) for name in ("torch", "torchrl", "tensordict")},
        "settings": f"{config.rep_loss}, {'compiled' if compiled else 'eager'}, "
        f"{'float32' if request['precision'] == 'float32' else 'float16 autocast'}, {torch.get_num_threads()} threads, "
        f"{replay.count()} steps held",
    }
    return facts, {"learn": lambda: made.update(fixed), "update": lambda: made.update(replay)}


def sizes(agent: dict[str, Any]) -> dict[str, Any]:
    """Our configuration in its terms. Refuses what it has no word for."""
    try:
        model, core = agent["model"], agent["model"]["core"]
        encoder, decoder = model["encoder"], model["decoder"]
        objective = OBJECTIVES[model["objective"]["type"].partition(":")[2]]
        units = {part["units"] for part in (model, encoder, decoder, agent["actor"], agent["value"])}
        depths = {encoder["depth"], decoder["depth"]}
    except KeyError as error:
        raise Refused(f"it has nothing like this run's {error.args[0]!r}; take a preset like dmc.vision") from error
    if len(units) > 1 or len(depths) > 1:
        raise Refused(f"it has one width and one depth for all networks, here are {sorted(units)}, {sorted(depths)}")
    if objective != "dreamer" and model["probe"]:
        raise Refused("it trains no probe decoder; add --agent.model.probe False")
    if agent["actor"]["gradient"] != "reinforce":
        raise Refused("its actor learns by reinforce alone; add --agent.actor.gradient reinforce")
    conv = {"mults": list(encoder["mults"]), "kernel_size": encoder["kernel"]}
    return {
        "deter": core["deter"], "hidden": core["hidden"], "discrete": core["classes"], "depth": depths.pop(),
        "units": units.pop(), "rep_loss": objective, "imag_horizon": agent["imagination"],
        "rssm": {
            "stoch": core["stoch"], "blocks": core["blocks"], "img_layers": core["img_layers"],
            "obs_layers": core["obs_layers"], "dyn_layers": core["dyn_layers"],
        },
        "encoder": {"cnn": conv, "mlp": {"layers": encoder["layers"]}},
        "decoder": {"cnn": conv | {"bspace": decoder["blocks"]}, "mlp": {"layers": decoder["layers"]}},
        "reward": {"layers": model["reward_layers"]}, "cont": {"layers": model["continue_layers"]},
        "actor": {"layers": agent["actor"]["layers"]}, "critic": {"layers": agent["value"]["layers"]},
    }


class Fixed:
    """In place of its replay: always the same batch, and nothing is written back."""

    def __init__(self, batch: Any, agent: Any) -> None:
        self.batch, start = batch, agent.get_initial_state(batch.shape[0])
        self.initial = start["stoch"], start["deter"]

    def sample(self) -> tuple[Any, None, Any]:
        return self.batch.clone(False), None, self.initial

    def update(self, index: Any, stoch: Any, deter: Any) -> None:
        pass


def filled(buffers: Any, request: dict[str, Any], agent: Any, tensordict: Any) -> Any:
    """Its replay with random episodes, as many steps as ours holds."""
    replay_config, envs = request["run"]["replay"], request["run"]["train"]["num_envs"]
    length = replay_config["length"]
    each = max(-(-request["held"] // envs), 2 * length + 2)
    replay = buffers.Buffer(types.SimpleNamespace(
        device=request["device"], storage_device=request["device"], batch_size=replay_config["batch_size"],
        batch_length=length, max_size=each * envs,
    ))
    start = agent.get_initial_state(envs)
    for at in range(each):
        row: dict[str, Any] = {
            key: torch.randint(0, 256, (envs, *a["shape"]), dtype=torch.uint8) if a["dtype"] == "uint8"
            else torch.randn(envs, *a["shape"])
            for key, a in request["spec"]["obs"].items()
        }
        first, last = at % request["episode"] == 0, at % request["episode"] == request["episode"] - 1
        row |= {"reward": torch.rand(envs, 1), "is_first": torch.full((envs,), first)}
        row |= {"is_last": torch.full((envs, 1), last), "is_terminal": torch.zeros(envs, 1, dtype=torch.bool)}
        row |= {"action": torch.rand(envs, request["spec"]["action"]["size"]) * 2 - 1}
        row |= {"stoch": start["stoch"], "deter": start["deter"]}
        row |= {"episode": torch.arange(envs) + envs * (at // request["episode"])}
        replay.add_transition(tensordict(row, (envs,)).to(request["device"]))
    return replay


def action_space(spec: dict[str, Any]) -> Any:
    """What its agent asks of a Gymnasium space."""
    action = spec["action"]
    if action["kind"] == "discrete":
        return types.SimpleNamespace(n=action["size"], discrete=True, shape=(action["size"],))
    return types.SimpleNamespace(shape=(action["size"],))


def rename(key: str) -> str:
    """Ours to its: an action is the one that led to the observation."""
    return "action" if key == "prev_action" else key.removeprefix("obs/")


if __name__ == "__main__":
    serve(setup)
