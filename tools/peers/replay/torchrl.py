"""TorchRL: a ReplayBuffer with a SliceSampler, in the fastest of its configurations.

    pip install --no-deps --target /tmp/torchrl torchrl tensordict cloudpickle pyvers orjson importlib_metadata zipp

Every row is timed in each configuration, with one thread and with all of them, in three rounds; the fastest one by the
median is the row's.
"""

from __future__ import annotations

import os
import statistics
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from serving import Calls, Refused, serve

from worldmodel.bench.timing import clock_of, run_block

CONFIGS: dict[str, dict[str, Any]] = {
    "end_key": {"end_key": "is_last"},
    "end_key, cached": {"end_key": "is_last", "cache_values": True},
    "traj_key": {"traj_key": "episode"},
    "traj_key, cached": {"traj_key": "episode", "cache_values": True},
    "traj_key, cached, prefetch": {"traj_key": "episode", "cache_values": True, "prefetch": 2},
}
ROUNDS, CALLS = 3, 8


def setup(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], Calls]:
    """Fill it, and find its fastest configuration."""
    warnings.simplefilter("ignore")
    os.environ["RL_LOGGING_LEVEL"] = "ERROR"
    sys.path.insert(0, str(folder))
    try:
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler
    except ModuleNotFoundError as error:
        raise Refused(f"it needs {error.name}; install it into {folder}") from error
    torch.manual_seed(request["seed"])
    steps = TensorDict(columns(request), [request["held"]]).to(request["device"])
    one = steps[7:8].clone()

    def calls(options: dict[str, Any]) -> dict[int, Calls]:
        options = dict(options)
        prefetch = options.pop("prefetch", None)
        buffer = ReplayBuffer(
            storage=LazyTensorStorage(request["held"], device=request["device"]), prefetch=prefetch,
            sampler=SliceSampler(slice_len=request["length"], strict_length=True, **options),
            batch_size=request["batch"] * request["length"],
        )
        buffer.extend(steps)

        def rows(threads: int) -> Calls:
            def sample() -> None:
                torch.set_num_threads(threads)
                buffer.sample()

            def add_and_sample() -> None:
                torch.set_num_threads(threads)
                buffer.extend(one)
                buffer.sample()

            return {"sample": sample, "add_and_sample": add_and_sample}

        return {threads: rows(threads) for threads in sorted({1, request["threads"]})}

    screened: dict[tuple[str, str], list[float]] = {}
    clock = clock_of(torch.device(request["device"]))
    made = {f"{name}, {n} threads": rows for name, options in CONFIGS.items() for n, rows in calls(options).items()}
    for _ in range(ROUNDS):
        for config, rows in made.items():
            for row, call in rows.items():
                screened.setdefault((row, config), []).extend(run_block(call, CALLS, clock).calls_ms)
    medians = {key: statistics.median(ms) for key, ms in screened.items()}
    best = {row: min(made, key=lambda config: medians[row, config]) for row in ("sample", "add_and_sample")}
    facts = {
        "settings": "; ".join(f"{row}: {config}" for row, config in best.items()),
        "screening_ms": {f"{row}: {config}": round(ms, 3) for (row, config), ms in medians.items()},
        "versions": {each.metadata["Name"]: each.version for each in metadata.distributions(path=[str(folder)])
                     if each.metadata["Name"] in ("torchrl", "tensordict")},
    }
    return facts, {row: made[config][row] for row, config in best.items()}


def columns(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random content of the same shapes and types as ours."""
    held, episode, spec = request["held"], request["episode"], request["spec"]
    at = torch.arange(held)
    arrays = {f"obs_{key}": array for key, array in spec["obs"].items()}
    arrays |= {f"memory_{key}": array for key, array in request["memory"].items()}

    def content(array: dict[str, Any]) -> torch.Tensor:
        dtype, shape = getattr(torch, array["dtype"]), (held, *array["shape"])
        if dtype.is_floating_point:
            return torch.randn(shape).to(dtype)
        return torch.randint(0, array["classes"] or 256, shape, dtype=dtype)

    return {key: content(array) for key, array in arrays.items()} | {
        "action": torch.rand(held, spec["action"]["size"]),
        "reward": torch.rand(held),
        "is_first": at % episode == 0,
        "is_last": at % episode == episode - 1,
        "is_terminal": torch.zeros(held, dtype=torch.bool),
        "episode": at // episode,
    }


if __name__ == "__main__":
    serve(setup)
