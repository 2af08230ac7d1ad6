"""Our Mamba blocks against the authors' (``make_golden_mamba.py``): the same weights, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.parity.make_golden_mamba import ROWS, SIZE, STEPS, STORED, inputs, weight
from worldmodel.nn.mamba import Mamba1, Mamba2

GOLDEN = json.loads(Path(__file__).with_name("golden_mamba.json").read_text())


def made(kind):
    if kind == "mamba2":
        block = Mamba2(SIZE, d_state=4, expand=2, headdim=8, width=4, out_scale=1.0)
    else:
        block = Mamba1(SIZE, d_state=4, expand=2, width=4, out_scale=1.0)
    with torch.no_grad():
        for name, p in block.named_parameters():
            p.copy_(weight(name, p.shape))
    return block


def agrees(kind, y, conv, ssm):
    for name, x in {"y": y, "ssm": ssm, "conv": conv}.items():
        expected = torch.tensor(GOLDEN[kind][name])
        torch.testing.assert_close(x.flatten()[-STORED:], expected, rtol=1e-5, atol=2e-6)
    assert y.norm().item() == pytest.approx(GOLDEN[kind]["y_norm"][0], rel=1e-5)


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
def test_a_sequence_gives_what_the_authors_steps_give(kind):
    block = made(kind)
    with torch.no_grad():
        out = block(inputs(), torch.zeros(ROWS, STEPS, dtype=torch.int32), *block.initial(ROWS))
    agrees(kind, out.y, out.conv[:, -1], out.ssm[:, -1])


@pytest.mark.parametrize("kind", ["mamba2", "mamba1"])
def test_steps_give_what_the_authors_steps_give(kind):
    block = made(kind)
    conv, ssm = block.initial(ROWS)
    outs = []
    with torch.no_grad():
        for t in range(STEPS):
            y, conv, ssm = block.step(inputs()[:, t], None, conv, ssm)
            outs.append(y)
    agrees(kind, torch.stack(outs, 1), conv, ssm)
