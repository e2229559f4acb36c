"""Runs a Python program written by a model, and says whether it and its tests reached their end.

In: source text. Out: `SandboxResult`. Every program gets a fresh interpreter (`sandbox_child.py`)
with an empty environment, an empty temporary HOME as its working directory, limits on CPU time,
memory, threads, file size and open files; no network, no other processes, no writes elsewhere, and
no reads but of Python's libraries.

Two kinds of walls. The kernel's (`sandbox_walls.py`): namespaces, Landlock and a filter of system
calls, as many of the three as the machine offers; `isolation()` says which. Python's
(`sandbox_guard.py`): an audit hook in the child. It gives "violation" its meaning, and stands
everywhere; but a program that hunts for gaps in the interpreter can get round it: where no wall of
the kernel stands, use a container with no network. docs/sandbox.md has a table of attacks.

A program passes only by reaching its end: a hook that it can't reach then hands back a secret. The
tests run after the program, with Python's own names as they were before. Both share one
interpreter: as in every harness of this kind, a program that knows how its tests look can deceive
them, for instance by an object that says it equals everything.
"""

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from evals import sandbox_child

PACKAGE_ROOT = str(Path(sandbox_child.__file__).parents[1])
CHILD = (
    f"import sys; sys.path.append({PACKAGE_ROOT!r}); from evals import sandbox_child; "
    "sys.path.pop(); sys.exit(sandbox_child.main(sys.argv[1:]))"
)
MAX_OUTPUT_CHARS = 8_000
IDLE_SECONDS = 10  # for which a program may sleep, beyond its CPU seconds
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
        tempfile.TemporaryDirectory(prefix="sandbox_", ignore_cleanup_errors=True) as home,
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        home = os.path.realpath(home)
        stdin.write(len(source).to_bytes(sandbox_child.LENGTH_BYTES, "big") + source)
        stdin.write(tests.encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        process = subprocess.Popen(
            _command(home, *limits),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=home,
            env=_environment(home),
            start_new_session=True,
        )
        code = _wait(process, limits[2] + 10)
        return SandboxResult(_reason(code, stderr), _head(stdout), _head(stderr))


def isolation() -> tuple[str, ...]:
    """The kernel's walls that stand on this machine, of "namespaces", "landlock", "seccomp"."""
    return tuple(run("import os; print(os.environ['SANDBOX_WALLS'])").stdout.split())


def _command(home: str, *limits: float) -> list[str]:
    # -S, -P: a start in 20 ms, and nothing from the current folder is imported.
    flags = ["-B", "-S", "-s", "-P", "-X", "utf8"]
    libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    return [sys.executable, *flags, "-c", CHILD, home, *map(str, limits), *libraries]


def _environment(home: str) -> dict[str, str]:
    # A fixed hash seed: a verdict that depends on the order of a set stays the same when repeated.
    return {
        "HOME": home,
        "TMPDIR": home,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    # The supervisor keeps the time itself; `seconds` is for the case that it can't. Popen.wait
    # with a timeout would poll every 50 ms, which is as long as most programs take.
    handle = os.pidfd_open(process.pid)
    try:
        poller = select.poll()  # unlike select.select, of descriptors above 1023 too
        poller.register(handle, select.POLLIN)
        ended = poller.poll(1000 * seconds)
    finally:
        os.close(handle)
        with contextlib.suppress(ProcessLookupError):  # the usual case: the group is gone
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode if ended else sandbox_child.EXIT_CODES["timeout"]


def _reason(code: int, stderr: IO[bytes]) -> str:
    if code < 0:  # without namespaces a program may find a way to kill its supervisor
        return "violation"
    for reason, exit_code in sandbox_child.EXIT_CODES.items():
        if code == exit_code:
            return reason
    raise RuntimeError(f"the sandbox itself failed with exit code {code}: {_head(stderr)}")


def _head(file: IO[bytes]) -> str:
    file.seek(0)
    text = file.read(4 * MAX_OUTPUT_CHARS).decode("utf-8", "replace")
    return text if len(text) <= MAX_OUTPUT_CHARS else text[:MAX_OUTPUT_CHARS] + "\n[cut]"
