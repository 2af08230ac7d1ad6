"""Promises of everything with parameters: a config that can be written down, gradients, saving, tracing, bfloat16."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.check.report import Broken, Skip
from worldmodel.check.samples import difference, named
from worldmodel.check.still import Still

Build = Callable[[int], Any]
"""Seed to a freshly built part, on the device of the checks."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` while it is open, on every device; afterwards they go on as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def builder(config: Any, *arguments: Any, device: torch.device | str) -> Build:
    """How to build ``config.build(*arguments)`` again and again, each time from a seed."""

    def build(seed: int) -> Any:
        with seeded(seed):
            made = config.build(*arguments)
        return made.to(device) if isinstance(made, nn.Module) else made

    return build


def config_is_data(config: Any) -> None:
    """A config can be written to config.json and read back."""
    kind = type(config)
    where = f"class {kind.__qualname__}"
    if not dataclasses.is_dataclass(config) or not getattr(kind, "__dataclass_params__").frozen:  # noqa: B009
        raise Broken(f"{where} must be a frozen dataclass; write @dataclass(frozen=True, kw_only=True) above it")
    if "." in kind.__qualname__:
        raise Broken(f"{where} is not at the top of its module, where a run folder could find it again; move it there")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _is_plain(value):
            raise Broken(
                f"{where}: field {field.name} holds a {type(value).__name__}; a configuration holds numbers, text, "
                f"None, "
                f"tuples and frozen dataclasses, so give that to build, or make it one of these"
            )


def is_module(made: Any, kind: str) -> None:
    """Agents hand its parameters to their optimiser."""
    if not isinstance(made, nn.Module):
        raise Broken(
            f"build returns a {type(made).__name__}, which is no torch.nn.Module; derive your {kind} from nn.Module, "
            f"so that "
            f"its parameters are found"
        )


def has_members(made: Any, members: dict[str, str], kind: str) -> None:
    """Every attribute and method of the protocol is there."""
    for name, signature in members.items():
        if not hasattr(made, name):
            raise Broken(f"{type(made).__name__} has no {name}; a {kind} needs {signature}")
        if "(" in signature and not callable(getattr(made, name)):
            raise Broken(f"{type(made).__name__}.{name} is no method; a {kind} needs {signature}")


def gradients_arrive(module: nn.Module, total: Callable[[], Tensor], method: str) -> str:
    """Every parameter that asks for a gradient gets one that is not zero.

    Fresh networks may stop gradients on purpose (a head that starts at zero, a KL below its free nats), so weights are
    moved a little, and then more, before a parameter is given up. ``module`` is used up.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise Skip("it has no parameters")
    missing = dict(trained)
    for i, scale in enumerate((0.0, 0.1, 0.5)):
        with seeded(i):
            _move(trained.values(), scale)
            with torch.enable_grad():
                loss = total()
        if not loss.requires_grad:
            raise Broken(f"{method} has no gradient at all; compute it without torch.no_grad and without detach")
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, grad in zip(trained, grads):
            if grad is not None and i == 0 and not torch.isfinite(grad).all():
                raise Broken(
                    f"{method}: the gradient of {name} is not finite; look for log(0), sqrt(0) or x/0 on the way"
                )
            if grad is not None and bool(grad.ne(0).any()):
                missing.pop(name, None)
        if not missing:
            return f"{len(trained)} of {len(trained)} parameters"
    raise Broken(
        f"{method}: no gradient reaches {listed(missing)}; let a loss depend on them, freeze them by "
        f"requires_grad_(False), or delete them"
    )


def saves(build: Build, run: Callable[[Any], Any], method: str) -> None:
    """Another instance with the same state dict does the same."""
    one, other = build(0), build(1)
    with seeded(2):
        _move(one.parameters(), 0.1)
    state = one.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise Broken(f"state_dict: {name} is a {type(value).__name__}; checkpoints hold tensors and nothing else")
    other.load_state_dict(state)
    with Still(), torch.no_grad():
        gap = difference(run(one), run(other))
    if gap:
        raise Broken(
            f"state_dict does not hold everything that {method} uses: after load_state_dict into another instance "
            f"{gap}; "
            f"make it an nn.Parameter or register_buffer"
        )


def repeats(run: Callable[[], Any], method: str) -> None:
    """The same call under the same seed gives the same, bit for bit."""
    results = []
    for _ in range(2):
        with seeded(3), torch.no_grad():
            results.append(named(run()))
    for name, x in results[0].items():
        if not torch.equal(x, results[1][name]):
            raise Broken(
                f"{method}, called twice with the same inputs under the same seed, gives two results ({name}); keep "
                f"nothing in "
                f"self between calls, and draw all noise from torch's default generator"
            )


def traces(run: Callable[..., Any], *inputs: Any, method: str) -> None:
    """One graph without a break, and it computes the same."""
    from torch._dynamo.exc import TorchDynamoException  # half of the time it takes to import torch

    torch.compiler.reset()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            with seeded(4):
                eager = run(*inputs)
            traced = torch.compile(run, fullgraph=True, backend="eager", dynamic=False)
            with seeded(4):
                graph = traced(*inputs)
    except TorchDynamoException as error:
        raise Broken(f"{method} is not one graph: {_graph_break(str(error))}") from error
    finally:
        torch.compiler.reset()
    gap = difference(eager, graph)
    if gap:
        raise Broken(f"{method} computes something else once it is traced: {gap}; it reads what tracing holds constant")


def is_finite(tree: Any, method: str, *, under: str = "") -> None:
    """No NaN and no infinity in any leaf."""
    for name, x in named(tree).items():
        if not torch.isfinite(x.detach()).all():
            raise Broken(f"{method}{under}: {name} is not finite; look for log(0), x/0 or an exp that overflows")


def is_float32(tree: Any, method: str, *, under: str = "") -> None:
    """Losses, rewards and probabilities are float32, whatever computed them."""
    for name, x in named(tree).items():
        if x.dtype != torch.float32:
            raise Broken(
                f"{method}{under}: {name} is {x.dtype}, expected torch.float32; add .float() before the formula"
            )


def listed(names: Iterable[str]) -> str:
    """The first five, and how many more."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return getattr(type(value), "__dataclass_params__").frozen  # noqa: B009
    return value is None or isinstance(value, (bool, int, float, str))


@torch.no_grad()
def _move(parameters: Iterable[Tensor], scale: float) -> None:
    """Add noise that is small beside what the layer's inputs sum up to."""
    for p in parameters:
        p.add_(torch.randn_like(p) * (scale / (p.shape[-1] if p.ndim > 1 else 1) ** 0.5))


def _graph_break(text: str) -> str:
    """What stops tracing, where, and what to do, out of dynamo's page-long message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    where = f"{places[-1][2]} ({places[-1][0].rpartition('/')[2]}, line {places[-1][1]}): " if places else ""
    hint = next((line.removeprefix("Hint: ") for line in lines if line.startswith("Hint: ")), "")
    advice = hint or "no Python branch on a tensor's value, no .item(), no numpy, no print"
    return f"{where}{lines[0] if lines else 'unknown'}; {advice}"
