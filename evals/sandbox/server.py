"""The fork server of the sandbox: a bare interpreter whose children become programs.

In: from a socket, which is stdin, a request a program: its HOME and limits, and the files that hold
it and take its output. Out: a verdict each, of `VERDICTS`. Standard library only. It enters its
namespaces once, and never sees a program: a child of its own (`child.py`) becomes that.
"""

import contextlib
import gc
import math
import os
import select
import signal
import socket
import sys
from time import monotonic

from evals.sandbox import isolation as walls
from evals.sandbox.child import SECRET_BYTES, Limits, Prepared, become

STREAMS = 3  # stdin, stdout, stderr of a program
MAX_MESSAGE_BYTES = 4096  # a path and four numbers; a verdict
VERDICTS = ("passed", "failed", "timeout", "memory", "violation")
BROKEN = "broken"  # instead of a verdict: the walls could not be built
LOOK_EVERY_SECONDS = 0.5


def serve(temporary: str, *libraries: str) -> None:
    """The fork server: runs one program after the other until the other end of stdin closes.

    Says first as which user it runs them: the owner that a HOME needs.

    Args:
        temporary: the folder in which they have their HOMEs.
        libraries: folders from which programs may import.
    """
    libc = walls.c_library()
    channel = socket.socket(fileno=os.dup(0))
    _leave_root(temporary)
    user = os.getuid()
    separate = walls.enter_namespaces(libc)
    if separate and (server := os.fork()):  # the first process of the new namespace
        os.waitpid(server, 0)
        return
    libc.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prepared = Prepared(
        libc,
        separate,
        separate and walls.mount_read_only(libc),
        walls.FileRules(libc, (sys.base_prefix, sys.prefix, *libraries, *walls.READABLE)),
        walls.system_call_filter(),
        libraries,
    )
    gc.freeze()  # what is here already is no garbage of a program
    channel.sendall(str(user).encode())
    while True:
        request, streams, *_ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, STREAMS)
        if not request:
            return
        channel.sendall(_run(request.decode(), streams, channel, prepared).encode())


def _run(request: str, streams: list[int], channel: socket.socket, prepared: Prepared) -> str:
    """Runs one program; returns the verdict."""
    home, cpu, idle, wall, memory = request.split("\0")
    limits = Limits(int(cpu), float(idle), float(wall), int(memory))
    secret_out, secret_in = os.pipe()
    outcome_out, outcome_in = os.pipe2(os.O_NONBLOCK)
    try:
        if prepared.separate:
            walls.new_process_namespace(prepared.libc)
        child = os.fork()
    except OSError as error:  # no room for one more: that is no verdict
        os.write(streams[-1], str(error).encode())
        for descriptor in (secret_out, secret_in, outcome_out, outcome_in, *streams):
            os.close(descriptor)
        return BROKEN
    if child == 0:
        channel.close()
        os.close(outcome_out)
        os.close(secret_in)
        become(home, limits, streams, (secret_out, outcome_in), prepared)
    for descriptor in (outcome_in, *streams):
        os.close(descriptor)
    if prepared.separate:
        walls.own_process_namespace(prepared.libc)
    secret = os.urandom(SECRET_BYTES)  # after the fork: the program's process never has this
    os.write(secret_in, secret)
    try:
        return _verdict(child, limits, channel, (secret, secret_out, outcome_out))
    finally:
        for descriptor in (secret_out, secret_in, outcome_out):
            os.close(descriptor)


def _verdict(
    child: int, limits: Limits, channel: socket.socket, expected: tuple[bytes, int, int]
) -> str:
    secret, secret_out, outcome_out = expected
    handle = os.pidfd_open(child)
    late = _end(handle, limits, channel)
    try:
        outcome = os.read(outcome_out, 64)
    except BlockingIOError:  # something that it started still lives and holds the other end
        outcome = b"violation"
    os.close(handle)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # where no namespace did it
    _, status, usage = os.wait4(child, 0)
    if select.select([secret_out], [], [], 0)[0]:  # still there: the program never began
        return BROKEN
    if outcome == secret:
        return "passed"
    if outcome in (b"memory", b"violation"):
        return outcome.decode()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    # The limit counts ticks of the clock, which on a busy machine can run ahead of the exact usage.
    out_of_time = killed and usage.ru_utime + usage.ru_stime >= 0.5 * limits.cpu
    return "timeout" if late or out_of_time else "failed"


def _end(handle: int, limits: Limits, channel: socket.socket) -> bool:
    """Waits for its end; kills it, and returns True, where it is late or nobody waits any more."""
    started = monotonic()
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    poller.register(channel, select.POLLIN)  # nothing but its end comes now
    late = False
    while True:
        events = [descriptor for descriptor, _ in poller.poll(LOOK_EVERY_SECONDS * 1000)]
        if handle in events:
            return late
        lived = monotonic() - started
        idle = lived - _busy_seconds(handle)
        if events or idle >= limits.idle or lived >= limits.wall:
            late = True
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        if events:
            poller.unregister(channel)


def _busy_seconds(handle: int) -> float:
    """Seconds for which a process ran or waited for a core, all threads; infinite if not known."""
    total = 0
    try:
        with open(f"/proc/self/fdinfo/{handle}") as file:  # /proc may count otherwise than we
            told = dict(line.split(None, 1) for line in file)
        tasks = f"/proc/{int(told['Pid:'])}/task"
        for thread in os.listdir(tasks):
            with open(f"{tasks}/{thread}/schedstat") as file:
                ran, waited, _ = file.read().split()
            total += int(ran) + int(waited)
    except (OSError, ValueError):  # it has just ended, or the kernel keeps no such account
        return math.inf
    return total / 1e9


def _leave_root(temporary: str) -> None:
    """Root becomes nobody, unless nobody may not read Python's own library (as under /root)."""
    if os.geteuid() != 0:
        return
    home = f"{temporary}/sandbox_{os.getpid()}"
    os.mkdir(home, 0o700)
    try:
        os.chown(home, walls.NOBODY, walls.NOBODY)
        os.seteuid(walls.NOBODY)
        usable = os.access(os.__file__, os.R_OK, effective_ids=True)
        usable = usable and os.access(home, os.W_OK | os.X_OK, effective_ids=True)
        os.seteuid(0)
    except OSError:  # a container's root that lacks these rights, or has no such user
        return
    finally:
        os.rmdir(home)
    if usable:
        os.setgroups([])
        os.setresgid(walls.NOBODY, walls.NOBODY, walls.NOBODY)
        os.setresuid(walls.NOBODY, walls.NOBODY, walls.NOBODY)
