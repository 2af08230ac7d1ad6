"""One launch that ends a backward pass: sums of partial gradients, in a fixed order, so without atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sum_both(
    tokens, tokens_out, params, params_out, terms, columns, column_blocks, token_programs, count, width,
    BLOCK: tl.constexpr,
):
    """The first ``token_programs`` sum ``terms`` rows of ``tokens`` each; the others all rows of ``params``."""
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    if program < token_programs:
        i = program // column_blocks
        j = program % column_blocks * BLOCK + tl.arange(0, BLOCK)
        for k in range(terms):
            total += tl.load(tokens + (i * terms + k) * columns + j, mask=j < columns, other=0.0)
        tl.store(tokens_out + i * columns + j, total.to(tokens_out.dtype.element_ty), mask=j < columns)
    else:
        j = (program - token_programs) * BLOCK + tl.arange(0, BLOCK)
        row = params + j
        for _ in range(count):
            total += tl.load(row, mask=j < width, other=0.0)
            row += width
        tl.store(params_out + j, total, mask=j < width)


def sum_partials(tokens: Tensor, dtype: torch.dtype, params: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K, C) to (R, C) in ``dtype``, and (K', W) to (W,) in float32; both arguments float32 and contiguous."""
    rows, terms, columns = tokens.shape
    count, width = params.shape
    tokens_out = torch.empty(rows, columns, dtype=dtype, device=tokens.device)
    params_out = torch.empty(width, dtype=torch.float32, device=tokens.device)
    block = 128
    column_blocks = triton.cdiv(columns, block)
    token_programs = rows * column_blocks
    _sum_both[(token_programs + triton.cdiv(width, block),)](
        tokens, tokens_out, params, params_out, terms, columns, column_blocks, token_programs, count, width, BLOCK=block
    )
    return tokens_out, params_out
