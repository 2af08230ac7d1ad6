"""Fault injection that takes longer than continuous integration, and the page that says which test guards which fault.

    python tools/faults.py F2              # one fault: inject, measure, write docs/results/reliability.json and .md
    python tools/faults.py F1 F2 F6 F20 F22
    python tools/faults.py F22 --cases 1000
    python tools/faults.py --page          # write reliability.md from reliability.json and the map below
    python tools/faults.py --check         # exit code 1 where the page is not what these say

Linux only. Every fault is a run of the real command line in a forked process; exit code 1 where a criterion is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faults import tiny  # noqa: E402
from worldmodel.train.checkpoint import Checkpoint, Checkpoints  # noqa: E402
from worldmodel.train.loop import Trainer  # noqa: E402
from worldmodel.train.manifest import provenance  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "reliability.json"
PAGE = RESULTS.with_suffix(".md")

Figures = dict[str, Any]

E2E, FAULTS, UNIT, ENVS = "tests/e2e", "tests/faults", "tests/unit", "tests/envs"
GUARDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "F1": ("SIGKILL at every call of a save that changes the disk", (
        f"{UNIT}/test_checkpoint.py::test_a_kill_at_any_moment_of_a_save_costs_at_most_that_save",
    )),
    "F2": ("SIGKILL of the trainer at random moments, then run to the end", (
        f"{E2E}/test_resume.py::test_a_killed_run_resumes_bit_for_bit",
        f"{FAULTS}/test_stopping.py::test_a_run_killed_before_its_first_checkpoint_begins_afresh_when_it_is_given_again",
        f"{FAULTS}/test_stopping.py::test_a_run_killed_before_its_configuration_was_written_leaves_an_empty_folder",
    )),
    "F3": ("save, load and go on equals going on", (
        f"{FAULTS}/test_going_on.py::test_fifty_updates_after_a_checkpoint_are_those_of_the_run_that_was_not_left",
        f"{UNIT}/test_dreamer.py::test_save_and_load_continue_learning_bit_for_bit",
        f"{UNIT}/test_replay_save.py::test_a_loaded_replay_goes_on_bit_for_bit",
        f"{ENVS}/test_pool.py::test_resumed_pool_continues_exactly",
    )),
    "F4": ("one flipped bit in any file of a checkpoint", (
        f"{UNIT}/test_checkpoint.py::test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken",
        f"{UNIT}/test_checkpoint.py::test_every_single_bit_of_a_manifest_counts",
        f"{E2E}/test_bad_input.py::test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on",
        f"{E2E}/test_bad_input.py::test_where_every_checkpoint_is_damaged_each_is_named_and_nothing_is_touched",
    )),
    "F5": ("truncated, zeroed, empty, missing files; wrong version", (
        f"{UNIT}/test_checkpoint.py::test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken",
        f"{UNIT}/test_checkpoint.py::test_an_unknown_format_version_is_refused",
        f"{UNIT}/test_checkpoint.py::test_a_foreign_manifest_is_refused",
        f"{UNIT}/test_runs.py::test_a_damaged_configuration_is_named",
    )),
    "F6": ("a full disk", (
        f"{E2E}/test_bad_input.py::test_a_full_disk_stops_nothing_before_the_end_and_costs_no_older_checkpoint",
        f"{E2E}/test_bad_input.py::test_a_disk_without_room_for_a_new_run_is_a_sentence_and_leaves_nothing",
        f"{UNIT}/test_checkpoint.py::test_a_file_size_limit_in_mid_save_is_reported_as_a_full_disk",
        f"{UNIT}/test_checkpoint.py::test_a_failing_disk_leaves_the_older_checkpoints",
        f"{UNIT}/test_log.py::test_rows_wait_while_the_disk_is_full",
        f"{FAULTS}/test_folders.py::test_a_disk_that_fails_anywhere_else_is_a_sentence_too",
    )),
    "F7": ("a run folder that cannot be used", (
        f"{FAULTS}/test_folders.py::test_a_folder_that_cannot_be_used_is_named_before_training_starts",
        f"{FAULTS}/test_folders.py::test_a_folder_of_somebody_else_is_named",
        f"{UNIT}/test_log.py::test_a_run_folder_that_cannot_be_written_is_an_error_at_the_start",
    )),
    "F8": ("an environment raises, dies, hangs, lies or leaks", (
        f"{ENVS}/test_pool.py::test_fault_cuts_the_episode_and_the_row_goes_on",
        f"{ENVS}/test_pool.py::test_too_many_faults_end_the_run_with_the_whole_story",
        f"{ENVS}/test_pool.py::test_hung_worker_does_not_delay_closing",
        f"{ENVS}/test_pool.py::test_killed_worker_leaves_nothing_in_shared_memory",
        f"{ENVS}/test_pool.py::test_workers_end_with_their_parent",
        f"{ENVS}/test_pool.py::test_batch_that_breaks_its_contract_ends_the_run",
        f"{E2E}/test_bad_input.py::test_nan_from_an_environment_costs_an_episode_and_not_the_run",
        f"{FAULTS}/test_environments.py::test_an_environment_that_leaks_is_replaced_when_its_memory_is_used_up",
        f"{FAULTS}/test_environments.py::test_an_environment_that_hangs_in_this_process_is_told_of_once",
    )),
    "F9": ("NaN in a loss, a gradient, a parameter, an imagined return", (
        f"{FAULTS}/test_divergence.py::test_one_bad_update_is_skipped_and_counted",
        f"{FAULTS}/test_divergence.py::test_a_divergence_ends_the_run_and_is_kept_apart_from_the_checkpoints",
        f"{FAULTS}/test_divergence.py::test_latents_that_are_not_finite_do_not_get_into_replay",
        f"{UNIT}/test_optim.py::test_a_non_finite_gradient_changes_no_state_at_all",
    )),
    "F10": ("SIGTERM, SIGINT, SIGUSR1 in the middle of anything; a second one", (
        f"{FAULTS}/test_stopping.py::test_a_signal_in_the_middle_costs_nothing",
        f"{FAULTS}/test_stopping.py::test_a_second_signal_ends_a_run_that_hangs",
        f"{UNIT}/test_signals.py::test_a_second_signal_exits_at_once",
        f"{ENVS}/test_pool.py::test_signals_to_the_group_do_not_end_workers",
    )),
    "F11": ("two trainers in one run folder; a stale lock", (
        f"{UNIT}/test_lock.py::test_a_second_trainer_is_refused_with_process_and_host",
        f"{UNIT}/test_lock.py::test_the_lock_of_a_killed_trainer_is_taken_over_even_while_it_is_a_zombie",
        f"{UNIT}/test_lock.py::test_a_reused_process_id_does_not_count_as_the_holder",
        f"{UNIT}/test_lock.py::test_of_many_that_take_over_a_dead_lock_at_once_one_wins",
        f"{E2E}/test_bad_input.py::test_a_folder_in_use_is_named_with_its_process",
    )),
    "F12": ("the clock jumps", (
        f"{FAULTS}/test_clock.py::test_a_clock_that_goes_back_changes_no_number",
    )),
    "F13": ("fork after threads, spawn, no shared memory", (
        f"{ENVS}/test_pool.py::test_without_shared_memory_observations_go_through_pipes",
        f"{ENVS}/test_pool.py::test_script_needs_no_main_guard_and_no_close",
        f"{ENVS}/test_pool.py::test_workers_do_not_import_torch",
    )),
    "F14": ("a damaged segment of replay", (
        f"{FAULTS}/test_replay_damage.py::test_the_rest_is_sampled_evenly_and_is_what_was_lived",
        f"{FAULTS}/test_replay_damage.py::test_nothing_left_is_an_empty_buffer",
        f"{FAULTS}/test_replay_damage.py::"
        "test_one_bad_sector_in_what_all_checkpoints_share_costs_a_segment_and_not_the_run",
        f"{UNIT}/test_replay_save.py::test_damage_is_found_and_named",
    )),
    "F15": ("malicious files", (
        f"{FAULTS}/test_malice.py::test_a_hostile_run_folder_runs_nothing",
        f"{UNIT}/test_checkpoint.py::test_nothing_in_a_checkpoint_is_ever_unpickled",
        f"{UNIT}/test_checkpoint.py::test_a_malicious_tensor_file_with_a_forged_manifest_is_refused",
        f"{UNIT}/test_checkpoint.py::test_listed_names_cannot_leave_the_folder",
        f"{UNIT}/test_checkpoint.py::test_links_and_unlisted_files_are_refused",
        f"{UNIT}/test_config.py::test_reading_imports_nothing_that_was_not_allowed",
    )),
    "F16": ("a logger's back end dies", (
        f"{UNIT}/test_log.py::test_a_dead_wandb_costs_one_warning",
        f"{UNIT}/test_log.py::test_a_deleted_tensorboard_folder_costs_one_warning",
        f"{UNIT}/test_log.py::test_a_deleted_metrics_file_starts_anew",
        f"{UNIT}/test_log.py::test_a_video_that_cannot_be_written_costs_one_warning",
    )),
    "F18": ("one of the processes that share a batch is killed", (
        f"{UNIT}/test_distributed.py::test_who_is_left_behind_ends_and_names_the_rank",
    )),
    "F19": ("a resume with a changed configuration or machine", (
        f"{UNIT}/test_config.py::test_resume_may_change_length_and_cadence_alone",
        f"{UNIT}/test_config.py::test_what_a_resume_may_change_exists",
        f"{E2E}/test_bad_input.py::test_a_resume_does_not_change_sizes",
        f"{FAULTS}/test_folders.py::test_a_resume_says_what_may_round_differently",
        f"{UNIT}/test_precision.py::test_an_agent_saved_on_a_gpu_loads_on_a_cpu_and_learns_on",
    )),
    "F20": ("a million steps", ()),
    "F21": ("no OpenGL, no triton, no GPU", (
        f"{ENVS}/test_gl.py::test_where_nothing_draws_the_error_names_the_packages_and_the_renderer_that_needs_none",
        f"{E2E}/test_bad_input.py::test_missing_opengl_names_the_packages_and_the_renderer_that_needs_none",
        f"{UNIT}/test_doctor.py::test_missing_gl_gives_the_apt_line_and_does_not_stop_training",
        f"{UNIT}/test_doctor.py::test_exit_code_1_where_training_cannot_work",
        f"{UNIT}/test_doctor.py::test_a_missing_requirement_is_broken_and_a_missing_extra_is_not",
    )),
    "F22": ("round trips of replay, documents and configurations", (
        f"{UNIT}/test_replay.py::test_samples_equal_a_plain_list_of_everything_added",
        f"{UNIT}/test_replay_save.py::test_a_loaded_replay_goes_on_bit_for_bit",
        f"{UNIT}/test_checkpoint.py::test_documents_round_trip_exactly",
        f"{UNIT}/test_config.py::test_any_values_round_trip",
    )),
    "F23": ("bookkeeping of imagination against a hand-computed MDP", (
        f"{UNIT}/test_returns.py::test_imagined_targets_on_a_hand_computed_four_step_mdp",
        f"{FAULTS}/test_imagination.py::test_a_dream_of_four_steps_by_hand",
        f"{E2E}/test_alignment.py::test_what_is_sampled_is_what_was_lived",
    )),
}  # fmt: skip
"""By fault: what is injected, and the tests that continuous integration runs."""


# Injection


def child(work: Callable[[], int], log: Path) -> int:
    """Run ``work`` in a forked process, its output in ``log``; the process id. This process never trains: torch's
    threads do not survive a fork."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        code = work()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(number: int) -> None:
    """The ``number``-th event from here on that changes the disk is this process's last. A write counts twice: before
    it, and when half of it is done."""
    seen, write, fsync = itertools.count(), os.write, os.fsync

    def event() -> None:
        if next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def torn_write(descriptor: int, content: Any) -> int:
        event()
        view = memoryview(content)
        half = write(descriptor, view[: len(view) // 2])
        event()
        return half + write(descriptor, view[half:])

    def counted_fsync(descriptor: int) -> None:
        event()
        fsync(descriptor)

    def audit(name: str, given: tuple[Any, ...]) -> None:
        creates = name == "open" and bool(given[2] & os.O_CREAT)
        if creates or name in ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"):
            event()

    os.write, os.fsync = torn_write, counted_fsync  # type: ignore[assignment]
    sys.addaudithook(audit)


# Faults


def f1(folder: Path, args: argparse.Namespace) -> Figures:
    """Kill a trainer at every event of its third save; then the newest checkpoint must be valid, old or new."""
    run_dir, log = folder / "run", folder / "log"
    report = folder / "report.json"
    save, step = Trainer.save, 3 * 16

    def killed_again_and_again(trainer: Trainer, *, with_envs: bool = True) -> None:
        if trainer.env_steps != step or report.exists():
            return save(trainer, with_envs=with_envs)
        outcomes: list[int] = []
        ours = trainer.out.checkpoints
        for number in itertools.count():
            copy = folder / "copy"
            shutil.copytree(ours.folder, copy)
            trainer.out.checkpoints = Checkpoints(copy, keep=2, run_id=ours.run_id)

            def one(number: int = number) -> int:
                kill_at(number)
                save(trainer, with_envs=with_envs)
                return 0

            code = wait(child(one, log))
            after = Checkpoints(copy, keep=2, run_id=ours.run_id)
            after.cleanup()
            left = [path.name for path in copy.iterdir() if not path.name[:12].isdigit()]
            told: list[str] = []
            newest = after.latest(on_skip=told.append)
            assert code in (0, -9) and not left and not told, (number, code, left, told)
            outcomes.append(newest.step)
            shutil.rmtree(copy)
            if code == 0:
                break
        trainer.out.checkpoints = ours
        report.write_text(json.dumps(outcomes))
        return save(trainer, with_envs=with_envs)

    def run() -> int:
        Trainer.save = killed_again_and_again  # type: ignore[method-assign]
        return tiny.train(run_dir, "--train.eval-every", "0")

    code = wait(child(run, log))
    outcomes = json.loads(report.read_text())[:-1] if report.exists() else []
    return {
        "passed": code == 0 and set(outcomes) == {step - 16, step} and outcomes == sorted(outcomes),
        "kills": len(outcomes), "loaded_the_checkpoint_before": outcomes.count(step - 16),
        "loaded_the_new_one": outcomes.count(step), "invalid_or_left_over": 0 if code == 0 else "see the log",
    }  # fmt: skip


def f2(folder: Path, args: argparse.Namespace) -> Figures:
    """Twenty SIGKILLs at random moments, each followed by a resume; the end must equal the undisturbed run's."""
    words = [
        "--train.steps", "2400", "--train.checkpoint-steps", "80", "--train.log-steps", "40",
        "--train.eval-every", "800", "--replay.capacity", "900",
    ]  # fmt: skip
    start = time.monotonic()
    assert wait(child(lambda: tiny.train(folder / "whole", *words), folder / "log")) == 0
    whole = time.monotonic() - start
    run_dir, rng = folder / "run", random.Random(args.seed)
    reached: list[int] = []
    begun_afresh = 0

    def go_on() -> int:
        has_saved = bool(Checkpoints(run_dir / "checkpoints").candidates())
        return tiny.resume(run_dir) if has_saved else tiny.train(run_dir, *words)

    for _ in range(args.kills):
        begun_afresh += run_dir.exists() and not Checkpoints(run_dir / "checkpoints").candidates()
        pid = child(go_on, folder / "log")
        time.sleep(rng.uniform(0.0, 1.8 * whole / args.kills))
        os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        if code != -9:
            break
        saved = Checkpoints(run_dir / "checkpoints").candidates()
        reached.append(int(saved[0].name[:12]) if saved else 0)
    code = wait(child(go_on, folder / "log"))
    same = tiny.outcome(folder / "whole") == tiny.outcome(run_dir)
    return {
        "passed": code == 0 and same and len(reached) == args.kills, "kills": len(reached),
        "checkpoint_after_each_kill": reached, "begun_afresh": begun_afresh, "bitwise_equal": same,
        "decisions": 2400, "updates": int(tiny.newest(run_dir).meta["updates"]),
        "compared": "weights, optimiser, random streams, replay, environments, rows of metrics and scores",
    }  # fmt: skip


def f6(folder: Path, args: argparse.Namespace) -> Figures:
    """Train on a file system that is full before the second checkpoint (tmpfs; needs the right to mount)."""
    probe = folder / "probe"
    assert wait(child(lambda: tiny.train(probe, "--train.steps", "16"), folder / "log")) == 0
    bytes_of_one = sum(path.stat().st_size for path in (probe / "checkpoints").rglob("*") if path.is_file())
    disk = folder / "disk"
    disk.mkdir()
    size = int(1.6 * bytes_of_one)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        log = folder / "full.log"
        code = wait(child(lambda: tiny.train(disk / "run"), log))
        text = log.read_text()
        kept: list[Checkpoint] = []
        with contextlib.suppress(Exception):
            kept.append(tiny.newest(disk / "run"))
        return {
            "passed": code == 75 and "disk full" in text and "Traceback" not in text and [c.step for c in kept] == [16],
            "bytes": size, "exit_code": code, "says": text.strip().splitlines()[-1].replace(str(folder), "."),
            "checkpoint_left": [c.step for c in kept], "decisions_done": tiny.rows(disk / "run")[-1]["step"],
        }  # fmt: skip
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def f20(folder: Path, args: argparse.Namespace) -> Figures:
    """A million decisions with a replay that wraps, evaluations and checkpoints: memory and open files stay."""
    report = folder / "report.json"

    def soak() -> int:
        from worldmodel import runs
        from worldmodel.agents.random.agent import RandomConfig
        from worldmodel.config import Run
        from worldmodel.envs.toys import ToyConfig
        from worldmodel.replay.config import ReplayConfig
        from worldmodel.train.config import TrainConfig

        points: list[tuple[int, int, int]] = []
        write = Trainer._log

        def measure(trainer: Trainer) -> None:
            write(trainer)
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            points.append((trainer.env_steps, resident, len(list(Path("/proc/self/fd").iterdir()))))

        Trainer._log = measure  # type: ignore[method-assign]
        run = Run(
            env=ToyConfig(task="catch"), agent=RandomConfig(),
            replay=ReplayConfig(capacity=10_000, batch_size=16, length=16),
            train=TrainConfig(
                steps=args.steps, num_envs=8, train_ratio=4, log_steps=5_000, eval_every=200_000, eval_episodes=8,
                eval_envs=8, checkpoint_steps=100_000, threads=1,
            ),
            device="cpu",
        )  # fmt: skip
        runs.start(run, folder / "run", live=False)
        report.write_text(json.dumps(points))
        return 0

    code = wait(child(soak, folder / "log"))
    points = [p for p in json.loads(report.read_text()) if p[0] >= args.steps // 5]
    line = statistics.linear_regression([p[0] for p in points], [p[1] for p in points])
    slope = line.slope * 1e5 / 2**20
    files = Counter(p[2] for p in points)
    return {
        "passed": code == 0 and slope < 1.0 and len(files) == 1, "decisions": args.steps,
        "rss_MiB_per_100k_decisions": round(slope, 4), "rss_MiB": [round(points[i][1] / 2**20, 1) for i in (0, -1)],
        "open_files": sorted(files), "measured_from_decision": points[0][0], "points": len(points),
    }  # fmt: skip


def f22(folder: Path, args: argparse.Namespace) -> Figures:
    """The property tests of the map, with many more cases each."""
    import pytest

    class More:
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            from hypothesis import settings  # before pytest has begun it would warn, and warnings are errors

            for item in items:
                more = settings(max_examples=args.cases, deadline=None, database=None, derandomize=False)
                item.obj._hypothesis_internal_use_settings = more

    def one(test: str) -> int:
        words = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}", "-o", "timeout=0", test]
        return int(pytest.main(words, plugins=[More()]))

    failed = {}
    for test in GUARDS["F22"][1]:
        code = wait(child(lambda test=test: one(test), folder / "log"))
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        failed[test.partition("::")[2]] = code
        print(f"  {test}: exit code {code}", flush=True)
    return {
        "passed": not any(failed.values()), "cases_each": args.cases, "properties": list(failed),
        "counter_examples": sum(code != 0 for code in failed.values()),
    }  # fmt: skip


Injection = Callable[[Path, argparse.Namespace], Figures]
INJECTED: dict[str, Injection] = {"F1": f1, "F2": f2, "F6": f6, "F20": f20, "F22": f22}


# Results


def page(results: dict[str, Any]) -> str:
    """reliability.md: what was measured, and the map from faults to tests."""
    lines = [
        "# Faults, and what happens then",
        "",
        "Written by `python tools/faults.py --page` from `reliability.json` and the map in `tools/faults.py`; a test",
        "holds both to what exists. Faults of GPUs (F17) are not injected yet.",
        "",
        "## Measured",
        "",
        "| fault | what is injected | passed | figures | command | seconds | commit, machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in sorted(results.items(), key=lambda item: int(item[0][1:])):
        told = {key: value for key, value in result["figures"].items() if key not in ("passed", "properties")}
        figures = "; ".join(f"{key.replace('_', ' ')}: {_short(value)}" for key, value in told.items())
        where = f"{result['provenance']['commit'][:8]}, {result['cpus']} CPUs, torch {_torch(result)}"
        passed = "yes" if result["figures"]["passed"] else "**no**"
        lines.append(
            f"| {name} | {GUARDS[name][0]} | {passed} | {figures} | `{result['command']}` | {result['seconds']:.0f} "
            f"| {where} |"
        )
    lines += ["", "## Tested with every change", "", "| fault | what is injected | tests |", "|---|---|---|"]
    for name, (what, tests) in GUARDS.items():
        listed = "<br>".join(f"`{test}`" for test in tests) or f"`python tools/faults.py {name}` alone"
        lines.append(f"| {name} | {what} | {listed} |")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _torch(result: dict[str, Any]) -> str:
    return result["provenance"]["versions"]["torch"]


def read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", choices=[*INJECTED, []], metavar="FAULT", help=", ".join(INJECTED))
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of F2")
    parser.add_argument("--kills", type=int, default=20, help="of F2")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of F20")
    parser.add_argument("--cases", type=int, default=10_000, help="of each property of F22")
    args = parser.parse_args(argv)
    if args.check:
        return int(PAGE.read_text() != page(read()))
    passed = True
    for name in args.faults:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as folder:
            figures = INJECTED[name](Path(folder), args)
        given = " ".join(f"--{key} {getattr(args, key)}" for key in _options(name, args, parser))
        result = {
            "command": f"python tools/faults.py {name} {given}".strip(), "figures": figures,
            "seconds": round(time.monotonic() - start, 1), "cpus": os.cpu_count(), "provenance": provenance(),
            "platform": platform.platform(),
        }  # fmt: skip
        RESULTS.write_text(json.dumps(read() | {name: result}, indent=1) + "\n")
        passed &= bool(figures["passed"])
        print(f"{name}: {json.dumps(figures)}")
    PAGE.write_text(page(read()))
    return 0 if passed else 1


def _options(name: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The options of a fault that were given."""
    own = {"F2": ["seed", "kills"], "F20": ["steps"], "F22": ["cases"]}.get(name, [])
    return [key for key in own if getattr(args, key) != parser.get_default(key)]


if __name__ == "__main__":
    sys.exit(main())
