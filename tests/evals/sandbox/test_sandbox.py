"""The sandbox: verdicts, limits, and its layers against programs that try to get out."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evals.sandbox import runner
from tests.assets.attacks import ATTACKS
from tests.assets.sandbox_layers import (
    WITHOUT_GUARD,
    WITHOUT_LANDLOCK_AND_SECCOMP,
    WITHOUT_NAMESPACES,
    patch,
)

REPOSITORY = Path(__file__).parents[3]
VERDICTS = {
    "assert sum(range(4)) == 6": "passed",
    "1 / 0": "failed",
    "def broken(": "failed",
    "quit()": "failed",
    "input()": "failed",
}

HOME_IS_EMPTY_AND_WRITABLE = """
import os, tempfile
assert os.listdir('.') == [] and os.path.samefile('.', os.environ['HOME'])
assert set(os.environ) <= {'HOME', 'TMPDIR', 'PATH', 'LANG', 'PYTHONHASHSEED', 'LC_CTYPE',
                           'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'SANDBOX_LAYERS'}
with tempfile.TemporaryDirectory() as folder:
    open(os.path.join(folder, 'file'), 'w').write('text')
open(os.devnull, 'w').write('text')
"""

ORDINARY_PROGRAMS = {
    "home": HOME_IS_EMPTY_AND_WRITABLE,
    "main": "assert __name__ == '__main__'",
    "pickle": "import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)",
    "asyncio": "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
    "numpy": "import numpy; assert numpy.ones(3).sum() == 3",
    "doctest": "def f():\n    '''\n    >>> f()\n    1\n    '''\n    return 1\n"
    "import doctest\nassert doctest.testmod().attempted == 1",
    "unittest": "import unittest\nunittest.main(exit=False)",
    "surrogates": "print('\\ud800 \xe9 \U0001f600')",
    "700 MB": "b = bytearray(700 << 20)",
    "files": "import shutil, sqlite3\nopen('a', 'w').write('x')\nshutil.copy2('a', 'b')\n"
    "sqlite3.connect('c').execute('create table t (x)')",
    "timers": "import signal\nsignal.alarm(1)\nsignal.setitimer(signal.ITIMER_REAL, 0)",
    "a limit of its own": "import resource as r\nr.setrlimit(r.RLIMIT_STACK, (1 << 22, 1 << 22))",
}
# Each takes seconds to import, so they run in one world.
LIBRARIES = {
    "scipy": "import scipy.special, scipy.stats\nassert scipy.special.comb(6, 1) == 6",
    "sklearn": "from sklearn.linear_model import LinearRegression as L\n"
    "assert abs(L().fit([[0], [1]], [0, 1]).predict([[3]])[0] - 3) < 1e-6",
    "numba": "import numba\nassert numba.njit(lambda x: x + 1)(2) == 3",
}
THREADS = """
import os, threading, time
if os.environ["SANDBOX_LAYERS"]:
    threads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("program", VERDICTS)
def test_verdict(layers, program) -> None:
    result = runner.run(program, cpu_seconds=2)
    assert result.reason == VERDICTS[program], result.stderr
    assert result.passed == (result.reason == "passed")


@pytest.mark.parametrize("name", ORDINARY_PROGRAMS)
def test_ordinary_programs_pass(layers, name) -> None:
    result = runner.run(ORDINARY_PROGRAMS[name])
    assert result.passed, result.stderr


def test_threads_within_the_limit_run(layers) -> None:
    result = runner.run(THREADS)
    assert result.passed, result.stderr


@pytest.mark.parametrize("name", LIBRARIES)
def test_numerical_libraries_work(name) -> None:
    pytest.importorskip(name)
    result = runner.run(LIBRARIES[name], cpu_seconds=60)
    assert result.passed, result.stderr


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(layers, name, tmp_path) -> None:
    attack = ATTACKS[name]
    result = runner.run(attack.program, tests=attack.tests, cpu_seconds=2)
    assert result.reason == attack.expected(layers), result.stderr
    assert not Path("/tmp/outside").exists()


def test_endless_programs_end(layers, monkeypatch) -> None:
    assert runner.run("while True: pass", cpu_seconds=1).reason == "timeout"
    monkeypatch.setattr(runner, "IDLE_SECONDS", 1)  # by then it has started
    assert runner.run("import time; time.sleep(60)", cpu_seconds=1).reason == "timeout"
    waits = "import threading; threading.Event().wait()"
    assert runner.run(waits, cpu_seconds=1).reason == "timeout"
    patch(monkeypatch, "server._Process.cpu_seconds = lambda self: 0.0; ")
    assert runner.run("while True: pass", cpu_seconds=1).reason == "timeout"
    patch(monkeypatch, "server._busy_seconds = lambda handle: float('inf'); ")
    monkeypatch.setattr(runner, "STARVED_FACTOR", 1)
    assert runner.run("import time; time.sleep(60)", cpu_seconds=1).reason == "timeout"


def test_a_busy_machine_does_not_change_the_verdict(monkeypatch) -> None:
    monkeypatch.setattr(runner, "IDLE_SECONDS", 0)
    program = "import time\nwhile time.process_time() < 1.2: pass"
    hog_command = [sys.executable, "-c", "while 1: 0"]
    # In sessions of their own, among which the kernel shares the cores.
    hogs = [subprocess.Popen(hog_command, start_new_session=True) for _ in range(8)]
    try:
        started = time.monotonic()
        result = runner.run(program, cpu_seconds=2)
        waited = time.monotonic() - started
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert result.passed, f"{result.reason} after {waited:.1f} s"


def test_a_program_that_waits_for_a_core_is_not_idle(monkeypatch) -> None:
    """The kernel counts a wait when it ends, and a machine may stand still for a second."""
    monkeypatch.setattr(runner, "IDLE_SECONDS", 0)
    patch(
        monkeypatch,
        "server._busy_seconds = lambda handle: 0.0; "
        "server._Process.cpu_seconds = lambda self: 0.0; ",
    )
    program = "import time\nend = time.monotonic() + 2.5\nwhile time.monotonic() < end: pass"
    assert runner.run(program, cpu_seconds=1).passed


def test_files_outside_are_unchanged(layers, tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("unchanged")
    for path in (*tmp_path.parents, tmp_path, victim):
        if path != Path("/") and path.stat().st_uid == os.getuid() and len(path.parts) > 2:
            path.chmod(0o777)  # so that only the sandbox protects it
    attempts = [
        "open(p, 'w')",
        "os.remove(p)",
        "os.rename(p, 'mine')",
        "os.chmod(p, 0)",
        "os.symlink(p, p + '2')",
        "os.truncate(p, 0)",
        "shutil.rmtree(os.path.dirname(p))",
        "os.chdir(os.path.dirname(p)); open('new', 'w')",
        "sqlite3.connect(p + '3')",
        "os.remove('victim', dir_fd=os.open(os.path.dirname(p), os.O_RDONLY))",
    ]
    for attempt in attempts:
        program = f"import os, shutil, sqlite3\np = {str(victim)!r}\n{attempt}"
        assert runner.run(program).reason == "violation", attempt
    assert victim.read_text() == "unchanged"
    assert sorted(os.listdir(tmp_path)) == ["victim"]


def test_long_output_is_cut(layers) -> None:
    result = runner.run("import sys\nprint('a' * 10**6)\nprint('b', file=sys.stderr)")
    assert result.passed
    assert result.stdout == "a" * runner.MAX_OUTPUT_CHARS + "\n[cut]"
    assert result.stderr == "b\n"


def test_a_traceback_shows_only_the_program() -> None:
    assert runner.run("def f():\n    raise KeyError('x')\nf()").stderr == (
        'Traceback (most recent call last):\n  File "program.py", line 3, in <module>\n'
        '  File "program.py", line 2, in f\n'
        "KeyError: 'x'\n"
    )


KERNEL_LAYERS = {"namespaces": WITHOUT_LANDLOCK_AND_SECCOMP, "seccomp": WITHOUT_NAMESPACES}


@pytest.mark.parametrize("name", KERNEL_LAYERS)
def test_the_kernel_stops_a_program_without_the_guard(name, monkeypatch, tmp_path) -> None:
    if name not in runner.isolation_layers():
        pytest.skip(f"this machine offers no {name} to processes without privileges")
    patch(monkeypatch, KERNEL_LAYERS[name] + WITHOUT_GUARD)
    victim = tmp_path / "victim"
    victim.write_text("unchanged")
    listener = socket.create_server(("127.0.0.1", 0))
    mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mailbox.bind(str(tmp_path / "mailbox"))
    mailbox.setblocking(False)
    mail = str(tmp_path / "mailbox")
    os.chmod(mail, 0o777)
    attempts = [
        f"open({str(victim)!r}, 'w')",
        f"import os; os.remove({str(victim)!r})",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import socket; socket.create_connection({listener.getsockname()}, timeout=5)",
        "import os; p = os.getppid(); assert p; os.kill(p, 9)",
        "import resource as r, os; p = os.getppid(); assert p; r.prlimit(p, r.RLIMIT_CPU, (1, 1))",
    ]
    if name == "seccomp":
        attempts += [
            f"import socket as s; s.socket(s.AF_UNIX, s.SOCK_DGRAM).sendto(b'x', {mail!r})",
            f"import socket as s; s.socketpair(type=s.SOCK_DGRAM)[0].sendto(b'x', {mail!r})",
            f"import socket as s; s.socketpair()[0].sendto(b'x', {mail!r})",
        ]
    for attempt in attempts:
        assert not runner.run(attempt).passed, attempt
    listener.close()
    with pytest.raises(BlockingIOError):
        mailbox.recv(1)
    mailbox.close()
    assert victim.read_text() == "unchanged"
    assert sorted(os.listdir(tmp_path)) == ["mailbox", "victim"]


def test_landlock_hides_files_from_a_program_without_the_guard(monkeypatch, tmp_path) -> None:
    if "landlock" not in runner.isolation_layers():
        pytest.skip("this machine's kernel offers no Landlock")
    patch(monkeypatch, WITHOUT_NAMESPACES + WITHOUT_GUARD)
    (tmp_path / "secret").write_text("s")
    for path in (str(tmp_path / "secret"), "/etc/passwd", f"/proc/{os.getpid()}/environ"):
        assert not runner.run(f"open({path!r})").passed, path
    assert runner.run("import json, os; open(json.__file__); os.listdir('.')").passed


def test_a_program_cannot_leave_keys_in_the_kernel_for_a_later_one(monkeypatch) -> None:
    if "seccomp" not in runner.isolation_layers() or os.uname().machine != "x86_64":
        pytest.skip("the number of the system call is that of x86-64")
    patch(monkeypatch, WITHOUT_GUARD)
    add_key = "ctypes.CDLL(None).syscall(248, b'user', b'name', b'text', 4, -4)"
    assert runner.run(f"import ctypes; assert {add_key} == -1").passed


@pytest.mark.parametrize("name", KERNEL_LAYERS)
def test_no_process_outlives_the_program(name, monkeypatch) -> None:
    if name not in runner.isolation_layers():
        pytest.skip(f"this machine offers no {name} to processes without privileges")
    patch(monkeypatch, KERNEL_LAYERS[name] + WITHOUT_GUARD)
    if name == "seccomp":
        assert not runner.run("import os; os.fork()").passed
    sleeper = "os.execv('/bin/sleep', ['sleep', '987.125'])"
    runner.run(f"import os\nif os.fork() == 0: {sleeper}")
    runner.run(f"import os\nif os.fork() == 0: os.setsid(); {sleeper}")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _running("987.125"):
        time.sleep(0.05)
    assert not _running("987.125")


def _running(argument: str) -> bool:
    commands = Path("/proc").glob("[0-9]*/cmdline")
    return any(argument.encode() in _read(command) for command in commands)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""  # the process has ended


def test_the_same_program_gets_the_same_verdict() -> None:
    program = "import sys\nprint(list({'a', 'b', 'c', 'd'}))"
    assert len({runner.run(program).stdout for _ in range(3)}) == 1


def test_invalid_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="cpu_seconds=0"):
        runner.run("", cpu_seconds=0)
    with pytest.raises(ValueError, match="memory_mb=1"):
        runner.run("", memory_mb=1)


@pytest.mark.parametrize(
    "fault",
    [
        # AppArmor of some Ubuntu versions allows the namespaces but not the mapping of users.
        "isolation.enter_namespaces.__globals__['NOBODY'] = -1; ",
        "isolation._enter = lambda libc: False; ",
    ],
)
def test_namespaces_that_work_only_in_part_are_not_used(monkeypatch, fault) -> None:
    patch(monkeypatch, fault)
    for _ in range(3):
        result = runner.run("import os; print(os.environ['SANDBOX_LAYERS'])")
        assert result.passed, result.stderr
        assert "namespaces" not in result.stdout


def test_a_full_disk_is_an_error_rather_than_a_pass_without_tests(tmp_path) -> None:
    """A limit on file size lets the program be written but not its tests, as on a full disk."""
    script = (
        "import resource, signal; from evals import sandbox; assert sandbox.run('').passed;"
        "program = '#' * 4000; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4008, 4008));"
        "sandbox.run(program, tests='assert False')"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "File too large" in done.stderr.splitlines()[-1]


def test_a_broken_sandbox_raises_instead_of_giving_a_verdict(monkeypatch) -> None:
    monkeypatch.setattr(runner, "SERVER", "1 / 0")
    with pytest.raises(RuntimeError, match="sandbox itself failed"):
        runner.run("x = 1")
    monkeypatch.undo()
    patch(monkeypatch, "isolation.drop_privileges = lambda libc: 1 / 0; ")
    with pytest.raises(RuntimeError, match=r"sandbox itself failed(.|\n)*ZeroDivisionError"):
        runner.run("x = 1")
    monkeypatch.undo()
    if "namespaces" in runner.isolation_layers():
        patch(monkeypatch, "isolation.new_process_namespace = lambda libc: open('/proc/none'); ")
        with pytest.raises(RuntimeError, match=r"sandbox itself failed: .*No such file"):
            runner.run("x = 1")


@pytest.mark.parametrize("works", [True, False])
def test_bubblewrap_goes_in_front_where_it_works(monkeypatch, tmp_path, works) -> None:
    """The program in its place starts the server without further isolation, or fails."""
    script = 'while [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"' if works else "exit 1"
    bubblewrap = tmp_path / "bwrap"
    bubblewrap.write_text(f"#!/bin/sh\n{script}\n")
    bubblewrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(runner, "_user", lambda front: {})
    monkeypatch.setattr(runner, "SERVER", f"{runner.SERVER} ")  # not the server of another test
    runner._front.cache_clear()
    try:
        assert runner.run("def f(): return 1", tests="assert f() == 1").passed
        assert ("bubblewrap" in runner.isolation_layers()) == works
    finally:
        runner._front.cache_clear()
