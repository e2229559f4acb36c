"""The inside of the sandbox: builds the walls around itself, then becomes the program.

In: the program on stdin; HOME, CPU seconds, wall seconds, MiB and library folders as arguments.
Out: an exit code of `EXIT_CODES`; the program's output on stdout and stderr. Standard library only,
since it runs in a bare interpreter, and little of that: imports are most of what a run costs. Two
processes: the supervisor, which the program can't reach, and its child, which becomes the program.
"""

import ctypes
import errno
import os
import signal
import sys

from evals import sandbox_walls as walls

EXIT_CODES = {"passed": 100, "failed": 101, "timeout": 102, "memory": 103, "violation": 104}

# Audit events (docs.python.org/3/library/audit_events.html) that are refused outright, and those
# that change files, with the places of each path and of the folder it is relative to (or None).
REFUSED_EVENTS = frozenset(
    [
        "os.fork",
        "os.forkpty",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "os.kill",
        "os.killpg",
        "subprocess.Popen",
        "pty.spawn",
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "ctypes.dlopen",
        "ctypes.dlsym",
        "resource.setrlimit",
    ]
)
WRITING_EVENTS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.lchown": ((0, None),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
    "sqlite3.connect": ((0, None),),
}
WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(arguments: list[str]) -> int:
    """Supervises one program; returns the exit code that tells its fate."""
    home, cpu_seconds, wall_seconds, memory_mb, *libraries = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    program = sys.stdin.buffer.read()
    secret = os.urandom(32)
    secret_out, secret_in = os.pipe()
    outcome_out, outcome_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.write(secret_in, secret)
    _leave_root(home)
    separate = walls.enter_namespaces(libc)
    child = os.fork()
    if child == 0:
        os.close(outcome_out)
        os.close(secret_in)
        _build_walls(libc, home, separate, (int(cpu_seconds), int(memory_mb) << 20))
        sys.path.extend(libraries)
        _become(program, home, secret_out, outcome_in)
    os.close(outcome_in)
    os.close(secret_out)
    return EXIT_CODES[_verdict(child, int(cpu_seconds), float(wall_seconds), (outcome_out, secret))]


def _verdict(child: int, cpu_seconds: int, wall_seconds: float, expected: tuple[int, bytes]) -> str:
    outcome_out, secret = expected
    rings = []

    def stop(*_: object) -> None:
        rings.append(True)
        os.kill(child, signal.SIGKILL)  # the first of its namespace: all others die with it

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
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
    out_of_time = killed and usage.ru_utime + usage.ru_stime >= 0.9 * cpu_seconds
    return "timeout" if rings or out_of_time else "failed"


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
    libc: ctypes.CDLL, home: str, separate: bool, cpu_and_memory: tuple[int, int]
) -> None:
    """Builds each wall that the machine offers; the program finds their names in $SANDBOX_WALLS."""
    read_only = separate and walls.mount_read_only(libc, home)
    walls.drop_privileges(libc)
    os.chdir(home)
    standing = {
        "namespaces": read_only,
        "landlock": walls.confine_writes(libc, home),
        "seccomp": walls.filter_system_calls(libc),
    }
    os.environ["SANDBOX_WALLS"] = " ".join(name for name in standing if standing[name])
    # Outside of a user namespace the kernel counts all threads of the user, so that 0 is the only
    # useful limit; nor is it needed where no process can start and memory bounds the threads.
    threads = walls.MAX_THREADS if read_only else None if standing["seccomp"] else 0
    walls.limit(*cpu_and_memory, threads)
    libc.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _become(program: bytes, home: str, secret_out: int, outcome_in: int) -> None:
    """Runs the program as `__main__` and never returns."""
    write, read, leave = os.write, os.read, os._exit
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    refused = _install_guard(home)
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
        _flush()
        write(outcome_in, read(secret_out, 32))
    except BaseException as error:
        against_wall = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EFBIG)
        outcome = b"memory" if isinstance(error, MemoryError) else b"failed"
        write(outcome_in, b"violation" if refused or against_wall else outcome)
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        _flush()
    finally:
        leave(0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:  # the program may have closed or replaced it
            continue


def _install_guard(home: str) -> list[str]:
    """Refuses what REFUSED_EVENTS names and changes outside `home`; returns the refusals so far."""
    refused: list[str] = []
    realpath, fsdecode, join = os.path.realpath, os.fsdecode, os.path.join

    def outside(path: int | str | bytes | os.PathLike, folder: int = -1) -> bool:
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
        elif folder >= 0:
            path = join(f"/proc/self/fd/{folder}", fsdecode(path))
        real = realpath(fsdecode(path))
        return real != home and not real.startswith(home + "/") and real not in walls.DEVICES

    def forbidden(event: str, arguments: tuple) -> bool:
        if event == "open":
            path, _, flags = arguments
            return bool(flags & WRITING_FLAGS) and not isinstance(path, int) and outside(path)
        if event == "socket.__new__":
            return arguments[1] != walls.AF_UNIX
        if event in WRITING_EVENTS:
            return any(
                outside(arguments[path], -1 if folder is None else arguments[folder])
                for path, folder in WRITING_EVENTS[event]
            )
        return event in REFUSED_EVENTS

    def guard(event: str, arguments: tuple) -> None:
        if forbidden(event, arguments):
            refused.append(event)
            raise PermissionError(f"the sandbox does not allow {event} {arguments!r:.200}")

    sys.addaudithook(guard)
    return refused
