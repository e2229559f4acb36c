"""The inside of the sandbox: builds the walls around itself, then becomes the program.

In: from a socket, which is stdin, a request a program: its HOME and limits, and the files that hold
it and take its output. Out: an exit code of `EXIT_CODES` each. Standard library only, since it runs
in a bare interpreter. Three processes: the fork server, which starts the interpreter once and never
sees a program; its child, the supervisor of one program, which that one can't reach; and the
supervisor's child, which becomes the program.
"""

import builtins
import contextlib
import ctypes
import errno
import math
import os
import select
import signal
import socket
import sys
import time
from types import CodeType, ModuleType

from evals import sandbox_guard as guard
from evals import sandbox_walls as walls

READY = b"ready"
STREAMS = 3  # stdin, stdout, stderr of a program
MAX_REQUEST_BYTES = 4096  # a path and four numbers
CODE_BYTES = 2  # signed, of an answer
EXIT_CODES = {"passed": 100, "failed": 101, "timeout": 102, "memory": 103, "violation": 104}
LENGTH_BYTES = 8  # of the program, in front of it and the tests
LOOK_EVERY_SECONDS = 0.5


def serve(*libraries: str) -> None:
    """The fork server: runs one program after the other until the other end of stdin closes.

    Args:
        libraries: folders from which programs may import.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    channel = socket.socket(fileno=os.dup(0))
    channel.sendall(READY)
    while True:
        request, streams, *_ = socket.recv_fds(channel, MAX_REQUEST_BYTES, STREAMS)
        if not request:
            return
        supervisor = os.fork()
        if supervisor == 0:
            channel.close()
            os.setsid()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            os._exit(_run(request.decode().split("\0"), libc, libraries))
        for stream in streams:
            os.close(stream)
        code = _end_of(supervisor, channel)
        channel.sendall(code.to_bytes(CODE_BYTES, "big", signed=True))


def _end_of(supervisor: int, channel: socket.socket) -> int:
    """Its exit code; it is ended when nobody waits for that any more."""
    handle = os.pidfd_open(supervisor)
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    poller.register(channel, select.POLLIN)  # nothing but its end comes now
    poller.poll()
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.killpg(supervisor, signal.SIGKILL)  # it may not have become a group's leader yet
    os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1])


def _run(request: list[str], libc: ctypes.CDLL, libraries: tuple[str, ...]) -> int:
    """Supervises one program; returns the exit code that tells its fate."""
    home, cpu_seconds, idle_seconds, wall_seconds, memory_mb = request
    os.chdir(home)
    os.environ.update(HOME=home, TMPDIR=home)
    libc.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with open(0, "rb", closefd=False) as stdin:
        text = stdin.read()
    end = LENGTH_BYTES + int.from_bytes(text[:LENGTH_BYTES], "big")
    program, tests = text[LENGTH_BYTES:end], text[end:]
    secret_out, secret_in = os.pipe()
    outcome_out, outcome_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _leave_root(home)
    separate = walls.enter_namespaces(libc)
    child = os.fork()
    if child == 0:
        os.close(outcome_out)
        os.close(secret_in)
        readable = [sys.base_prefix, sys.prefix, *libraries, *walls.READABLE]
        _build_walls(libc, (home, readable), separate, (int(cpu_seconds), int(memory_mb) << 20))
        sys.path.extend(libraries)
        _become((program, tests), (home, readable), secret_out, outcome_in)
    os.close(outcome_in)
    os.close(secret_out)
    secret = os.urandom(32)  # after the fork: the program's process never has this variable
    os.write(secret_in, secret)
    patience = float(idle_seconds), float(wall_seconds)
    return EXIT_CODES[_verdict(child, int(cpu_seconds), patience, (outcome_out, secret))]


def _verdict(
    child: int, cpu_seconds: int, patience: tuple[float, float], expected: tuple[int, bytes]
) -> str:
    outcome_out, secret = expected
    rings = []
    started = time.monotonic()

    def look(*_: object) -> None:
        lived = time.monotonic() - started
        idle = lived - _busy_seconds(child)
        if idle >= patience[0] or lived >= patience[1]:
            rings.append(True)
            os.kill(child, signal.SIGKILL)  # the first of its namespace: all others die with it

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, LOOK_EVERY_SECONDS, LOOK_EVERY_SECONDS)
    _, status, usage = os.wait4(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        outcome = os.read(outcome_out, 64)
    except BlockingIOError:  # something that it started still lives and holds the other end
        outcome = b"violation"
    if outcome == secret:
        return "passed"
    if outcome in (b"memory", b"violation"):
        return outcome.decode()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    # The limit counts ticks of the clock, which on a busy machine can run ahead of the exact usage.
    out_of_time = killed and usage.ru_utime + usage.ru_stime >= 0.5 * cpu_seconds
    return "timeout" if rings or out_of_time else "failed"


def _busy_seconds(process: int) -> float:
    """Seconds for which a process ran or waited for a core, all threads; infinite if not known."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/schedstat") as file:
                ran, waited, _ = file.read().split()
            total += int(ran) + int(waited)
    except (OSError, ValueError):  # it has just ended, or the kernel keeps no such account
        return math.inf
    return total / 1e9


def _leave_root(home: str) -> None:
    """Root becomes nobody, unless nobody may not read Python's own library (as under /root)."""
    if os.geteuid() != 0:
        return
    try:
        os.chown(home, walls.NOBODY, walls.NOBODY)
        os.seteuid(walls.NOBODY)
    except OSError:
        return  # a container's root that lacks these rights, or has no such user
    usable = os.access(os.__file__, os.R_OK, effective_ids=True)
    usable = usable and os.access(home, os.W_OK | os.X_OK, effective_ids=True)
    os.seteuid(0)
    if usable:
        os.setgroups([])
        os.setresgid(walls.NOBODY, walls.NOBODY, walls.NOBODY)
        os.setresuid(walls.NOBODY, walls.NOBODY, walls.NOBODY)
    else:
        os.chown(home, 0, 0)


def _build_walls(
    libc: ctypes.CDLL,
    places: tuple[str, list[str]],
    separate: bool,
    cpu_and_memory: tuple[int, int],
) -> None:
    """Builds each wall that the machine offers; the program finds their names in $SANDBOX_WALLS."""
    home, readable = places
    read_only = separate and walls.mount_read_only(libc, home)
    walls.drop_privileges(libc)
    os.chdir(home)
    standing = {
        "namespaces": read_only,
        "landlock": walls.confine_files(libc, home, readable),
        "seccomp": walls.filter_system_calls(libc),
    }
    os.environ["SANDBOX_WALLS"] = " ".join(name for name in standing if standing[name])
    # Outside of a user namespace the kernel counts all threads of the user, so that 0 is the only
    # useful limit; nor is it needed where no process can start and memory bounds the threads.
    threads = walls.MAX_THREADS if read_only else None if standing["seccomp"] else 0
    walls.limit(*cpu_and_memory, threads)
    libc.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _become(
    text: tuple[bytes, bytes], places: tuple[str, list[str]], secret_out: int, outcome_in: int
) -> None:
    """Runs the program as `__main__`, then its tests, and never returns.

    What comes after the program uses nothing that the program could have changed.
    """
    write, leave, execute, audit = os.write, os._exit, exec, sys.audit
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    guard.report_end_of(outcome_in, os.read(secret_out, 32))
    os.close(secret_out)
    refused = guard.install(*places)
    try:
        code = compile(text[0], "program.py", "exec", dont_inherit=True)
        tests, known = _prepared(text[1])
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


def _prepared(tests: bytes) -> tuple[CodeType | None, list[tuple[dict, dict]]]:
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
