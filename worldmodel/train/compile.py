"""Where an agent becomes fast: its pure parts compiled, its steps captured as CUDA graphs. Names no agent."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from worldmodel.errors import UserError
from worldmodel.protocols import Agent, Compiles

Mode = Literal["auto", "eager", "compile", "cudagraph", "compile+cudagraph"]

WARMUPS = 3
"""Calls before a capture: libraries choose their algorithms, and what is compiled gets compiled."""


def accelerate(agent: Agent[Any], mode: Mode, device: torch.device) -> Mode:
    """Compile and capture what an agent offers, in place; returns the mode that came of it.

    - "compile": every part of the agent by ``torch.compile``, as one graph each, with the random numbers of eager mode.
    - "cudagraph": the steps "learn" and "act" are captured, optimiser and random numbers included, and replayed.
    - "auto": both on a GPU, where launching kernels takes longer than running them. On a CPU "eager": there it is
      convolutions and matrix products that take the time, and compiling costs minutes and saves about a sixth.

    "report" stays eager: it runs once in thousands of steps, on batches of other shapes.

    Raises: UserError where the machine lacks what the mode needs.
    """
    if mode == "auto":
        mode = "eager" if device.type != "cuda" else "compile+cudagraph" if _has_triton() else "cudagraph"
    if mode == "eager" or not isinstance(agent, Compiles):
        return "eager"
    if "cudagraph" in mode and device.type != "cuda":
        raise UserError(f"train.compile {mode} needs a GPU, and the device is {device}; use compile, eager or auto")
    if "compile" in mode:
        _check_compiler(device)
        for name, part in agent.parts.items():
            # eager's random numbers: a part draws from the default generator, which the agent's Stream has installed
            agent.parts[name] = torch.compile(part, fullgraph=True, dynamic=False, options={"fallback_random": True})
    if "cudagraph" in mode:
        agent.steps["learn"] = Captured(agent.steps["learn"], agent.state_dict, device)
        agent.steps["act"] = Captured(agent.steps["act"], agent.state_dict, device, keep_results=True)
    return mode


@dataclass(frozen=True, kw_only=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: list[Any]
    """Tensors that the graph reads, in the order of the leaves; constants between them."""
    result: Any


class Captured:
    """A function of tensors on a GPU, captured once for every set of shapes and replayed as one CUDA graph.

    The function runs for real only while it is captured: after that, numbers it took from Python (a learning rate, a
    Boolean) are what they were then. Tensors that it changes in place must stay where they are; loading weights copies
    in place. Random numbers come from the device's default generator, which the graph is registered with: a replay
    begins where the generator stands and moves it on as the function would have.
    """

    def __init__(
        self, function: Callable[..., Any], state: Callable[[], Mapping[str, Tensor]], device: torch.device, *,
        keep_results: bool = False,
    ) -> None:
        """Args:
            function: takes trees of tensors on ``device`` and constants, and never waits for the device.
            state: the live tensors that ``function`` changes; those on ``device`` are put back after a warm-up.
            keep_results: hand out copies; without this, the next call overwrites what the last one returned.
        """
        self.function, self.state, self.device, self.keep_results = function, state, device, keep_results
        self.graphs: dict[Any, _Graph] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        key = structure, tuple(self._describe(x) for x in leaves)
        captured = self.graphs.get(key)
        if captured is None:
            captured = self.graphs[key] = self._capture(leaves, structure)
        for mine, given in zip(captured.inputs, leaves):
            if isinstance(mine, Tensor):
                mine.copy_(given, non_blocking=True)
        captured.graph.replay()
        if self.keep_results:
            return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, captured.result)
        return captured.result

    def _describe(self, leaf: Any) -> Any:
        """What a graph depends on: a tensor's shape and type, a constant's value."""
        if not isinstance(leaf, Tensor):
            return type(leaf), leaf
        if leaf.device.type != self.device.type:
            raise TypeError(f"a captured function takes tensors on {self.device}, got one on {leaf.device}; move it")
        return tuple(leaf.shape), leaf.dtype

    def _capture(self, leaves: list[Any], structure: Any) -> _Graph:
        """Warm up and capture on one stream of its own, and leave state and random numbers as they were before."""
        inputs = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
        args, kwargs = pytree.tree_unflatten(inputs, structure)
        live = [x for x in self.state().values() if x.device.type == self.device.type]
        saved, rng = [x.clone() for x in live], torch.cuda.get_rng_state(self.device)
        # the same stream for both: nodes of autograd remember the stream of their first use
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                self.function(*args, **kwargs)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        graph.register_generator_state(torch.cuda.default_generators[index])
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = self.function(*args, **kwargs)
        with torch.no_grad():
            for mine, before in zip(live, saved):
                mine.copy_(before)
        torch.cuda.set_rng_state(rng, self.device)
        return _Graph(graph=graph, inputs=inputs, result=result)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda" and not _has_triton():
        raise UserError("train.compile on a GPU needs the package triton, which is not here; use cudagraph or eager")
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise UserError("train.compile on a CPU needs a C++ compiler, and there is none; install g++ or use eager")
