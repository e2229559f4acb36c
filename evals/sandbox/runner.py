"""Runs a Python program written by a model and returns a verdict on it.

Every program has its own process, forked from an interpreter that never executed another program
(`server.py`). Its environment is empty but for a few fixed variables, its working directory is an
empty temporary home, and CPU time, memory, threads, file size and open files are limited. Access to
the network, to other processes and to files other than the home and Python's libraries is refused.

Two mechanisms refuse it, and neither is complete:

- The kernel's isolation layers (`isolation.py`). `isolation_layers()` lists those that this machine
  offers.
- The Python guard (`guard.py`), an audit hook in the program's process, on every machine. Its
  refusals are the verdict "violation". A program that looks for gaps in the interpreter can get
  around it. On a machine without kernel layers, run the sandbox in a container without a network.

docs/reference/sandbox.md has a table of attacks, and of gaps.

Tests run in an interpreter of their own and call the program's functions over pipes (`wire.py`).
Only their process can say that the program passed. A program without tests passes if it reaches its
end: a hook out of its reach then sends back a secret.
"""

import functools
import math
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any

from evals.process_pool import ProcessPool
from evals.sandbox import child, isolation
from evals.sandbox.server import MAX_MESSAGE_BYTES, VERDICTS

MEMORY_MB = 4096  # as EvalPlus; numerical libraries and threads reserve much of it without use

PACKAGE_ROOT = str(Path(child.__file__).parents[2])
SERVER = (
    f"import sys; sys.path.append({PACKAGE_ROOT!r}); from evals.sandbox import server; "
    "sys.path.pop(); become = server.serve(*sys.argv[1:]); become and become()"
)
MAX_OUTPUT_CHARS = 8_000
IDLE_SECONDS = 10  # that a program may sleep, beyond its CPU seconds
STARVED_FACTOR = 20  # limit on elapsed time, in multiples of the CPU seconds
# The hash seed is fixed so that a verdict that depends on the order of a set is repeatable.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONIOENCODING": "utf-8:backslashreplace",  # a surrogate in the output is no error
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class SandboxResult:
    """The verdict on one program.

    Attributes:
        reason: "passed", "failed" (exception, exit or crash), "timeout" (CPU time or sleep),
            "memory" (MemoryError) or "violation" (it failed after a refused action).
        stdout: its output, cut after `MAX_OUTPUT_CHARS`.
        stderr: its error output and traceback, cut the same way.
    """

    reason: str
    stdout: str = ""
    stderr: str = ""

    @property
    def passed(self) -> bool:
        """True if the program ran to its end without an exception."""
        return self.reason == "passed"


def run(
    program: str,
    *,
    tests: str = "",
    cpu_seconds: float = 5.0,
    memory_mb: int = MEMORY_MB,
    name: str = "__main__",
) -> SandboxResult:
    """Run `program`, then `tests` in another interpreter. Safe to call from several threads.

    Args:
        program: Python source text.
        tests: Python source text that sees the program's names. Plain data is copied between the
            two interpreters; other objects of the program are called where they are.
        cpu_seconds: limit on the CPU time of each, rounded up to whole seconds. Waiting for a core
            does not count; the program may sleep for `IDLE_SECONDS` more.
        memory_mb: limit on the address space of each, in MiB.
        name: the program's `__name__`.

    Raises:
        ValueError: a limit is too low.
        RuntimeError: the sandbox itself failed, which says nothing about the program.
    """
    if cpu_seconds <= 0 or memory_mb < 64:
        raise ValueError(
            f"cpu_seconds={cpu_seconds}, memory_mb={memory_mb}: "
            "give a positive time and at least 64 MiB, which the interpreter needs"
        )
    cpu_limit = math.ceil(cpu_seconds)
    total_limit = STARVED_FACTOR * cpu_limit + IDLE_SECONDS
    limits = child.Limits(cpu_limit, cpu_limit + IDLE_SECONDS, total_limit, memory_mb)
    source = program.encode("utf-8", "surrogatepass")
    with (
        tempfile.TemporaryFile() as stdin,  # buffered: writes everything or raises
        tempfile.TemporaryFile(buffering=0) as stdout,
        tempfile.TemporaryFile(buffering=0) as stderr,
    ):
        head = len(source).to_bytes(child.LENGTH_BYTES, "big")
        stdin.write(head + source + tests.encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        reason = _verdict(name, bool(tests.strip()), limits, (stdin, stdout, stderr))
        if reason not in VERDICTS:
            raise RuntimeError(f"the sandbox itself failed: {_head(stderr)}")
        return SandboxResult(reason, _head(stdout), _head(stderr))


def isolation_layers() -> tuple[str, ...]:
    """Return those of "bubblewrap", "namespaces", "landlock" and "seccomp" that are active."""
    front = ("bubblewrap",) if _front(os.path.realpath(tempfile.gettempdir())) else ()
    return front + tuple(run("import os; print(os.environ['SANDBOX_LAYERS'])").stdout.split())


class _Server:
    """Client of a fork server process.

    Programs have the same home one after the other, as long as each leaves it as it was.
    """

    def __init__(self, program: str, folder: str, *libraries: str) -> None:
        self._folder = folder
        self._tests_home = self._new_folder()
        self._home = self._new_folder()
        # -S and -P: the interpreter starts in 20 ms and imports nothing from the current folder.
        flags = ["-B", "-S", "-s", "-P", "-X", "utf8"]
        arguments = (folder, self._tests_home.name, *libraries)
        self._channel, far = socket.socketpair()
        with far, tempfile.TemporaryFile() as stderr:
            self._process = subprocess.Popen(
                (*_front(folder), sys.executable, *flags, "-c", program, *arguments),
                stdin=far.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
                **_user(_front(folder)),
            )
            far.close()
            user = self._channel.recv(MAX_MESSAGE_BYTES)
            if not user:
                self.end()
                raise RuntimeError(f"the sandbox itself failed: {_head(stderr)}")
            self._user = int(user)
            for home in (self._tests_home, self._home):
                os.chown(home.name, self._user, -1)

    def _new_folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(
            prefix="sandbox_", dir=self._folder, ignore_cleanup_errors=True
        )

    def run(
        self, name: str, tested: bool, limits: child.Limits, streams: Sequence[IO[bytes]]
    ) -> str:
        """Run a program, with its tests if it is `tested`, and return its verdict.

        Raises:
            EOFError: the server has ended.
            TimeoutError: the server did not enforce the limits.
        """
        fields = (self._home.name, name, int(tested), *astuple(limits))
        request = "\0".join(map(str, fields)).encode()
        self._channel.settimeout(limits.total + 10)  # the server enforces the limits itself
        socket.send_fds(self._channel, [request], [file.fileno() for file in streams])
        answer = self._channel.recv(MAX_MESSAGE_BYTES)
        if not answer:
            raise EOFError
        if os.listdir(self._home.name) or os.stat(self._home.name).st_mode & 0o777 != 0o700:
            self._home.cleanup()
            self._home = self._new_folder()
            os.chown(self._home.name, self._user, -1)
        return answer.decode()

    def end(self) -> None:
        """Kill the server and its programs, and wait."""
        self._channel.close()
        self._process.kill()  # its children die with it
        self._process.wait()
        self._tests_home.cleanup()
        self._home.cleanup()


_servers = ProcessPool(_Server)


@functools.lru_cache(1)
def _front(folder: str) -> tuple[str, ...]:
    """Return the command of bubblewrap in front of the server, () if it is missing or fails.

    It adds namespaces also where only its own set-user-ID program may create them.

    Args:
        folder: the folder of the homes, the only one that can be changed.
    """
    program = shutil.which("bwrap")
    if program is None:
        return ()
    command: tuple[str, ...] = (
        program,
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/",
        "/",
    )
    command += ("--dev-bind", "/dev", "/dev", "--proc", "/proc")
    command += ("--bind", folder, folder, "--")
    trial = [*command, sys.executable, "-S", "-c", ""]
    try:
        done = subprocess.run(
            trial, cwd="/", env=ENVIRONMENT, capture_output=True, timeout=30, **_user(command)
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return command if done.returncode == 0 else ()


def _user(front: tuple[str, ...]) -> dict[str, Any]:
    """Return arguments of Popen that leave root before bubblewrap, in which no user can change."""
    if not front or os.geteuid() != 0:
        return {}
    return {"user": isolation.NOBODY, "group": isolation.NOBODY, "extra_groups": []}


def _verdict(name: str, tested: bool, limits: child.Limits, streams: Sequence[IO[bytes]]) -> str:
    folder = os.path.realpath(tempfile.gettempdir())
    try:
        with _servers.borrow(SERVER, folder, *_libraries()) as server:
            return server.run(name, tested, limits, streams)
    except TimeoutError:
        return "timeout"
    # Without kernel layers a program may find a way to kill the server.
    except (EOFError, ConnectionError):
        return "violation"


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Return the folders from which programs may import."""
    return tuple(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))


def _head(file: IO[bytes]) -> str:
    file.seek(0)
    text = file.read(4 * MAX_OUTPUT_CHARS).decode("utf-8", "replace")
    return text if len(text) <= MAX_OUTPUT_CHARS else text[:MAX_OUTPUT_CHARS] + "\n[cut]"
