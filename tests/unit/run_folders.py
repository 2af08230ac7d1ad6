"""Run folders as ``worldmodel train`` leaves them, written without training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel import config, presets
from worldmodel.train.video import save_animation


def write_run(
    folder: Path,
    preset: str,
    *,
    seed: int = 0,
    steps: int = 1000,
    reached: int | None = None,
    train: Sequence[tuple[int, float]] = (),
    mode: Sequence[tuple[int, float]] = (),
    lr: float = 4e-5,
    dream: bool = False,
    **arguments: Any,
) -> Path:
    """A run of a preset that got to decision ``reached``; scores are (frames, return) pairs."""
    run = presets.find_preset(preset).build(arguments)
    run = replace(
        run, seed=seed, train=replace(run.train, steps=steps, stop_at_return=None), agent=replace(run.agent, lr=lr)
    )
    folder.mkdir(parents=True)
    document = {
        "id": "0" * 16, "preset": preset, "preset_args": arguments, "run": config.to_json(run),
        "provenance": {"commit": "f" * 40},
    }
    (folder / "config.json").write_text(json.dumps(document))
    repeat, last = getattr(run.env, "repeat", 1), steps if reached is None else reached
    rows = [("train", frames, value) for frames, value in train]
    rows += [("eval_mode", frames, value) for frames, value in mode]
    with (folder / "scores.jsonl").open("w") as file:
        for kind, frames, value in sorted(rows, key=lambda row: row[1]):
            if frames > last * repeat:
                break
            said = value if math.isfinite(value) else str(value)
            row = {"step": frames // repeat, "kind": kind, "frames": frames, "return": said, "length": 10}
            file.write(json.dumps(row) + "\n")
    if last:
        (folder / "metrics.jsonl").write_text(json.dumps({"step": last, "frames": last * repeat}) + "\n")
    if dream:
        frames = np.random.default_rng(seed).integers(0, 255, size=(4, 24, 48, 3), dtype=np.uint8)
        save_animation(folder / "videos" / f"dream-{last:09d}.png", frames, 12.0)
    return folder


def learning(
    end: float, *, frames: int, episodes: int = 60, noise: float = 0.0, seed: int = 0
) -> list[tuple[int, float]]:
    """Training episodes whose return rises towards ``end``."""
    rng = np.random.default_rng(seed)
    marks = np.linspace(frames / episodes, frames, episodes).astype(int)
    rise = end * (1 - np.exp(-4 * marks / frames)) + noise * rng.normal(size=episodes)
    return [(int(x), float(y)) for x, y in zip(marks, rise)]
