"""``worldmodel data``: parses, calls, and gives back what is to be said. Nothing here imports torch before it must."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldmodel import options, presets
from worldmodel.arguments import CollectOptions, ConvertOptions, InfoOptions, InspectOptions, MixOptions
from worldmodel.data.describe import describe, text
from worldmodel.data.episodes import Dataset
from worldmodel.data.formats import open_dataset, write_dataset
from worldmodel.data.mix import mix, parse_shares
from worldmodel.errors import UserError

Say = Callable[[str], None]

USAGE = """usage: worldmodel data VERB ...

  inspect PATH                read and check a dataset, and say what it holds
  convert SRC DST             write it in another format
  collect OUT --env ENV       play, by a random or scripted policy or a trained agent (--run), or write a run's replay
  mix A:0.5 B:0.5 OUT         whole episodes of several, in shares

Minari, D4RL, Dreamer (V-D4RL's npz), V-D4RL's hdf5, NeoRL and LeRobot are read, the first three written.
`worldmodel data VERB --help` tells more, `worldmodel train PRESET --data PATH` learns from one."""


def inspect(argv: list[str], say: Say) -> str:
    """``worldmodel data inspect PATH [--json]``."""
    asked = options.parse(InspectOptions, argv, prog="worldmodel data inspect")
    found = describe(open_dataset(asked.path, asked))
    return json.dumps(found, indent=2) if asked.json else text(found)


def convert(argv: list[str], say: Say) -> str:
    """``worldmodel data convert SRC DST --format F``."""
    asked = options.parse(ConvertOptions, argv, prog="worldmodel data convert")
    return _written(open_dataset(asked.source, asked), asked.out, asked.format)


def mixed(argv: list[str], say: Say) -> str:
    """``worldmodel data mix A:0.5 B:0.5 OUT --format F``."""
    asked = options.parse(MixOptions, argv, prog="worldmodel data mix")
    shares = parse_shares(asked.words[:-1])
    found = mix(
        [open_dataset(path) for path, _ in shares], [share for _, share in shares], steps=asked.steps, seed=asked.seed
    )
    return _written(found, Path(asked.words[-1]), asked.format)


def collect(argv: list[str], say: Say) -> str:
    """``worldmodel data collect (--run RUN | --replay RUN | --policy random --env ENV) --episodes N OUT``."""
    asked = options.parse(CollectOptions, argv, prog="worldmodel data collect")
    allow = tuple(presets.module_name(where) for where in asked.allow)
    from worldmodel import collect as collecting

    if asked.replay:
        found = collecting.remembered(Path(asked.replay), say=say, allow=allow)
    elif asked.run:
        found = collecting.play_agent(
            Path(asked.run), episodes=asked.episodes, explore=asked.sampled, seed=asked.seed, device=asked.device,
            say=say, allow=allow,
        )
    else:
        env = _env(asked.env)
        is_random = asked.policy == "random"
        policy = collecting.random_policy(collecting.action_of(env)) if is_random else _policy(asked.policy)
        found = collecting.play(env, policy, episodes=asked.episodes, seed=asked.seed)
    return _written(found, asked.out, asked.format)


VERBS: dict[str, Callable[[list[str], Say], str]] = {
    "inspect": inspect, "convert": convert, "collect": collect, "mix": mixed,
}


def _written(dataset: Dataset, out: Path, kind: str) -> str:
    count = write_dataset(out, kind, dataset.header, dataset)
    return f"{out}: {count:,} episodes\nlook at them with\n  worldmodel data inspect {shlex.quote(str(out))}"


def _env(words: str) -> Any:
    """A Gymnasium id, or a preset with its options, whose environment is meant."""
    name, *rest = shlex.split(words)
    if name in presets.shipped() or ".py:" in name:
        preset = presets.find_preset(name)
        return presets.parse(preset, rest, InfoOptions(), prog="--env of worldmodel data collect")[0].env
    if rest:
        raise UserError(f"--env takes a Gymnasium id, or a preset and its options in quotes, got {words!r}")
    from worldmodel.envs.gym import GymConfig

    return GymConfig(id=name)


def _policy(where: str) -> Any:
    module, colon, name = where.rpartition(":")
    if not colon:
        raise UserError(f"--policy is random, or FILE:NAME of a function (obs, rng) -> action, got {where!r}")
    found = getattr(presets.load_module(module), name, None)
    if not callable(found):
        raise UserError(f"{module} has no function {name!r}; a policy is a function (obs, rng) -> action")
    return found
