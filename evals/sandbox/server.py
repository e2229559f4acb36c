"""The fork server of the sandbox: a bare interpreter whose children become the programs.

It reads requests from a socket, which is its stdin: a program's home and limits, with descriptors
for its source and output. It answers each with one of `VERDICTS`. The server enters its namespaces
once and never executes a program itself; a fork of it does (`child.py`). Standard library only.
"""

import contextlib
import gc
import math
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from time import monotonic

from evals.sandbox import isolation
from evals.sandbox.child import SECRET_BYTES, Limits, Pipes, Prepared, become

STREAMS = 3  # stdin, stdout, stderr of a program
MAX_MESSAGE_BYTES = 4096  # a path and four numbers; a verdict
VERDICTS = ("passed", "failed", "timeout", "memory", "violation")
BROKEN = "broken"  # instead of a verdict: the program could not be isolated
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class _Running:
    """The server's view of one program: its process, the secret, and the other ends of `Pipes`.

    `secret_out` is readable as long as the child has not read the secret.
    """

    process: int
    limits: Limits
    secret: bytes
    secret_out: int
    outcome_out: int


def serve(temporary: str, *libraries: str) -> None:
    """Run programs one after the other until the client closes its end of the socket.

    The first message to the client is the ID of the user that runs them, who must own each home.

    Args:
        temporary: the folder that contains the homes.
        libraries: folders from which programs may import.
    """
    libc = isolation.load_c_library()
    channel = socket.socket(fileno=os.dup(0))
    _leave_root(temporary)
    user = os.getuid()
    separate = isolation.enter_namespaces(libc)
    if separate and (server := os.fork()):  # the child is the first process of the new namespace
        os.waitpid(server, 0)
        return
    libc.prctl(isolation.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prepared = Prepared(
        libc,
        separate,
        separate and isolation.mount_read_only(libc),
        isolation.FileRules(libc, (sys.base_prefix, sys.prefix, *libraries, *isolation.READABLE)),
        isolation.seccomp_filter(),
        libraries,
    )
    gc.freeze()  # excludes the server's objects from garbage collections in children
    channel.sendall(str(user).encode())
    while True:
        request, streams, *_ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, STREAMS)
        if not request:
            return
        channel.sendall(_run(request.decode(), streams, channel, prepared).encode())


def _run(request: str, streams: list[int], channel: socket.socket, prepared: Prepared) -> str:
    """Run one program and return its verdict."""
    home, cpu, idle, total, memory = request.split("\0")
    limits = Limits(int(cpu), float(idle), float(total), int(memory))
    secret_out, secret_in = os.pipe()
    outcome_out, outcome_in = os.pipe2(os.O_NONBLOCK)
    try:
        if prepared.separate:
            isolation.new_process_namespace(prepared.libc)
        child = os.fork()
    except OSError as error:  # the machine has no process or namespace left: not a verdict
        os.write(streams[-1], str(error).encode())
        for descriptor in (secret_out, secret_in, outcome_out, outcome_in, *streams):
            os.close(descriptor)
        return BROKEN
    if child == 0:
        channel.close()
        os.close(outcome_out)
        os.close(secret_in)
        become(home, limits, streams, Pipes(secret_out, outcome_in), prepared)
    for descriptor in (outcome_in, *streams):
        os.close(descriptor)
    if prepared.separate:
        isolation.own_process_namespace(prepared.libc)
    secret = os.urandom(SECRET_BYTES)  # after the fork, so the child's memory does not contain it
    os.write(secret_in, secret)
    try:
        return _verdict(_Running(child, limits, secret, secret_out, outcome_out), channel)
    finally:
        for descriptor in (secret_out, secret_in, outcome_out):
            os.close(descriptor)


def _verdict(running: _Running, channel: socket.socket) -> str:
    handle = os.pidfd_open(running.process)
    late = _wait(handle, running.limits, channel)
    try:
        outcome = os.read(running.outcome_out, 64)
    except BlockingIOError:  # a process that the program started still holds the other end
        outcome = b"violation"
    os.close(handle)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.process, signal.SIGKILL)  # needed without a process namespace
    _, status, usage = os.wait4(running.process, 0)
    if select.select([running.secret_out], [], [], 0)[0]:  # unread: the program never started
        return BROKEN
    if outcome == running.secret:
        return "passed"
    if outcome in (b"memory", b"violation"):
        return outcome.decode()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    # The limit counts clock ticks, which on a busy machine can run ahead of the exact usage.
    out_of_time = killed and usage.ru_utime + usage.ru_stime >= 0.5 * running.limits.cpu
    return "timeout" if late or out_of_time else "failed"


def _wait(handle: int, limits: Limits, channel: socket.socket) -> bool:
    """Wait for a process to end. Kill it and return True if it is late or the client has gone."""
    started = monotonic()
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    poller.register(channel, select.POLLIN)  # the client sends nothing now: an event is its end
    late = False
    while True:
        events = [descriptor for descriptor, _ in poller.poll(POLL_SECONDS * 1000)]
        if handle in events:
            return late
        elapsed = monotonic() - started
        idle = elapsed - _busy_seconds(handle)
        if events or idle >= limits.idle or elapsed >= limits.total:
            late = True
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        if events:
            poller.unregister(channel)


def _busy_seconds(handle: int) -> float:
    """Return for how long a process's threads ran or waited for a core; infinity if unknown."""
    total = 0
    try:
        # The process ID as /proc counts it, which may belong to another namespace than ours.
        with open(f"/proc/self/fdinfo/{handle}") as file:
            fields = dict(line.split(None, 1) for line in file)
        tasks = f"/proc/{int(fields['Pid:'])}/task"
        for thread in os.listdir(tasks):
            with open(f"{tasks}/{thread}/schedstat") as file:
                ran, waited, _ = file.read().split()
            total += int(ran) + int(waited)
    except (OSError, ValueError):  # the process has just ended, or the kernel has no schedstat
        return math.inf
    return total / 1e9


def _leave_root(temporary: str) -> None:
    """Change from root to the user `nobody`, if that user can read Python's library and a home.

    A library under /root, for example, is readable for root alone.
    """
    if os.geteuid() != 0:
        return
    home = f"{temporary}/sandbox_{os.getpid()}"
    os.mkdir(home, 0o700)
    try:
        os.chown(home, isolation.NOBODY, isolation.NOBODY)
        os.seteuid(isolation.NOBODY)
        usable = os.access(os.__file__, os.R_OK, effective_ids=True)
        usable = usable and os.access(home, os.W_OK | os.X_OK, effective_ids=True)
        os.seteuid(0)
    except OSError:  # root of a container without these rights, or without that user
        return
    finally:
        os.rmdir(home)
    if usable:
        os.setgroups([])
        os.setresgid(isolation.NOBODY, isolation.NOBODY, isolation.NOBODY)
        os.setresuid(isolation.NOBODY, isolation.NOBODY, isolation.NOBODY)
