"""Where an update spends its time: phases, and the parts of the networks that it calls."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from worldmodel.bench.timing import Clock

DEPTH = 2
"""Names in a part: "model.encoder"; what lies deeper counts to it."""


class Watch:
    """Takes the time of the public methods of modules, each without those it calls, and of backward passes.

    It waits for the device around every part, so the parts of an update add up but take longer than without a watch:
    their shares are what they tell. Compiled code shows no parts, so :meth:`open` has everything run eagerly.
    """

    def __init__(self, root: nn.Module, clock: Clock) -> None:
        """Args: root: its modules, down to ``DEPTH`` names, are watched."""
        self.root, self.clock = root, clock
        self.parts: dict[str, float] = defaultdict(float)
        """Milliseconds of "model.encoder.forward", without the parts that it called."""
        self.calls: dict[str, int] = defaultdict(int)
        self.backward: list[tuple[float, float]] = []
        """Wall time, milliseconds, at which each backward pass began and ended."""
        self._inner: list[float] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Watch while it is open; the modules are as before afterwards."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for name, module in self.root.named_modules():
                if name and name.count(".") < DEPTH:
                    for method in _public_methods(type(module)):
                        self._replace(stack, module, method, f"{name}.{method}")
            for function in ("backward", "grad"):
                original = getattr(torch.autograd, function)
                setattr(torch.autograd, function, self._backward(original))
                stack.callback(setattr, torch.autograd, function, original)
            yield

    def phases(self, call: Callable[[], object]) -> dict[str, float]:
        """Milliseconds of one call: "backward", "optimiser", which is everything after the last backward pass, and
        "forward", which is everything else: losses and what comes before them."""
        self.backward.clear()
        self.clock.wait()
        start = self.clock.wall()
        call()
        self.clock.wait()
        end = self.clock.wall()
        last = self.backward[-1][1] if self.backward else end
        backward = sum(b - a for a, b in self.backward)
        return {"forward": last - start - backward, "backward": backward, "optimiser": end - last}

    def _replace(self, stack: contextlib.ExitStack, module: nn.Module, method: str, name: str) -> None:
        before = module.__dict__.get(method)
        module.__dict__[method] = self._timed(getattr(module, method), name)
        if before is None:
            stack.callback(module.__dict__.pop, method)
        else:
            stack.callback(module.__dict__.__setitem__, method, before)

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.clock.wait()
            start = self.clock.wall()
            self._inner.append(0.0)
            try:
                return method(*args, **kwargs)
            finally:
                self.clock.wait()
                spent = self.clock.wall() - start
                self.parts[name] += spent - self._inner.pop()
                self.calls[name] += 1
                if self._inner:
                    self._inner[-1] += spent

        return timed

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.clock.wait()
            start = self.clock.wall()
            try:
                return original(*args, **kwargs)
            finally:
                self.clock.wait()
                self.backward.append((start, self.clock.wall()))

        return timed


def _public_methods(kind: type[nn.Module]) -> list[str]:
    """Those that the class itself or its bases below nn.Module define, ``forward`` among them."""
    bases = (base for base in kind.__mro__ if issubclass(base, nn.Module))
    classes = [base for base in bases if not base.__module__.startswith("torch.")]
    found = (name for base in classes for name, value in vars(base).items() if inspect.isfunction(value))
    return sorted({name for name in found if not name.startswith("_")})
