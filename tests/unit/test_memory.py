"""Freed memory stays with the process: the next update finds its pages there."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from worldmodel.train.memory import keep_freed_memory

FAULTS = """
import resource, numpy as np
from worldmodel.train.memory import keep_freed_memory
assert keep_freed_memory()
def fill():
    for _ in range(20):
        np.ones(1 << 20)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep freed memory")
def test_a_block_that_was_freed_costs_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    # 20 blocks of 8 MiB are 40,960 pages
    assert int(done.stdout) < 2048


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
