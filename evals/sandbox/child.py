"""The processes of a program: one becomes the program, the other one runs its tests.

Each isolates itself first. The fork server prepares what all share and passes the streams. The
tests' process never executes a program: it calls the program's functions over pipes (`wire`). It
runs the tests of one program after the other, since a fork of its own would cost as much as the
program. Tests that import a module, or change one, are its last. Standard library only.
"""

import contextlib
import ctypes
import errno
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from evals.sandbox import encoding, guard, isolation, wire

LENGTH_BYTES = 8  # of the number in front of the program that gives its length
SECRET_BYTES = 32
STAYS = b"stays"
TEST_DESCRIPTORS = 5  # the streams, and the pipes from and to the program


@dataclass(frozen=True)
class Prepared:
    """Everything that the server prepares once for all programs.

    Attributes:
        libc: the C library.
        separate: True if the server is in namespaces of its own.
        read_only: True if, in addition, all mounts there are read-only.
        files: the Landlock rules.
        seccomp: the filter of system calls, None if there is none for this machine.
        tests_seccomp: the same for the tests' process.
        libraries: folders from which programs may import.
    """

    libc: ctypes.CDLL
    separate: bool
    read_only: bool
    files: isolation.FileRules
    seccomp: bytes | None
    tests_seccomp: bytes | None
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
    """A program's ends of its pipes.

    Attributes:
        outcome: the process writes here how the program ended.
        secret: the process reads the secret here once it is isolated.
        source: where the tests' requests come from, -1 if there are no tests.
        target: where the answers go, -1 if there are no tests.
    """

    outcome: int
    secret: int
    source: int = -1
    target: int = -1


@dataclass(frozen=True)
class Task:
    """One program.

    Attributes:
        home: its empty home directory.
        name: the module's name.
        limits: the limits on its process, and on that of the tests.
    """

    home: str
    name: str
    limits: Limits


def become_program(
    task: Task, streams: Sequence[int], pipes: Pipes, prepared: Prepared
) -> Callable[[], None]:
    """Isolate this process; return a function that runs the program and does not return.

    The program's outcome is the secret after its end, else "failed", "memory" or "violation". With
    tests the process then does what they ask, until it is killed. The frame that executes the
    program has no variable that matters for the verdict, and there are none below it if the caller
    returns the function to the interpreter's first frame.

    Args:
        task: the program.
        streams: descriptors of the source (program and tests), of its output and its error output.
        pipes: its ends of the pipes.
        prepared: what the server has prepared.
    """
    with _ends_if_it_fails():
        program = _take(streams)
        _apply_layers(task, prepared, prepared.seccomp)
        isolation.limit_resources(task.limits.cpu, task.limits.memory_mb << 20)
    outcome, unread = pipes.outcome, pipes.secret
    tested = pipes.source >= 0
    refused = guard.install(task.home, prepared.files.readable)
    module = type(sys)(task.name)
    names = module.__dict__
    sys.modules[task.name] = module
    sys.argv = ["program.py"]
    leave, audit = os._exit, sys.audit
    if tested:
        wire.connect(pipes.source, pipes.target, strict=False)

    def note(error: BaseException) -> str:
        stopped = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EFBIG)
        return "violation" if refused or stopped else ""

    def run() -> None:
        guard.send_at_end(outcome, os.read(unread, SECRET_BYTES))
        os.close(unread)
        try:
            exec(compile(program, "program.py", "exec", dont_inherit=True), names)
            if tested:
                wire.serve(names, note)
                leave(0)
            wire.flush()
            audit(guard.END)
        except BaseException as error:
            os.write(outcome, _report(error, note(error)))
        finally:
            leave(0)

    return run


def become_tests(task: Task, channel: socket.socket, prepared: Prepared) -> Callable[[], None]:
    """Isolate this process; return a function that runs tests of one program after the other.

    A message has the limits, and the descriptors of the program's streams and of the pipes from and
    to it. The answer is "gone" if the program ended early, else "passed", "failed", "memory" or
    "violation". A second answer is `STAYS` if the process can run other tests.
    """
    prepared.libc.prctl(isolation.PR_SET_DUMPABLE, 0, 0, 0, 0)  # no other process may look inside
    with _ends_if_it_fails():
        os.setsid()
        _apply_layers(task, prepared, prepared.tests_seccomp)
    home = task.home
    refused = guard.install(home, prepared.files.readable)

    def run() -> None:
        modules, main = _Modules(), sys.modules["__main__"]
        while True:
            message, descriptors, *_ = socket.recv_fds(channel, 64, TEST_DESCRIPTORS)
            if not message:
                os._exit(0)
            *streams, source, target = descriptors
            tests = _take(streams, tests=True)
            cpu, memory_mb = map(int, message.split())
            used = resource.getrusage(resource.RUSAGE_SELF)
            used_seconds = math.ceil(used.ru_utime + used.ru_stime)
            isolation.limit_resources(
                cpu, memory_mb << 20, used_seconds=used_seconds, for_good=False
            )
            refused.clear()
            answer = _run_tests(tests, source, target, refused)
            os.close(source)
            os.close(target)
            channel.sendall(answer)
            _empty(home)
            sys.modules["__main__"] = main
            channel.sendall(STAYS if modules.are_unchanged() else b"ends")

    return run


def _run_tests(tests: bytes, source: int, target: int, refused: Sequence[str]) -> bytes:
    """Run tests of the program behind the pipes; return how they ended."""
    peer = wire.connect(source, target, strict=True)
    outcome = b"gone"
    try:
        code = compile(tests, "tests.py", "exec", dont_inherit=True)
        exec(code, _names_for(code, tests))
        outcome = b"gone" if peer.gone else b"passed"
    except wire.Gone:
        pass
    except BaseException as error:
        outcome = _report(error, "violation" if refused or "violation" in peer.notes else "")
    wire.flush()
    return outcome


class _Modules:
    """The names in all modules, to notice tests that import or change one."""

    def __init__(self) -> None:
        self.modules = dict(sys.modules)
        self.names = [
            (vars(module), dict(vars(module)))
            for module in self.modules.values()
            if module not in (wire, encoding)  # their state is of one program
        ]

    def are_unchanged(self) -> bool:
        return sys.modules == self.modules and all(now == then for now, then in self.names)


def _empty(home: str) -> None:
    if os.listdir(home):
        import shutil

        for entry in os.scandir(home):
            shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.remove(entry)


def _names_for(code: CodeType, tests: bytes) -> dict[str, Any]:
    """Return the names of the program that occur in the tests, with the program's objects."""
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    names = vars(module)
    names.update(wire.values(lambda n: n in code.co_names or n.encode("utf-8", "replace") in tests))
    return names


def _report(error: BaseException, note: str) -> bytes:
    """Return how the process ended; print the traceback without the sandbox's own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.__excepthook__(type(error), error.with_traceback(trace), trace)
    wire.flush()
    return (note or ("memory" if isinstance(error, MemoryError) else "failed")).encode()


@contextlib.contextmanager
def _ends_if_it_fails() -> Iterator[None]:
    """End the process after an exception; the server notices that it was not ready."""
    try:
        yield
    except BaseException as error:
        sys.__excepthook__(type(error), error, error.__traceback__)
        os._exit(1)


def _take(streams: Sequence[int], *, tests: bool = False) -> bytes:
    """Return the program or its tests; make the streams standard ones, with an empty stdin.

    The program's process never reads the tests.
    """
    if not tests:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    length, size = int.from_bytes(os.pread(0, LENGTH_BYTES, 0), "big"), os.fstat(0).st_size
    start, count = (LENGTH_BYTES + length, size) if tests else (LENGTH_BYTES, length)
    text = os.pread(0, count, start)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return text


def _apply_layers(task: Task, prepared: Prepared, code: bytes | None) -> None:
    """Apply each layer that the machine offers; list their names in $SANDBOX_LAYERS."""
    libc, home = prepared.libc, task.home
    separate = prepared.read_only and isolation.mount_home(libc, home)
    isolation.drop_privileges(libc)
    os.chdir(home)
    libc.prctl(isolation.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    layers = {
        "namespaces": separate,
        "landlock": isolation.apply_landlock(libc, home, prepared.files),
        "seccomp": isolation.apply_seccomp(libc, code),
    }
    os.environ["SANDBOX_LAYERS"] = " ".join(name for name in layers if layers[name])
    # Outside a user namespace the kernel counts all threads of the user, so 0 is the only useful
    # limit. Under seccomp no limit is needed: no process can start, and memory bounds the threads.
    threads = None if layers["seccomp"] else 0
    if separate:
        threads = isolation.MAX_THREADS + isolation.SERVER_PROCESSES
    isolation.limit_processes(threads)
    vars(libc).clear()  # the guard hears of a look-up of a C function, but not of a later call
    sys.path.extend(prepared.libraries)
