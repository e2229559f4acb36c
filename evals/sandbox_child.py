"""The inside of the sandbox: a script that builds the walls around itself, then runs a program.

In: the program on stdin; HOME, CPU seconds, wall seconds, MiB and library folders as arguments.
Out: an exit code of `EXIT_CODES`; the program's output on stdout and stderr. Standard library only,
since it runs in a bare interpreter, and little of that: imports are most of what a run costs. Two
processes: the supervisor, which the program can't reach, and its child, which becomes the program.
"""

import ctypes
import errno
import os
import resource
import signal
import sys

EXIT_CODES = {"passed": 100, "failed": 101, "timeout": 102, "memory": 103, "violation": 104}

NOBODY = 65534
MAX_THREADS = 16
MAX_FILE_BYTES = 16 << 20
MAX_HOME_BYTES = 64 << 20
MAX_OPEN_FILES = 64
AF_UNIX = 1

# linux/sched.h, linux/mount.h, linux/prctl.h, asm-generic/unistd.h (the number is the same on
# x86-64 and ARM64)
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV = 1, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def main(arguments: list[str]) -> int:
    """Supervises one program; returns the exit code that tells its fate."""
    home, cpu_seconds, wall_seconds, memory_mb, *libraries = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    program = sys.stdin.buffer.read()
    secret = os.urandom(32)
    secret_out, secret_in = os.pipe()
    outcome_out, outcome_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.write(secret_in, secret)
    _leave_root(home)
    namespaces = _unshare(libc)
    child = os.fork()
    if child == 0:
        os.close(outcome_out)
        os.close(secret_in)
        walled = namespaces and _build_walls(libc, home)
        _limit(int(cpu_seconds), int(memory_mb) << 20, MAX_THREADS if walled else 0)
        _drop_privileges(libc)
        sys.path.extend(libraries)
        os.chdir(home)
        _become(program, home, secret_out, outcome_in)
    os.close(outcome_in)
    os.close(secret_out)
    return EXIT_CODES[_verdict(child, int(cpu_seconds), float(wall_seconds), (outcome_out, secret))]


def _verdict(
    child: int, cpu_seconds: int, wall_seconds: float, expected: tuple[int, bytes]
) -> str:
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
        os.chown(home, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    except PermissionError:
        return  # a container's root without these rights
    readable = os.access(os.__file__, os.R_OK, effective_ids=True)
    reachable = os.access(home, os.W_OK | os.X_OK, effective_ids=True)
    os.seteuid(0)
    if readable and reachable:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _unshare(libc: ctypes.CDLL) -> bool:
    """Enters new namespaces as nobody without a group; False where the machine forbids that."""
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # the change of user gave /proc/self to root
    if libc.unshare(flags) != 0:
        return False
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {uid} 1"),
            ("gid_map", f"{NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    return True


def _build_walls(libc: ctypes.CDLL, home: str) -> bool:
    """Makes every file read-only and every device but four unusable; HOME becomes a small tmpfs."""

    def attributes(path: str, flags: int, add: int, remove: int) -> int:
        # struct mount_attr {u64 attr_set, attr_clr, propagation, userns_fd}
        request = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
        return libc.syscall(
            SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, request, ctypes.c_size_t(32)
        )

    options = f"size={MAX_HOME_BYTES},mode=700".encode()
    return (
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        and attributes("/", AT_RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, 0) == 0
        and libc.mount(b"tmpfs", home.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options) == 0
        and all(
            libc.mount(device.encode(), device.encode(), None, MS_BIND, None) == 0
            and attributes(device, 0, 0, MOUNT_ATTR_NODEV) == 0
            for device in DEVICES
        )
    )


def _limit(cpu_seconds: int, memory_bytes: int, threads: int) -> None:
    # Outside of a user namespace the kernel counts all processes of the user, so that the only
    # useful number there is 0: no thread, no process.
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NPROC, threads),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def _drop_privileges(libc: ctypes.CDLL) -> None:
    # struct __user_cap_header {version, pid} and two times {effective, permitted, inheritable}
    libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _become(program: bytes, home: str, secret_out: int, outcome_in: int) -> None:
    """Runs the program as `__main__` and never returns."""
    write, read, leave = os.write, os.read, os._exit
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0)
    refused = _install_guard(home)
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
        _flush()
        write(outcome_in, read(secret_out, 32))
    except BaseException as error:
        walled_off = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EFBIG)
        outcome = b"memory" if isinstance(error, MemoryError) else b"failed"
        write(outcome_in, b"violation" if refused or walled_off else outcome)
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        _flush()
    finally:
        leave(0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            stream.flush()
        except Exception:  # the program may have closed or replaced it
            continue


REFUSED_EVENTS = frozenset(
    "os.fork os.forkpty os.exec os.posix_spawn os.spawn os.system os.kill os.killpg "
    "subprocess.Popen pty.spawn socket.connect socket.bind socket.sendto socket.sendmsg "
    "socket.getaddrinfo socket.gethostbyname socket.gethostbyaddr ctypes.dlopen ctypes.dlsym "
    "resource.setrlimit".split()
)
WRITING_EVENTS = frozenset(
    "os.remove os.rmdir os.mkdir os.rename os.link os.symlink os.truncate os.chmod os.chown "
    "os.lchown os.chflags os.utime os.setxattr os.removexattr sqlite3.connect".split()
)


def _install_guard(home: str) -> list[str]:
    """Refuses what REFUSED_EVENTS names and writes outside `home`; returns the list of refusals."""
    refused: list[str] = []
    realpath, fsdecode = os.path.realpath, os.fsdecode
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def outside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # an open file descriptor
        real = realpath(fsdecode(path))
        return real != home and not real.startswith(home + "/") and real not in DEVICES

    def forbidden(event: str, arguments: tuple) -> bool:
        if event == "open":
            return bool(arguments[2] & writing) and outside(arguments[0])
        if event == "socket.__new__":
            return arguments[1] != AF_UNIX
        if event in WRITING_EVENTS:
            return any(outside(argument) for argument in arguments)
        return event in REFUSED_EVENTS

    def guard(event: str, arguments: tuple) -> None:
        if forbidden(event, arguments):
            refused.append(event)
            raise PermissionError(f"the sandbox does not allow {event} {arguments!r:.200}")

    sys.addaudithook(guard)
    return refused


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
