"""The process of one program: builds the walls around itself, then becomes the program.

In: what the fork server has prepared, and the program's streams and pipes. Out: what became of the
program, on a pipe. Standard library only.
"""

import builtins
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import NoReturn

from evals.sandbox import guard as guard
from evals.sandbox import isolation as walls

LENGTH_BYTES = 8  # of the program, in front of it and the tests
SECRET_BYTES = 32
UNHEARD = ("memmove", "memset", "cast", "_cast", "_memmove_addr", "_memset_addr", "_cast_addr")


@dataclass(frozen=True)
class Prepared:
    """What every program's process finds ready."""

    libc: ctypes.CDLL
    separate: bool
    """Whether the server is in namespaces of its own,"""
    read_only: bool
    """and there can't change a file."""
    files: walls.FileRules
    calls: bytes | None
    """The filter of system calls."""
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """Of a program, in seconds and MiB."""

    cpu: int
    idle: float
    wall: float
    memory_mb: int


def become(
    home: str, limits: Limits, streams: Sequence[int], pipes: tuple[int, int], prepared: Prepared
) -> NoReturn:
    """Builds the walls, runs the program as `__main__`, then its tests, and never returns.

    What comes after the program uses nothing that the program could have changed.

    Args:
        home: the program's, empty.
        limits: of the program.
        streams: the program with its tests, and what takes its output and its errors.
        pipes: the one gives a secret when the walls are there; the other takes it back at the end
            of the tests, else "failed", "memory" or "violation".
        prepared: by the server.
    """
    write, leave, execute, audit = os.write, os._exit, exec, sys.audit
    secret_out, outcome_in = pipes
    try:
        text = _take(streams, home)
        _build_walls(home, limits, prepared)
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        sys.argv = ["program.py"]
        sys.path.extend(prepared.libraries)
    except BaseException as error:  # the secret lies unread: that tells the server
        sys.__excepthook__(type(error), error, error.__traceback__)
        leave(1)
    guard.report_end_of(outcome_in, os.read(secret_out, SECRET_BYTES))
    os.close(secret_out)
    refused = guard.install(home, prepared.files.places)
    try:
        code = compile(text[0], "program.py", "exec", dont_inherit=True)
        tests, known = _ready(text[1])
        execute(code, module.__dict__)
        if tests:
            for used, contents in known:
                used.update(contents)
            execute(tests, {**module.__dict__, "__builtins__": known[0][1]})
        _flush()
        audit(guard.END)
    except BaseException as error:
        against_wall = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EFBIG)
        outcome = b"memory" if isinstance(error, MemoryError) else b"failed"
        write(outcome_in, b"violation" if refused or against_wall else outcome)
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        _flush()
    finally:
        leave(0)


def _take(streams: Sequence[int], home: str) -> tuple[bytes, bytes]:
    """The program and its tests; their streams become the standard ones, with an empty stdin."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    length = int.from_bytes(os.read(0, LENGTH_BYTES), "big")
    program = os.read(0, length)
    tests = os.read(0, os.fstat(0).st_size)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.environ.update(HOME=home, TMPDIR=home)
    return program, tests


def _build_walls(home: str, limits: Limits, prepared: Prepared) -> None:
    """Builds each wall that the machine offers; the program finds their names in $SANDBOX_WALLS."""
    libc = prepared.libc
    separate = prepared.read_only and walls.mount_home(libc, home)
    walls.drop_privileges(libc)
    os.chdir(home)
    standing = {
        "namespaces": separate,
        "landlock": walls.confine_files(libc, home, prepared.files),
        "seccomp": walls.filter_system_calls(libc, prepared.calls),
    }
    os.environ["SANDBOX_WALLS"] = " ".join(name for name in standing if standing[name])
    # Outside of a user namespace the kernel counts all threads of the user, so that 0 is the only
    # useful limit; nor is it needed where no process can start and memory bounds the threads.
    threads = None if standing["seccomp"] else 0
    if separate:
        threads = walls.MAX_THREADS + walls.SERVER_PROCESSES
    walls.limit(limits.cpu, limits.memory_mb << 20, threads)
    libc.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # What the guard would not hear of: functions that are there need no look-up any more.
    vars(libc).clear()
    for module in (ctypes, sys.modules["_ctypes"]):
        for name in UNHEARD:
            vars(module).pop(name, None)


def _ready(tests: bytes) -> tuple[CodeType | None, list[tuple[dict, dict]]]:
    """The tests' code; Python's own names and those of the modules that the tests import.

    A program may have changed them by the time that its tests run: each comes with a copy of its
    contents, to put back.
    """
    if not tests.strip():
        return None, []
    code = compile(tests, "tests.py", "exec", dont_inherit=True)
    modules: list[ModuleType] = [builtins]
    for line in tests.decode("utf-8", "replace").splitlines():
        words = line.split()
        if words[:1] in (["import"], ["from"]) and len(words) > 1:
            try:
                modules.append(__import__(words[1].split(".")[0].rstrip(",;")))
            except ImportError:
                continue  # the tests themselves will say so
    return code, [(vars(module), dict(vars(module))) for module in modules]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:  # the program may have closed or replaced it
            continue
