"""F8: what tests/envs/test_pool.py does not inject."""

from __future__ import annotations

import time

import torch

from tests.faults.bad_envs import RELEASE, BadConfig
from worldmodel.envs.pool import make_pool

ACTION = torch.tensor([[1.0, 0.0], [1.0, 0.0]])


def test_an_environment_that_leaks_is_replaced_when_its_memory_is_used_up() -> None:
    told: list[str] = []
    pool = make_pool(BadConfig(fault="leaks"), 2, kind="process", on_event=told.append)
    try:
        pool.reset(0)
        lasts = [pool.step(ACTION).is_last.tolist() for _ in range(14)]
    finally:
        start = time.monotonic()
        pool.close()
    assert time.monotonic() - start < 5
    assert not any(last for last, _ in lasts), "the neighbour lives on"
    assert sum(last for _, last in lasts) == pool.stats()["restarts"] >= 1
    assert "environment 1 of bad was restarted (1 of 3" in told[0] and "MemoryError" in told[0]


def test_an_environment_that_hangs_in_this_process_is_told_of_once() -> None:
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        RELEASE.set()

    pool = make_pool(BadConfig(fault="hangs"), 2, kind="serial", timeout=0.2, on_event=say)
    pool.reset(0)
    for _ in range(6):
        pool.step(ACTION)
    pool.close()
    assert len(told) == 1 and "bad has not answered for 0.2 s" in told[0] and "--train.pool process" in told[0]
