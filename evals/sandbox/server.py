"""The fork server of the sandbox: a bare interpreter whose children become the programs.

It reads requests from a socket, which is its stdin: a program's home and limits, with descriptors
for its source and output. It answers each with one of `VERDICTS`. The server enters its namespaces
once and never executes a program itself; a fork of it does (`child.py`). Standard library only.
"""

import contextlib
import copy  # noqa: F401  so that programs and tests find it loaded, as the next ones
import gc
import heapq  # noqa: F401
import math
import os
import select
import signal
import socket
import string  # noqa: F401
import sys
import typing  # noqa: F401
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import clock_gettime, monotonic

from evals.sandbox import isolation, seccomp, wire
from evals.sandbox.child import (
    SECRET_BYTES,
    STAYS,
    Limits,
    Pipes,
    Prepared,
    Task,
    become_program,
    become_tests,
)

STREAMS = 3  # stdin, stdout, stderr of a program
MAX_MESSAGE_BYTES = 4096  # a path, a name and five numbers; a verdict
VERDICTS = ("passed", "failed", "timeout", "memory", "violation")
BROKEN = "broken"  # instead of a verdict: the program could not be isolated
POLL_SECONDS = 0.5
SHORTEST_POLL_SECONDS = 0.02
CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the kind of a process's clock that does not count ticks
Become = Callable[[], None]


@dataclass(frozen=True)
class _Process:
    """A child: its number, and a descriptor that is readable when it has ended."""

    number: int
    handle: int

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all its threads; 0 if it has ended or the kernel has no clock.

        The kernel's own limit counts clock ticks, which can be twice that on a busy machine.
        """
        try:
            return clock_gettime(~self.number << 3 | CPUCLOCK_SCHED)
        except OSError:
            return 0.0

    def kill(self) -> None:
        """Kill it, and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, signal.SIGKILL)  # needed without a process namespace
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def reap(self) -> "_End":
        """Wait for its end, once."""
        _, status, usage = os.wait4(self.number, 0)
        os.close(self.handle)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        failed = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1
        return _End(killed, failed, usage.ru_utime + usage.ru_stime)


@dataclass(frozen=True)
class _End:
    """The end of a process.

    Attributes:
        killed: whether a limit or we killed it.
        failed: whether it could not be isolated.
        cpu: its CPU seconds.
    """

    killed: bool
    failed: bool
    cpu: float


def serve(temporary: str, tests_home: str, *libraries: str) -> Become | None:
    """Run programs one after the other until the client closes its end of the socket.

    In a child, return what the child has to do, so that it does that on an empty stack. The first
    message to the client is the ID of the user that runs programs, who must own each home.

    Args:
        temporary: the folder that contains the homes.
        tests_home: the home of the tests' process.
        libraries: folders from which programs may import.
    """
    os.environ.pop("PYTHONIOENCODING", None)
    libc = isolation.load_c_library()
    channel = socket.socket(fileno=os.dup(0))
    _leave_root(temporary)
    user = os.getuid()
    separate = isolation.enter_namespaces(libc)
    if separate and (server := os.fork()):  # the child is the first process of the new namespace
        os.waitpid(server, 0)
        return None
    libc.prctl(isolation.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prepared = Prepared(
        libc,
        separate,
        separate and isolation.mount_read_only(libc),
        isolation.FileRules(libc, (sys.base_prefix, sys.prefix, *libraries, *isolation.READABLE)),
        seccomp.build(),
        seccomp.build(receives=True),
        libraries,
    )
    wire.warm_up()
    gc.collect()
    gc.freeze()  # excludes the server's objects from garbage collections in children
    channel.sendall(str(user).encode())
    return _Server(channel, tests_home, prepared).serve()


class _Server:
    """The state between programs.

    Attributes:
        tests: the tests' process, if there is one, and the socket to it.
        stays_follows: whether it has yet to say whether it can run other tests.
        killed: a program that was killed after its verdict was clear. The end of its namespaces
            takes milliseconds, in which the client prepares the next program.
    """

    def __init__(self, channel: socket.socket, tests_home: str, prepared: Prepared) -> None:
        self.channel, self.tests_home, self.prepared = channel, tests_home, prepared
        self.tests: tuple[_Process, socket.socket] | None = None
        self.stays_follows = False
        self.killed: _Process | None = None

    def serve(self) -> Become | None:
        """Run programs until the client has gone; in a child, return what it has to do."""
        while True:
            request, streams, *_ = socket.recv_fds(self.channel, MAX_MESSAGE_BYTES, STREAMS)
            if not request:
                return None
            home, name, tested, cpu, idle, total, memory = request.decode().split("\0")
            task = Task(home, name, Limits(int(cpu), float(idle), float(total), int(memory)))
            try:
                answer = (
                    self._run_tested(task, streams) if tested == "1" else self._run(task, streams)
                )
            except OSError as error:  # the machine has no process or namespace left: no verdict
                os.write(streams[-1], str(error).encode())
                answer = BROKEN
            if callable(answer):
                return answer
            _close(*streams)
            self.channel.sendall(answer.encode())
            self._tidy()

    def _tidy(self) -> None:
        """Reap the program that was killed, and end tests that changed their process."""
        if self.killed is not None:
            self.killed.reap()
            self.killed = None
        if self.tests is not None and self.stays_follows:
            self.stays_follows = False
            if self.tests[1].recv(MAX_MESSAGE_BYTES) != STAYS:
                self._end_tests()

    def _run(self, task: Task, streams: list[int]) -> str | Become:
        """Run a program without tests and return its verdict; in a child, what it has to do."""
        started = self._start(task, streams)
        if callable(started):
            return started
        program, outcome = started
        late = self._wait(task.limits, program.handle, [program])
        return outcome.verdict(program, late, task.limits)

    def _run_tested(self, task: Task, streams: list[int]) -> str | Become:
        """Run a program with tests, as `_run`."""
        if self.tests is None:
            become = self._start_tests(task.limits)
            if become is not None:
                return become
        assert self.tests is not None
        tests, to_tests = self.tests
        (source, calls), (answers, target) = os.pipe(), os.pipe()
        try:
            started = self._start(task, streams, source, target, (calls, answers))
        except OSError:
            _close(source, calls, answers, target)
            raise
        if callable(started):
            return started
        program, outcome = started
        message = f"{task.limits.cpu} {task.limits.memory_mb}".encode()
        with contextlib.suppress(ConnectionError):  # it has ended, which the wait below notices
            socket.send_fds(to_tests, [message], [*streams, answers, calls])
        _close(source, calls, answers, target)
        late = self._wait(task.limits, to_tests.fileno(), [tests, program])
        word = b"" if late else to_tests.recv(MAX_MESSAGE_BYTES)
        if not word:
            ended = self._end_tests()
            verdict = outcome.verdict(program, late or ended.killed, task.limits, word)
            return BROKEN if ended.failed else verdict
        self.stays_follows = True
        self.killed = None if word == b"gone" else program
        return outcome.verdict(program, late, task.limits, word)

    def _start(
        self,
        task: Task,
        streams: list[int],
        source: int = -1,
        target: int = -1,
        others: Sequence[int] = (),
    ) -> "tuple[_Process, _Outcome] | Become":
        """Start a program; in the child, return what it has to do.

        Args:
            task: the program.
            streams: its streams.
            source: the descriptor from which the program reads what the tests ask, -1 for none.
            target: the descriptor for its answers, -1 for none.
            others: descriptors that the program must not have.
        """
        os.environ.update(HOME=task.home, TMPDIR=task.home)
        secret_out, secret_in = os.pipe()
        outcome_out, outcome_in = os.pipe2(os.O_NONBLOCK)
        try:
            if self.prepared.separate:
                isolation.new_process_namespace(self.prepared.libc)
            child = os.fork()
        except OSError:
            _close(secret_out, secret_in, outcome_out, outcome_in)
            raise
        if child == 0:
            _close(secret_in, outcome_out, *others)
            self._close()
            pipes = Pipes(outcome_in, secret_out, source, target)
            return become_program(task, streams, pipes, self.prepared)
        os.close(outcome_in)
        if self.prepared.separate:
            isolation.own_process_namespace(self.prepared.libc)
        secret = os.urandom(SECRET_BYTES)  # after the fork, so the child's memory does not have it
        os.write(secret_in, secret)
        outcome = _Outcome(secret, secret_in, secret_out, outcome_out)
        return _Process(child, os.pidfd_open(child)), outcome

    def _start_tests(self, limits: Limits) -> Become | None:
        """Start the tests' process; in it, return what it has to do."""
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        os.environ.update(HOME=self.tests_home, TMPDIR=self.tests_home)
        child = os.fork()
        if child == 0:
            ours.close()
            self.channel.close()
            task = Task(self.tests_home, "__main__", limits)
            return become_tests(task, theirs, self.prepared)
        theirs.close()
        self.tests = _Process(child, os.pidfd_open(child)), ours
        return None

    def _end_tests(self) -> _End:
        assert self.tests is not None
        process, socket_to = self.tests
        self.tests = None
        socket_to.close()
        process.kill()
        return process.reap()

    def _close(self) -> None:
        """Close, in a child, what only the server needs."""
        self.channel.close()
        if self.tests is not None:
            os.close(self.tests[0].handle)
            self.tests[1].close()

    def _wait(self, limits: Limits, heard: int, processes: Sequence[_Process]) -> bool:
        """Wait until `heard` is readable. Return True if that is late or the client has gone.

        It is late once one of the processes has used up its CPU time, or all of them have been idle
        for too long. Time in which any of them runs, or waits for a core or a disk, is not idle.
        """
        started = monotonic()
        before = [_busy_seconds(each.handle) for each in processes[:-1]]  # ran other tests
        cpu_limits = [each.cpu_seconds() + limits.cpu for each in processes[:-1]] + [limits.cpu]
        poller = select.poll()
        poller.register(heard, select.POLLIN)
        poller.register(self.channel, select.POLLIN)  # the client sends nothing now: it has gone
        cpu_left = float(limits.cpu)
        while True:
            seconds = min(POLL_SECONDS, max(SHORTEST_POLL_SECONDS, cpu_left))
            events = [descriptor for descriptor, _ in poller.poll(seconds * 1000)]
            if heard in events:
                return False
            cpu_left = min(
                limit - each.cpu_seconds()
                for each, limit in zip(processes, cpu_limits, strict=True)
            )
            elapsed = monotonic() - started
            busy = sum(_busy_seconds(each.handle) for each in processes) - sum(before)
            idle = elapsed - busy >= limits.idle
            # A wait for a core that still lasts is not counted yet; one for a disk never is.
            idle = idle and not any(_is_busy(each.handle) for each in processes)
            if events or cpu_left <= 0 or idle or elapsed >= limits.total:
                return True


@dataclass(frozen=True)
class _Outcome:
    """The pipes and the secret from which the server tells how a program ended.

    `secret_out` is readable as long as the program's process has not read the secret.
    """

    secret: bytes
    secret_in: int
    secret_out: int
    outcome_out: int

    def verdict(
        self, program: _Process, expired: bool, limits: Limits, tests: bytes | None = None
    ) -> str:
        """Kill the program if it still runs, close its pipes and return the verdict.

        Args:
            program: its process.
            expired: whether it or its tests were late.
            limits: its limits.
            tests: what the tests' process said: None without tests, b"" if it ended, else "gone" if
                the program ended early, or how the tests ended.
        """
        try:
            own = os.read(self.outcome_out, 64)
        except BlockingIOError:  # it runs; or it has ended, and a process that it started has this
            own = b"violation" if tests is None and not expired else b""
        unread = bool(select.select([self.secret_out], [], [], 0)[0])
        program.kill()
        # What tests say that did not end early needs no more of the program.
        clear = tests not in (None, b"", b"gone")
        end = _End(killed=False, failed=False, cpu=0) if clear else program.reap()
        _close(self.secret_in, self.secret_out, self.outcome_out)
        if unread and not expired and tests in (None, b"gone"):
            return BROKEN
        passed = own == self.secret if tests is None else tests == b"passed"
        if passed and not expired:
            return "passed"
        outcome = own if tests in (None, b"", b"gone") else tests
        if outcome in (b"memory", b"violation"):
            return outcome.decode()
        return "timeout" if expired or (end.killed and end.cpu >= limits.cpu) else "failed"


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _busy_seconds(handle: int) -> float:
    """Return for how long a process's threads ran or waited for a core; infinity if unknown."""
    total = 0
    try:
        for schedstat in _threads(handle, "schedstat"):
            ran, waited, _ = schedstat.split()
            total += int(ran) + int(waited)
    except (OSError, ValueError):  # the process has just ended, or the kernel has no schedstat
        return math.inf
    return total / 1e9


def _is_busy(handle: int) -> bool:
    """Return whether a thread of a process runs, or waits for a core or disk; False if unknown."""
    try:
        states = (stat.rpartition(")")[2].split()[0] for stat in _threads(handle, "stat"))
        return any(state in ("R", "D") for state in states)
    except (OSError, ValueError):
        return False


def _threads(handle: int, name: str) -> Iterator[str]:
    """Yield the text of a file in /proc for each thread of a process.

    Raises:
        OSError, ValueError: the process has ended, or the kernel has no such file.
    """
    # The process ID as /proc counts it, which may belong to another namespace than ours.
    with open(f"/proc/self/fdinfo/{handle}") as file:
        fields = dict(line.split(None, 1) for line in file)
    tasks = f"/proc/{int(fields['Pid:'])}/task"
    for thread in os.listdir(tasks):
        with open(f"{tasks}/{thread}/{name}") as file:
            yield file.read()


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
