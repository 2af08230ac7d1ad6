"""F10: signals ask once and insist twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from worldmodel.train.signals import GracefulExit, exit_code

STUBBORN = """
import sys, time
from worldmodel.train.signals import GracefulExit
with GracefulExit(debounce=float(sys.argv[1])) as interrupted:
    print("ready", flush=True)
    while interrupted.requested is None:
        time.sleep(0.01)
    print("asked", flush=True)
    sys.stdin.readline()
sys.exit(interrupted.exit_code)
"""


def start(debounce: float) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, str(debounce)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    expect(child, "ready")
    return child


def expect(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout is not None and child.stdout.readline() == f"{word}\n"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_the_first_signal_sets_the_flag_and_the_code(signum: int, code: int) -> None:
    with GracefulExit() as interrupted:
        assert interrupted.requested is None and interrupted.exit_code == 0
        os.kill(os.getpid(), signum)
        assert interrupted.requested == signum
        assert interrupted.exit_code == exit_code(signum) == code


def test_handlers_are_put_back() -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with pytest.raises(KeyError), GracefulExit():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        raise KeyError
    assert {s: signal.getsignal(s) for s in before} == before


def test_a_run_that_was_asked_finishes_and_exits_with_the_code_of_the_signal() -> None:
    child = start(debounce=0.5)
    child.send_signal(signal.SIGTERM)
    expect(child, "asked")
    child.communicate("\n", timeout=20)
    assert child.returncode == 143


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_exits_at_once(second: int, code: int) -> None:
    child = start(debounce=0.0)
    child.send_signal(signal.SIGTERM)
    expect(child, "asked")
    child.send_signal(second)
    assert child.wait(timeout=20) == code
    child.communicate()


def test_a_signal_that_arrives_twice_at_the_same_moment_is_one_request() -> None:
    child = start(debounce=30.0)
    child.send_signal(signal.SIGTERM)
    expect(child, "asked")
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    child.communicate("\n", timeout=20)
    assert child.returncode == 143


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[bool] = []

    def work() -> None:
        with GracefulExit() as interrupted:
            seen.append(signal.getsignal(signal.SIGTERM) == before and interrupted.requested is None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
