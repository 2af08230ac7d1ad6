"""A trained agent as programs that run without this package: torch.export (.pt2), and ONNX where its operators allow.

The files are for output only: no command of this package ever loads a .pt2, which can carry more than data.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from worldmodel import runs, tree
from worldmodel.config import config_hash
from worldmodel.errors import StorageError, UserError
from worldmodel.protocols import Imagines, Policy, Reacts, WorldModel
from worldmodel.rng import Stream
from worldmodel.specs import EnvSpec
from worldmodel.train.manifest import provenance, sha256_of
from worldmodel.trained import Trained

Values = dict[str, Tensor]
"""Inputs or outputs of a program by name."""

MANIFEST = "manifest.json"
TOLERANCE = 1e-4
"""Largest difference between a program and the agent that is taken for rounding."""

_DRAWS: dict[Callable[..., Any], str] = {
    torch.rand: "uniform", torch.rand_like: "uniform", torch.randn: "normal", torch.randn_like: "normal",
}
_TRACED, _CHECKED = 2, (1, 3)
"""Batch sizes: a program is traced at one, and must agree with the agent at others."""

_USAGE = {
    "inputs": "one dict of tensors by name, the first axis is the batch; observations as the environment gives them "
    "(images uint8, height x width x channels): the programs convert and normalise them",
    "outputs": "one dict of tensors by name; every state.* goes into the next call",
    "start": "with is_first true, state.* and prev_action are forgotten: zeros of the given shapes will do. Do so at "
    "the first step of every episode",
    "prev_action": "the action of the call before, as act returned it",
    "actions": "float32: continuous ones in [-1, 1], to be stretched to the bounds of the environment; a discrete one "
    "is a one-hot, its argmax is the choice",
    "noise": "the latent state is sampled and programs hold no random numbers: give fresh ones at every call, uniform "
    "in [0, 1) or standard normal; the same noise gives the same result",
    "act": "takes the mode of the policy",
}


@dataclass(frozen=True, kw_only=True)
class _Program:
    """A function of named tensors, ready to be traced."""

    name: str
    module: nn.Module
    traced: tuple[Values, Values]
    """Inputs, noise included, and what the agent makes of them."""
    checked: list[tuple[Values, Values]]
    """The same at other batch sizes, for the program to agree with."""
    noise: dict[str, str]
    """Kind of each noise input."""


def export_run(
    run: Path | str, out: Path | str, *, onnx: bool = False, say: Callable[[str], None] = lambda text: None,
    allow: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``encode``, ``step`` and ``act`` of a run's newest checkpoint as .pt2, and a manifest of how to call them.

    ``encode`` filters one observation into the latent state, ``step`` imagines one step, ``act`` filters and acts by
    mode. The batch is dynamic, numbers are float32. An agent that plans has no ``act``. What is written was compared
    with the agent.

    Args:
        run: a run folder, or one checkpoint in it.
        out: the new folder; the manifest is written last.
        onnx: write .onnx beside each .pt2 where ONNX has the operators (extra "export").
        say: told one sentence for what is left out.
        allow: modules outside of this package that the run's configuration may name; they are imported.
    Returns: the manifest.
    Raises: UserError where the agent has no world model, where it draws randomness that cannot become an input, for a
        folder that is not empty, and for a missing package; StorageError.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give another --out")
    if onnx and any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("ONNX needs packages that are not installed; pip install 'worldmodel[export]'")
    trained = runs.load(run, device="cpu", say=say, allow=allow)
    entries: dict[str, Any] = {}
    for program in _programs(trained, say):
        with _storage(out):
            out.mkdir(parents=True, exist_ok=True)
            entries[program.name] = _write(program, out, onnx=onnx, say=say)
    manifest = {
        "run": str(run), "step": trained.checkpoint.step, "config": config_hash(trained.run),
        "env": trained.spec.name, "repeat": trained.spec.repeat,
        "obs": {key: {"shape": x.shape, "dtype": x.dtype, "classes": x.classes} for key, x in trained.spec.obs.items()},
        "action": {"kind": trained.spec.action.kind, "size": trained.spec.action.size},
        "precision": "float32", "usage": _USAGE, "programs": entries, "provenance": provenance(),
    }
    with _storage(out):
        (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


# Programs


class _States:
    """A model's state as named tensors, and back."""

    def __init__(self, state: Any) -> None:
        found, self._shape = pytree.tree_flatten_with_path(state)
        self.names = ["state." + re.sub(r"\W+", ".", pytree.keystr(path)).strip(".") for path, _ in found]

    def pack(self, state: Any) -> Values:
        return dict(zip(self.names, tree.leaves(state), strict=True))

    def unpack(self, values: Values) -> Any:
        return pytree.tree_unflatten([values[name] for name in self.names], self._shape)


class _Noise(TorchFunctionMode):
    """Gives ready noise, in order, to code that asks torch for it; without any, draws and remembers it."""

    def __init__(self, ready: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.ready, self.drawn = list(ready), list[tuple[str, Tensor]]()

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _DRAWS and self.ready:
            return self.ready.pop(0)
        result = function(*args, **(kwargs or {}))
        if function in _DRAWS:
            self.drawn.append((_DRAWS[function], result))
        return result


class _Function(nn.Module):
    """What all programs share: a model, its state by names, and noise that comes in as inputs."""

    def __init__(self, model: WorldModel[Any], states: _States) -> None:
        super().__init__()
        self.model, self.states = model, states

    def forward(self, inputs: Values) -> Values:
        with _Noise([x for name, x in inputs.items() if name.startswith("noise.")]):
            return self.compute(inputs)

    def compute(self, inputs: Values) -> Values:
        raise NotImplementedError

    def observe(self, inputs: Values) -> Any:
        """(B, ...) the state after one more observation."""
        # (B, ...) -> (B, 1, ...): a sequence of one
        obs = {key.removeprefix("obs."): x.unsqueeze(1) for key, x in inputs.items() if key.startswith("obs.")}
        before, action = self.states.unpack(inputs), inputs["prev_action"].unsqueeze(1)
        after = self.model.observe(before, obs, action, inputs["is_first"].unsqueeze(1))
        return tree.index(after, (slice(None), 0))


class _Encode(_Function):
    def compute(self, inputs: Values) -> Values:
        state = self.observe(inputs)
        return {**self.states.pack(state), "features": self.model.features(state)}


class _Step(_Function):
    def compute(self, inputs: Values) -> Values:
        before = self.states.unpack(inputs)
        after = self.model.step(before, inputs["action"])
        said = self.model.predict(before, inputs["action"], after)
        return {**self.states.pack(after), "reward": said.reward, "continues": said.continues}


class _Act(_Function):
    def __init__(self, model: WorldModel[Any], states: _States, actor: Policy) -> None:
        super().__init__(model, states)
        self.actor = actor

    def compute(self, inputs: Values) -> Values:
        state = self.observe(inputs)
        return {"action": self.actor(self.model.features(state)).mode(), **self.states.pack(state)}


def _programs(trained: Trained, say: Callable[[str], None]) -> Iterator[_Program]:
    agent = trained.agent
    if not isinstance(agent, Imagines):
        raise UserError(f"a {type(agent).__name__} has no world model; there is nothing to export")
    # copies, whose weights are no longer views of one flat buffer
    model, actor = copy.deepcopy((agent.model, agent.actor if isinstance(agent, Reacts) else None))
    states = _States(model.initial(1))

    def observed(batch: int) -> Values:
        return _observed(trained.spec, states, model, batch)

    def imagined(batch: int) -> Values:
        values = observed(batch)
        return {name: values[name] for name in states.names} | {"action": values["prev_action"]}

    yield _program("encode", _Encode(model, states), observed)
    yield _program("step", _Step(model, states), imagined)
    if actor is None:
        say(f"a {type(agent).__name__} plans its actions; act is left out")
    else:
        yield _program("act", _Act(model, states, actor), observed)


def _program(name: str, module: _Function, inputs: Callable[[int], Values]) -> _Program:
    """Run the agent at each batch size, to know what the program must give and which noise is drawn."""
    module.eval().requires_grad_(False)
    traced, kinds = _case(name, module, inputs(_TRACED), _TRACED)
    checked = [_case(name, module, inputs(batch), batch)[0] for batch in _CHECKED]
    return _Program(name=name, module=module, traced=traced, checked=checked, noise=kinds)


@torch.no_grad()
def _case(name: str, module: _Function, given: Values, batch: int) -> tuple[tuple[Values, Values], dict[str, str]]:
    """Inputs with the noise that was drawn for them, what came out, and the kind of each noise."""
    with Stream(seed=batch), _Noise() as noise:
        wanted = module(given)
    for _, x in noise.drawn:
        if x.ndim < 1 or x.shape[0] != batch:
            raise UserError(f"{name} draws noise of shape {tuple(x.shape)} without a batch axis: it has no export")
    drawn = {f"noise.{i}": x for i, (_, x) in enumerate(noise.drawn)}
    return (given | drawn, wanted), {key: kind for key, (kind, _) in zip(drawn, noise.drawn)}


@torch.no_grad()
def _observed(spec: EnvSpec, states: _States, model: WorldModel[Any], batch: int) -> Values:
    """Random observations and actions; every second episode has just begun, the others have a step behind them."""
    rng = torch.Generator().manual_seed(0)
    obs: Values = {}
    for key, array in spec.obs.items():
        shape, kind = (batch, *array.shape), getattr(torch, array.dtype)
        if kind.is_floating_point:
            obs[f"obs.{key}"] = torch.randn(shape, generator=rng).to(kind)
        else:
            most = array.classes or (256 if kind == torch.uint8 else 2)
            obs[f"obs.{key}"] = torch.randint(most, shape, generator=rng).to(kind)
    choice = torch.randint(spec.action.size, (batch,), generator=rng)
    is_discrete = spec.action.kind == "discrete"
    action = (
        nn.functional.one_hot(choice, spec.action.size).float() if is_discrete
        else torch.rand(batch, spec.action.size, generator=rng) * 2 - 1
    )
    values = {
        **obs, **states.pack(model.initial(batch)), "prev_action": action,
        "is_first": torch.ones(batch, dtype=torch.bool),
    }
    with Stream(seed=0):
        values |= states.pack(_Encode(model, states).observe(values))
    return values | {"is_first": torch.arange(batch) % 2 == 1}


# Files


def _draws(node: torch.fx.Node) -> bool:
    """Whether a node draws random numbers. Dropout, also of attention weights, does only where something is dropped."""
    if node.target is torch.ops.aten.dropout.default:
        _, share, is_training = node.args
        return bool(share) and bool(is_training)
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return bool(node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0))
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _write(program: _Program, out: Path, *, onnx: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The files of a program, and its entry in the manifest."""
    inputs, outputs = program.traced
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        exported = torch.export.export(
            program.module, (inputs,), dynamic_shapes=({name: {0: batch} for name in inputs},), strict=False
        )
    for node in exported.graph.nodes:
        if _draws(node):
            raise UserError(
                f"{program.name} draws random numbers by {node.target}, which cannot become an input; "
                f"the model must draw by torch.rand or torch.randn"
            )
    difference = _difference(exported.module(), program)
    if not difference <= TOLERANCE:
        raise UserError(f"{program.name} as a program differs from the agent by {difference:.2g}: it is not written")
    path = out / f"{program.name}.pt2"
    with _quiet():
        torch.export.save(exported, path)
    entry = {
        "pt2": {"file": path.name, "sha256": sha256_of(path), "difference": difference},
        "inputs": [_described(name, x, program.noise) for name, x in inputs.items()],
        "outputs": [_described(name, x, {}) for name, x in outputs.items()],
    }
    if onnx:
        entry["onnx"] = _write_onnx(program, exported, out / f"{program.name}.onnx")
        if "missing" in entry["onnx"]:
            say(f"{program.name} has no ONNX form: {entry['onnx']['missing']}")
    return entry


def _described(name: str, x: Tensor, noise: dict[str, str]) -> dict[str, Any]:
    kind = {"noise": noise[name]} if name in noise else {}
    return {"name": name, "shape": ["batch", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch."), **kind}


def _write_onnx(program: _Program, exported: Any, path: Path) -> dict[str, Any]:
    """{"file", "sha256", "outputs", "difference"}, or {"missing": why}. Nothing is compared without onnxruntime."""
    inputs, outputs = program.traced
    # in ONNX an output must not be called like an input
    names = [f"next.{name}" if name in inputs else name for name in outputs]
    try:
        with _quiet():
            made = torch.onnx.export(
                exported, (inputs,), input_names=list(inputs), output_names=names, dynamo=True, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        return {"missing": _cause(error)}
    assert made is not None
    made.save(path)
    try:
        difference = _onnx_difference(path, program)
    except Exception as error:  # whatever onnxruntime raises, the file is of no use
        difference, cause = float("inf"), f"onnxruntime cannot run it: {_cause(error)}"
    else:
        cause = f"onnxruntime differs from the agent by {difference}"
    if difference is not None and not difference <= TOLERANCE:
        path.unlink()
        return {"missing": cause}
    return {"file": path.name, "sha256": sha256_of(path), "outputs": names, "difference": difference}


def _onnx_difference(path: Path, program: _Program) -> float | None:
    """As :func:`_difference`, or None without onnxruntime."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def call(values: Values) -> Values:
        results = session.run(None, {x.name: values[x.name].numpy() for x in session.get_inputs()})
        return dict(zip(program.traced[1], map(torch.from_numpy, results), strict=True))

    return _difference(call, program)


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first, which names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


@torch.no_grad()
def _difference(call: Callable[[Values], Values], program: _Program) -> float:
    """The largest difference from the agent, relative where numbers are larger than 1."""
    worst = 0.0
    for given, wanted in program.checked:
        for name, x in call(given).items():
            gap = (x.float() - wanted[name].float()).abs() / wanted[name].float().abs().clamp(min=1.0)
            worst = max(worst, float(gap.max()))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn about themselves, and about packages that nobody needs here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _storage(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror or error}; free some space or change --out") from error
