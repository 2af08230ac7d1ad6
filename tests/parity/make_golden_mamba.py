"""Writes golden_mamba.json: what state-spaces/mamba's own blocks say step by step, with weights made of formulas.

    git clone https://github.com/state-spaces/mamba /tmp/mamba
    PYTHONPATH=. python tests/parity/make_golden_mamba.py /tmp/mamba

Written at commit e9594ce. The blocks' ``step`` falls back on plain PyTorch where the CUDA extensions and Triton kernels
are missing, so that these are replaced by nothing here; the gated norm is the reference function beside its kernel.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import nn

from tests.parity.waves import wave

ROWS, STEPS, SIZE = 2, 9, 16
STORED = 48
"""Numbers kept of each result."""


def weight(name: str, shape: torch.Size) -> torch.Tensor:
    """A parameter by our name: projections by 1.5/sqrt(fan-in), scales and skips around 1, others about as usual."""
    phase = float(sum(map(ord, name)) % 97)
    if name.endswith("proj.weight") or name == "dt_proj":
        return wave(*shape, phase=phase, scale=1.5 / shape[1] ** 0.5)
    if name in ("norm.scale", "D", "A_log"):
        return 1 + wave(*shape, phase=phase, scale=0.4)
    return wave(*shape, phase=phase, scale=0.5) - (2.0 if name == "dt_bias" else 0.0)


def inputs() -> torch.Tensor:
    """(ROWS, STEPS, SIZE)"""
    return wave(ROWS, STEPS, SIZE, phase=3.0)


class GatedNorm(nn.Module):
    """Their gated norm by their reference function, whose module needs Triton for its kernels alone."""

    def __init__(self, size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        from mamba_ssm.ops.triton.layernorm_gated import rms_norm_ref  # pyright: ignore[reportMissingImports]

        return rms_norm_ref(x, self.weight, None, z=z, eps=self.eps, norm_before_gate=False, upcast=False)


def theirs(folder: Path) -> dict[str, nn.Module]:
    """Mamba-2 and Mamba-1 of the checkout, imported without their kernels."""
    package = ModuleType("mamba_ssm")
    package.__path__ = [str(folder / "mamba_ssm")]
    sys.modules["mamba_ssm"] = package
    for name in ("ops.triton.selective_state_update", "ops.triton.ssd_combined", "ops.selective_scan_interface",
                 "ops.triton.layer_norm", "distributed.tensor_parallel", "distributed.distributed_utils"):
        sys.modules[f"mamba_ssm.{name}"] = mock.MagicMock()
    hub = ModuleType("huggingface_hub")
    hub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})  # type: ignore[attr-defined]
    sys.modules["huggingface_hub"] = hub
    two = importlib.import_module("mamba_ssm.modules.mamba2")
    one = importlib.import_module("mamba_ssm.modules.mamba_simple")
    for module in (one, two):
        module.selective_state_update = module.causal_conv1d_update = None  # type: ignore[attr-defined]
    two.RMSNormGated = GatedNorm  # type: ignore[attr-defined]
    return {"mamba2": two.Mamba2(SIZE, d_state=4, headdim=8), "mamba1": one.Mamba(SIZE, d_state=4)}


OURS = {
    "conv1d.weight": "conv_weight", "conv1d.bias": "conv_bias", "norm.weight": "norm.scale",
    "dt_proj.weight": "dt_proj", "dt_proj.bias": "dt_bias",
}
"""Their names where ours differ."""


def run(block: nn.Module) -> dict[str, list[float]]:
    """The last output and scan state after stepping through the inputs."""
    with torch.no_grad():
        for name, p in block.named_parameters():
            flat = p.squeeze(1) if name == "conv1d.weight" else p
            flat.copy_(weight(OURS.get(name, name), flat.shape))
        conv, ssm = block.allocate_inference_cache(ROWS, STEPS)  # type: ignore[operator]
        outs = []
        for t in range(STEPS):
            y, conv, ssm = block.step(inputs()[:, t : t + 1], conv, ssm)  # type: ignore[operator]
            outs.append(y)
    y = torch.cat(outs, 1)
    return {
        name: [float(f"{v:.7g}") for v in x.flatten()[-STORED:].tolist()]
        for name, x in {"y": y, "ssm": ssm, "conv": conv[..., 1:].transpose(1, 2)}.items()
    } | {"y_norm": [float(f"{y.norm().item():.7g}")]}


if __name__ == "__main__":
    answers = {name: run(block) for name, block in theirs(Path(sys.argv[1])).items()}
    Path(__file__).with_name("golden_mamba.json").write_text(json.dumps(answers, indent=1) + "\n")
