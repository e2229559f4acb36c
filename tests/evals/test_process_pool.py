"""The sandbox's fork servers: reused from program to program, without a trace of the last one."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evals.sandbox import runner

REPOSITORY = Path(__file__).parents[2]


def servers() -> list[int]:
    """Return the process ids of this process's idle fork servers."""
    return [worker._process.pid for _, worker in runner._servers._idle]


def test_a_server_runs_one_program_after_the_other() -> None:
    runner.run("pass")
    (one,) = servers()[-1:]
    assert runner.run("pass").passed
    assert one in servers()


def test_no_program_sees_another_one(layers) -> None:
    spoil = "import builtins, os, sys\nbuiltins.len = None; os.environ['A'] = 'b'; sys.path[:] = []"
    assert runner.run(spoil + "; open('file', 'w').write('text'); import json").reason == "failed"
    look = "import os, json\nassert len('a') == 1 and 'A' not in os.environ and not os.listdir('.')"
    assert runner.run(look).passed


def test_there_is_one_server_per_concurrent_thread() -> None:
    before = len(servers())
    with ThreadPoolExecutor(3) as pool:
        programs = [f"import time; time.sleep(0.3); print({n})" for n in range(6)]
        printed = [result.stdout for result in pool.map(runner.run, programs)]
    assert printed == [f"{n}\n" for n in range(6)]
    assert before <= len(servers()) <= max(before, 3)


def test_a_killed_server_fails_only_its_own_program() -> None:
    runner.run("pass")
    before = servers()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runner.run, "import time; time.sleep(9)")
        while servers() == before:
            time.sleep(0.01)
        for process in set(before) - set(servers()):
            os.kill(process, signal.SIGKILL)
        assert running.result().reason == "violation"
    assert runner.run("pass").passed


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit()"])
def test_nothing_outlives_the_process_that_started_it(end) -> None:
    script = (
        "import os, sys, threading, time; from evals.sandbox import runner; runner.run('pass');"
        "print(*[w._process.pid for _, w in runner._servers._idle], flush=True);"
        "threading.Thread(target=runner.run, args=('import time; time.sleep(60)',), daemon=True)"
        f".start(); time.sleep(0.5); {end}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True
    )
    processes = [int(word) for word in done.stdout.split()]
    assert processes, done.stderr
    deadline = time.monotonic() + 10  # the program itself may sleep for 15
    while time.monotonic() < deadline and _living(processes):
        time.sleep(0.05)
    assert not _living(processes)


def _living(sessions: list[int]) -> list[str]:
    """Return the living processes of these sessions; each server starts one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if int(session) in sessions and state != "Z":
                found.append(path.parent.name)
    return found
