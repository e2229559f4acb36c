"""The process of one program: it isolates itself, then becomes the program.

The fork server prepares what all programs share and passes the program's streams. The outcome goes
back to the server over a pipe. Standard library only.
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

from evals.sandbox import guard, isolation

LENGTH_BYTES = 8  # of the number in front of the program that gives its length
SECRET_BYTES = 32
# Functions of ctypes that change memory without an audit event.
UNAUDITED = ("memmove", "memset", "cast", "_cast", "_memmove_addr", "_memset_addr", "_cast_addr")


@dataclass(frozen=True)
class Prepared:
    """Everything that the server prepares once for all programs.

    Attributes:
        libc: the C library.
        separate: True if the server is in namespaces of its own.
        read_only: True if, in addition, all mounts there are read-only.
        files: the Landlock rules.
        seccomp: the filter of system calls, None if there is none for this machine.
        libraries: folders from which programs may import.
    """

    libc: ctypes.CDLL
    separate: bool
    read_only: bool
    files: isolation.FileRules
    seccomp: bytes | None
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """Limits on one program: seconds of CPU time, asleep and in total, and MiB of memory."""

    cpu: int
    idle: float
    total: float
    memory_mb: int


@dataclass(frozen=True)
class Pipes:
    """Descriptors of the pipes between the server and one program's process.

    Attributes:
        secret: the child reads the secret here once it is isolated.
        outcome: the child writes here the secret after the last test, else "failed", "memory" or
            "violation".
    """

    secret: int
    outcome: int


def become(
    home: str, limits: Limits, streams: Sequence[int], pipes: Pipes, prepared: Prepared
) -> NoReturn:
    """Isolate this process, run the program as `__main__`, then its tests; never return.

    The code after the program uses nothing that the program could have changed.

    Args:
        home: the program's empty home directory.
        limits: limits on the program.
        streams: descriptors of the source (program and tests), of its output and its error output.
        pipes: the child's ends of the pipes to the server.
        prepared: what the server has prepared.
    """
    write, leave, execute, audit = os.write, os._exit, exec, sys.audit
    try:
        program, tests = _take(streams, home)
        _isolate(home, limits, prepared)
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        sys.argv = ["program.py"]
        sys.path.extend(prepared.libraries)
    except BaseException as error:  # the server sees the unread secret and reports a broken sandbox
        sys.__excepthook__(type(error), error, error.__traceback__)
        leave(1)
    outcome = pipes.outcome
    guard.send_at_end(outcome, os.read(pipes.secret, SECRET_BYTES))
    os.close(pipes.secret)
    refused = guard.install(home, prepared.files.readable)
    try:
        code = compile(program, "program.py", "exec", dont_inherit=True)
        test_code, originals = _prepare_tests(tests)
        execute(code, module.__dict__)
        if test_code:
            for names, contents in originals:
                names.update(contents)
            execute(test_code, {**module.__dict__, "__builtins__": originals[0][1]})
        _flush()
        audit(guard.END)
    except BaseException as error:
        stopped = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EFBIG)
        reason = b"memory" if isinstance(error, MemoryError) else b"failed"
        write(outcome, b"violation" if refused or stopped else reason)
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        _flush()
    finally:
        leave(0)


def _take(streams: Sequence[int], home: str) -> tuple[bytes, bytes]:
    """Return the program and its tests; make the streams standard ones, with an empty stdin."""
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


def _isolate(home: str, limits: Limits, prepared: Prepared) -> None:
    """Apply each layer that the machine offers; list their names in $SANDBOX_LAYERS."""
    libc = prepared.libc
    separate = prepared.read_only and isolation.mount_home(libc, home)
    isolation.drop_privileges(libc)
    os.chdir(home)
    layers = {
        "namespaces": separate,
        "landlock": isolation.apply_landlock(libc, home, prepared.files),
        "seccomp": isolation.apply_seccomp(libc, prepared.seccomp),
    }
    os.environ["SANDBOX_LAYERS"] = " ".join(name for name in layers if layers[name])
    # Outside a user namespace the kernel counts all threads of the user, so 0 is the only useful
    # limit. Under seccomp no limit is needed: no process can start, and memory bounds the threads.
    threads = None if layers["seccomp"] else 0
    if separate:
        threads = isolation.MAX_THREADS + isolation.SERVER_PROCESSES
    isolation.limit_resources(limits.cpu, limits.memory_mb << 20, threads)
    libc.prctl(isolation.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The guard hears of a look-up of a C function, but not of a call to one that was looked up.
    vars(libc).clear()
    for module in (ctypes, sys.modules["_ctypes"]):
        for name in UNAUDITED:
            vars(module).pop(name, None)


def _prepare_tests(tests: bytes) -> tuple[CodeType | None, list[tuple[dict, dict]]]:
    """Compile the tests and copy the names that they rely on, before the program runs.

    Returns:
        the code, and for Python's builtins and each module that the tests import, its names and a
        copy of them. The copies are put back before the tests, since the program may change them.
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
                continue  # the tests will raise it
    return code, [(vars(module), dict(vars(module))) for module in modules]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:  # the program may have closed or replaced it
            continue
