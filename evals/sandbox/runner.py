"""Runs a Python program written by a model, and says whether it and its tests reached their end.

In: source text. Out: `SandboxResult`. Every program gets a process of its own, forked from a fresh
interpreter that never saw another program (`server.py`), with an empty environment, an
empty temporary HOME as its working directory, limits on CPU time, memory, threads, file size and
open files; no network, no other processes, no writes elsewhere, and no reads but of Python's
libraries.

Two kinds of walls. The kernel's (`isolation.py`): namespaces, Landlock and a filter of system
calls, as many of the three as the machine offers; `isolation()` says which. Python's
(`guard.py`): an audit hook in the child. It gives "violation" its meaning, and stands
everywhere; but a program that hunts for gaps in the interpreter can get round it: where no wall of
the kernel stands, use a container with no network. docs/reference/sandbox.md has a table of attacks.

A program passes only by reaching its end: a hook that it can't reach then hands back a secret. The
tests run after the program, with Python's own names as they were before. Both share one
interpreter: as in every harness of this kind, a program that knows how its tests look can deceive
them, for instance by an object that says it equals everything.
"""

import math
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from evals.process_pool import ProcessPool
from evals.sandbox import child
from evals.sandbox import server as sandbox_server

PACKAGE_ROOT = str(Path(child.__file__).parents[2])
SERVER = (
    f"import sys; sys.path.append({PACKAGE_ROOT!r}); from evals.sandbox import server; "
    "sys.path.pop(); server.serve(*sys.argv[1:])"
)
MAX_OUTPUT_CHARS = 8_000
IDLE_SECONDS = 10  # for which a program may sleep, beyond its CPU seconds
# A fixed hash seed: a verdict that depends on the order of a set stays the same when repeated.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
STARVED = 20  # times its CPU seconds that a program may wait for a core on a busy machine


@dataclass(frozen=True)
class SandboxResult:
    """The verdict on one program.

    Attributes:
        reason: "passed", "failed" (exception, exit or crash), "timeout" (CPU time, or asleep),
            "memory" (MemoryError) or "violation" (it failed after something forbidden).
        stdout: what it printed, cut after `MAX_OUTPUT_CHARS`.
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
    program: str, *, tests: str = "", cpu_seconds: float = 5.0, memory_mb: int = 512
) -> SandboxResult:
    """Runs `program` as `__main__`, then `tests`, and waits. Safe to call from several threads.

    Args:
        program: Python source text.
        tests: more of it, which finds the program's names, and Python's own as they were before.
        cpu_seconds: limit on CPU time of both, rounded up to whole seconds. Time in which the
            program waits for a core does not count; time asleep has a limit of `IDLE_SECONDS` more.
        memory_mb: limit on the address space, in MiB.

    Raises:
        ValueError: a limit is not positive.
        RuntimeError: the sandbox itself failed; never a verdict on the program.
    """
    if cpu_seconds <= 0 or memory_mb < 64:
        raise ValueError(
            f"cpu_seconds={cpu_seconds}, memory_mb={memory_mb}: "
            "give a positive time and at least 64 MiB, which the interpreter needs"
        )
    cpu_limit = math.ceil(cpu_seconds)
    limits = (cpu_limit, cpu_limit + IDLE_SECONDS, STARVED * cpu_limit + IDLE_SECONDS, memory_mb)
    source = program.encode("utf-8", "surrogatepass")
    with (
        tempfile.TemporaryFile() as stdin,  # buffered: it writes all, or raises
        tempfile.TemporaryFile(buffering=0) as stdout,
        tempfile.TemporaryFile(buffering=0) as stderr,
    ):
        head = len(source).to_bytes(child.LENGTH_BYTES, "big")
        stdin.write(head + source + tests.encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        reason = _verdict(limits, (stdin, stdout, stderr))
        if reason not in sandbox_server.VERDICTS:
            raise RuntimeError(f"the sandbox itself failed: {_head(stderr)}")
        return SandboxResult(reason, _head(stdout), _head(stderr))


def isolation() -> tuple[str, ...]:
    """The kernel's walls that stand on this machine, of "namespaces", "landlock", "seccomp"."""
    return tuple(run("import os; print(os.environ['SANDBOX_WALLS'])").stdout.split())


class _Server:
    """A fork server, of which the program is a child."""

    def __init__(self, *command: str) -> None:
        self._channel, far = socket.socketpair()
        with far, tempfile.TemporaryFile() as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=far.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
            )
            far.close()
            user = self._channel.recv(sandbox_server.MAX_MESSAGE_BYTES)
            if not user:
                self.end()
                raise RuntimeError(f"the sandbox itself failed: {_head(stderr)}")
            self._user = int(user)

    def run(self, home: str, limits: Sequence[float], streams: Sequence[IO[bytes]]) -> str:
        """The verdict on a program.

        Raises:
            EOFError: the server has ended.
            TimeoutError: it kept no time.
        """
        os.chown(home, self._user, -1)
        request = "\0".join(map(str, (home, *limits))).encode()
        self._channel.settimeout(limits[2] + 10)  # the server keeps the time itself
        socket.send_fds(self._channel, [request], [file.fileno() for file in streams])
        answer = self._channel.recv(sandbox_server.MAX_MESSAGE_BYTES)
        if not answer:
            raise EOFError
        return answer.decode()

    def end(self) -> None:
        self._channel.close()
        self._process.kill()  # what it has started dies with its parent
        self._process.wait()


_servers = ProcessPool(_Server)


def _verdict(limits: Sequence[float], streams: Sequence[IO[bytes]]) -> str:
    # -S, -P: a start in 20 ms, and nothing from the current folder is imported.
    flags = ["-B", "-S", "-s", "-P", "-X", "utf8"]
    libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    folder = os.path.realpath(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(
        prefix="sandbox_", dir=folder, ignore_cleanup_errors=True
    ) as home:
        try:
            command = (sys.executable, *flags, "-c", SERVER, folder, *libraries)
            with _servers.borrow(*command) as server:
                return server.run(home, limits, streams)
        except TimeoutError:
            return "timeout"
        except (EOFError, ConnectionError):  # without any wall a program may find a way to kill it
            return "violation"


def _head(file: IO[bytes]) -> str:
    file.seek(0)
    text = file.read(4 * MAX_OUTPUT_CHARS).decode("utf-8", "replace")
    return text if len(text) <= MAX_OUTPUT_CHARS else text[:MAX_OUTPUT_CHARS] + "\n[cut]"
