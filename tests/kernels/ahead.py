"""Compile Triton kernels for an NVIDIA GPU that need not be here: ``python -m tests.kernels.ahead ssd_scan``.

The cases of the benchmarks are called on CPU tensors; each launch compiles its kernel for the arguments it got, and
runs nothing. What the interpreter forgives shows here: types, tiles below 16, layouts, shared memory. Prints a JSON row
per kernel and kind of arguments: bytes of registers spilled, bytes of shared memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

SHARED = {80: 166_912, 89: 101_376, 90: 232_448}
"""Bytes of shared memory that one program may have, by compute capability."""
NAMES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64",
    torch.int16: "i16", torch.uint8: "u8", torch.int8: "i8", torch.bool: "i1",
}


def spilled(cubin: bytes) -> int:
    """Bytes of local memory that the kernel uses: registers that did not fit."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = Path(get_ptxas(90).path).with_name("cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", text)
    assert stack, text
    return int(stack[1])


class Compiler:
    """Stands in for the launch of a kernel."""

    def __init__(self, capability: int) -> None:
        self.capability, self.seen = capability, set()

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = kernel.arg_names
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
        values = dict(zip(names, args)) | kwargs
        signature: dict[str, str] = {}
        constants: dict[tuple[int], Any] = {}
        attrs: dict[tuple[int], Any] = {}
        for index, param in enumerate(kernel.params):
            value = values[param.name]
            if param.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                signature[param.name], constants[(index,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[param.name] = "*" + NAMES[value.dtype]
                attrs[(index,)] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[param.name] = "fp32"
            else:
                signature[param.name] = "i32" if abs(value) < 2**31 else "i64"
                if value % 16 == 0:
                    attrs[(index,)] = [["tt.divisibility", 16]]
        key = json.dumps([kernel.__name__, signature, str(constants), str(attrs), options])
        if key in self.seen:
            return
        self.seen.add(key)
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
        done = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        if done.metadata.shared > SHARED[self.capability]:
            raise MemoryError(f"{kernel.__name__} needs {done.metadata.shared} bytes of shared memory")
        name = f"{kernel.fn.__module__.removeprefix('worldmodel.kernels.')}.{kernel.__name__}"
        row = {"kernel": name, "spilled": spilled(done.asm["cubin"]), "shared": done.metadata.shared}
        print(json.dumps(row | {"arguments": signature}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernels", nargs="+", help="folders of kernels/")
    parser.add_argument("--capability", type=int, default=90, choices=SHARED)
    parser.add_argument("--first", type=int, help="only so many cases of each")
    args = parser.parse_args()
    from triton.runtime.jit import JITFunction

    from worldmodel.kernels import dispatch, passes

    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter compiles nothing"
    compiler = Compiler(args.capability)
    JITFunction.run = lambda kernel, *args, **kwargs: compiler.launch(kernel, *args, **kwargs)  # type: ignore[method-assign]
    dispatch.INTERPRETS = True
    dispatch.implementations = lambda call, device, kernel="": {"triton": call}
    passes.dtypes = lambda device: (torch.bfloat16, torch.float32)
    with dispatch.using("triton"):
        for kernel in args.kernels:
            cases = importlib.import_module(f"worldmodel.kernels.{kernel}.bench").cases(torch.device("cpu"))
            for case in list(cases.values())[: args.first]:
                case.calls["triton"]()


if __name__ == "__main__":
    main()
