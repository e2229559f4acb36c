"""Clean stop at SIGTERM, which a scheduler sends before it preempts a machine or ends a job.

While trials train, SIGTERM makes each save a checkpoint before the process exits; otherwise the
process shuts down vLLM and Ray and exits. The exit code is 143 in both cases, and the same command
resumes the run.
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


def exit_at_sigterm() -> None:
    """Raise SystemExit at SIGTERM from now on, so that open contexts shut down what they started.

    Shutting down takes a while; further SIGTERMs are ignored meanwhile.
    """

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(2, b"SIGTERM received: shutting down\n")
        sys.exit(EXIT_CODE)

    signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def save_at_sigterm(stop_file: Path) -> Iterator[None]:
    """Create `stop_file`, which makes the trials save and stop, at a SIGTERM during the body.

    A second SIGTERM raises SystemExit at once.

    Raises:
        SystemExit: SIGTERM was received; raised when the body has ended.
    """
    stop_file.unlink(missing_ok=True)

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            sys.exit(EXIT_CODE)
        stop_file.touch()
        # os.write, since the signal may interrupt a write of the console.
        os.write(2, b"SIGTERM received: saving all trials; a second SIGTERM stops at once\n")

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if stop_file.exists():
        console.note("stopped: run the same command again to resume")
        sys.exit(EXIT_CODE)
