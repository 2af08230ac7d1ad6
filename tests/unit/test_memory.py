"""Memory that tensors give back is kept by the process; in a process of its own, for it cannot be undone."""

import platform
import subprocess
import sys

import pytest

from worldmodel.train.memory import keep_freed_memory

CHURN = """
import resource, sys, torch
from worldmodel.train.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory() and keep_freed_memory()
for _ in range(20):  # until the heap has found its size
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF)
for _ in range(20):
    torch.ones(1 << 24)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt, after.ru_maxrss - before.ru_maxrss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_a_tensor_of_64_mib_made_twenty_times_is_faulted_in_once() -> None:
    (given_back, _), (kept, growth) = (churn(how) for how in ("given back", "kept"))
    # 16,384 small pages a tensor where each is mapped anew
    assert given_back > 20 * 30
    assert kept < given_back / 10
    assert growth < 1024  # KiB


def churn(how: str) -> tuple[int, int]:
    out = subprocess.run([sys.executable, "-c", CHURN, how], capture_output=True, text=True, check=True, timeout=60)
    faults, growth = out.stdout.split()
    return int(faults), int(growth)


def test_a_c_library_without_these_settings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
