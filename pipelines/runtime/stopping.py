"""SIGTERM, as a preempted machine or a job's owner sends it: save, then end.

In: the file that tells the workers to stop. Out: exit code 143 once every trial has saved; the same
command goes on from there. Where nothing trains: once vLLM and Ray have ended.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipelines.runtime import console

EXIT_CODE = 128 + signal.SIGTERM


def end_at_sigterm() -> None:
    """From now on, SIGTERM ends the process as an error would, so that what it began ends too.

    That takes a while, in which another one changes nothing.
    """

    def told(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(2, b"told to stop: what was started is ended\n")
        sys.exit(EXIT_CODE)

    signal.signal(signal.SIGTERM, told)


@contextmanager
def stops_at_sigterm(stop_file: Path) -> Iterator[None]:
    """While the body runs, SIGTERM writes `stop_file` first; a second one leaves it at once.

    Raises:
        SystemExit: after the body, where there was one.
    """
    stop_file.unlink(missing_ok=True)

    def told(signum: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            sys.exit(EXIT_CODE)
        stop_file.touch()
        # Not by what may be writing at this moment.
        os.write(2, b"told to stop: the trials save what they have; once more ends them at once\n")

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if stop_file.exists():
        console.note("stopped: the same command goes on from here")
        sys.exit(EXIT_CODE)
