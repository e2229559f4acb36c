"""Symbolic equality of two answers by math-verify, in worker processes with limits.

math-verify limits its time with signals, which fail in threads and Ray actors and cannot stop a
computation inside C, such as 9^(9^9). Here it runs in a pool of worker processes, one per thread
that asks at the same time, and the kernel limits their CPU time and memory. CPU time is limited
rather than elapsed time, so that verdicts do not depend on the load of the machine.
"""

import logging
import math
import os
import resource
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from evals.process_pool import ProcessPool

CPU_SECONDS = 5
WALL_SECONDS = 120.0
MEMORY_BYTES = 4 << 30


def equal(gold: str, prediction: str) -> bool:
    """Return whether `prediction` equals `gold`; False if that exceeds the limits.

    Not symmetric, following math-verify: the prediction "x=5" equals the gold answer "5".

    Raises:
        RuntimeError: a worker process does not start, for example without math-verify.
    """
    try:
        with _workers.borrow() as worker:
            return worker.ask(gold, prediction)
    except (EOFError, ConnectionError, TimeoutError):
        return False  # the expression exceeded the limits or crashed the worker


class _Worker:
    def __init__(self) -> None:
        self.connection, far = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        serve = f"from evals.grading import symbolic; symbolic._serve({far.fileno()})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", serve],
            pass_fds=(far.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        far.close()
        try:
            self._receive()
        except (EOFError, ConnectionError, TimeoutError) as error:
            self.end()
            raise RuntimeError(
                "the process for math-verify did not start; its error output is above, and "
                "\"python -c 'import math_verify'\" should reproduce it"
            ) from error

    def ask(self, gold: str, prediction: str) -> bool:
        """Return the verdict of the worker process."""
        self.connection.send((gold, prediction, CPU_SECONDS))
        return self._receive()

    def _receive(self) -> bool:
        if not self.connection.poll(WALL_SECONDS):
            raise TimeoutError
        return self.connection.recv()

    def end(self) -> None:
        """Kill the process and wait for it."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


_workers = ProcessPool(_Worker)


def _serve(descriptor: int) -> None:
    """Answer questions in the worker process until the other end closes."""
    logging.disable(logging.CRITICAL)  # math-verify logs every expression that it cannot parse
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptor)
    connection.send(True)
    while True:
        try:
            gold, prediction, cpu_seconds = connection.recv()
        except EOFError:
            return
        _allow_cpu_time(cpu_seconds)
        try:
            forms = [
                parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, prediction)
            ]
            verdict = bool(verify(*forms, timeout_seconds=None, allow_set_relation_comp=True))
        except Exception:  # sympy may raise anything on a model's text, which is then wrong
            verdict = False
        connection.send(verdict)


def _allow_cpu_time(seconds: int) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
