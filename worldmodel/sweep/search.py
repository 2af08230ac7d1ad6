"""A sweep whose settings Optuna chooses, to maximise the last evaluation's mean return over seeds."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldmodel.errors import UserError

Sampler = Literal["tpe", "random"]

TRIALS = "trials.json"
"""The file of a sweep's folder that says which settings were tried, and what came of them."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where one setting is looked for: an interval, or a list."""

    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_int: bool = False
    choices: tuple[str, ...] = ()


def parse_space(text: str) -> tuple[str, Space]:
    """A setting's name and where to look.

    >>> parse_space("agent.lr=1e-5..1e-2:log")
    ('agent.lr', Space(low=1e-05, high=0.01, is_log=True, is_int=False, choices=()))
    >>> parse_space("agent.imagination=5..20")[1].is_int, parse_space("size=1m,12m")[1].choices
    (True, ('1m', '12m'))

    Raises: UserError.
    """
    key, _, where = text.partition("=")
    found = re.fullmatch(r"([-+.\deE]+?)\.\.([-+.\deE]+)(:log)?", where)
    try:
        if found:
            low, high = float(found[1]), float(found[2])
            is_int = all(re.fullmatch(r"[-+]?\d+", x) for x in found.groups()[:2])
            if key and low < high and (low > 0 or not found[3]):
                return key.lstrip("-"), Space(low=low, high=high, is_log=bool(found[3]), is_int=is_int)
        elif key and "," in where and all(where.split(",")):
            return key.lstrip("-"), Space(choices=tuple(where.split(",")))
    except ValueError:
        pass  # no number: the sentence below
    raise UserError(
        f"--search must be like agent.lr=1e-5..1e-2:log, agent.imagination=5..20 or size=1m,12m, got {text!r}"
    )


@dataclass(kw_only=True)
class Trial:
    """One choice of settings; ``value`` is None until it is known, and stays so where its runs failed."""

    settings: dict[str, str]
    value: float | None = None
    failed: bool = False


def maximise(
    spaces: dict[str, Space], *, out: Path, trials: int, together: int, sampler: Sampler,
    score: Callable[[Sequence[Trial]], None],
) -> list[Trial]:
    """Try ``trials`` settings, ``together`` at a time, and return them. ``trials.json`` in ``out`` is gone on with:
    what was chosen and not finished comes first, and what is known teaches the sampler.

    Args: score: trains, and sets ``value`` or ``failed`` of each; leaves both where it was interrupted.
    Raises: UserError without Optuna.
    """
    optuna = _import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    done = _read(out)
    make = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[sampler]
    # a search that goes on must not begin with what it chose first
    study = optuna.create_study(direction="maximize", sampler=make(seed=len(done)))
    distributions = {key: _distribution(optuna, space) for key, space in spaces.items()}
    for trial in done:
        if trial.settings.keys() != spaces.keys():
            searched = ", ".join(trial.settings)
            raise UserError(f"{out / TRIALS} searched {searched}; give the same --search, or another --out")
        if trial.value is not None:
            _tell(optuna, study, trial, distributions)
    while True:
        open_ = [trial for trial in done if trial.value is None and not trial.failed]
        while len(open_) < together and len(done) < trials:
            asked = study.ask(distributions)
            open_.append(Trial(settings={key: str(value) for key, value in asked.params.items()}))
            done.append(open_[-1])
        if not open_:
            return done
        _write(out, done)
        score(open_[:together])
        _write(out, done)
        if any(trial.value is None and not trial.failed for trial in open_[:together]):
            return done  # interrupted
        for trial in open_[:together]:
            if trial.value is not None:
                _tell(optuna, study, trial, distributions)


def _tell(optuna: Any, study: Any, trial: Trial, distributions: dict[str, Any]) -> None:
    params = {
        key: x if isinstance(d, optuna.distributions.CategoricalDistribution) else d.to_external_repr(float(x))
        for (key, x), d in zip(trial.settings.items(), distributions.values())
    }
    study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial.value))


def _distribution(optuna: Any, space: Space) -> Any:
    if space.choices:
        return optuna.distributions.CategoricalDistribution(space.choices)
    if space.is_int:
        return optuna.distributions.IntDistribution(int(space.low), int(space.high), log=space.is_log)
    return optuna.distributions.FloatDistribution(space.low, space.high, log=space.is_log)


def _read(out: Path) -> list[Trial]:
    path = out / TRIALS
    if not path.is_file():
        return []
    try:
        return [Trial(**entry) for entry in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy, or give another --out") from error


def _write(out: Path, trials: Sequence[Trial]) -> None:
    part = out / f".{TRIALS}"
    part.write_text(json.dumps([vars(trial) for trial in trials], indent=1) + "\n")
    part.replace(out / TRIALS)


def _import_optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        raise UserError("--search needs the package optuna; pip install 'worldmodel[sweep]'") from error
