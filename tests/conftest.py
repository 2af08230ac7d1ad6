"""Before any test module is imported: where no GPU is, Triton interprets its kernels in numpy.

Triton reads the variable once, when it is first imported, and ``torch._dynamo`` imports it too. Set any later, in
tests/kernels say, it would depend on which other tests were collected first. It takes nothing from those: without a
GPU there is nothing else that Triton could do.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
