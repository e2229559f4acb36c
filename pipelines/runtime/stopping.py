"""Clean stop at SIGTERM, SIGINT and SIGHUP.

A scheduler sends SIGTERM to end a job, Ctrl-C sends SIGINT, and a terminal that is closed SIGHUP.

While trials train, the first signal makes each save a checkpoint before the process exits;
otherwise the process shuts down vLLM and Ray and exits. The exit code is 143 after SIGTERM, 130
after SIGINT and 129 after SIGHUP, and the same command resumes the run. Under `nohup` SIGHUP is
ignored.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
REPEAT_SECONDS = 1.0
"""A signal that is repeated within this time counts once: `timeout` signals its command and then
the command's process group, and a terminal signals a wrapper that may pass the signal on."""


class Stopped(SystemExit):
    """A signal asked the process to end; `code` is its exit code."""

    code: int

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


@contextmanager
def exit_at_signal() -> Iterator[None]:
    """Raise Stopped at a signal during the body, so that open contexts end what they started.

    They take a while; other signals are ignored meanwhile, but another SIGINT interrupts them.
    """

    def on_signal(signum: int) -> None:
        _print(signum, "shutting down")
        raise _stop(signum)

    before = _set_handlers(on_signal)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def exit_afterwards() -> Iterator[None]:
    """Raise Stopped when the body has ended, if a signal was received meanwhile."""
    received: list[int] = []

    def on_signal(signum: int) -> None:
        if not received:
            _print(signum, "shutting down as soon as Ray has started")
        received.append(signum)

    with _handlers(on_signal):
        try:
            yield
        finally:
            if received:
                raise _stop(received[0])


@contextmanager
def save_at_signal(stop_file: Path) -> Iterator[None]:
    """Create `stop_file`, which makes the trials save and stop, at a signal during the body.

    A second signal raises Stopped at once.

    Raises:
        Stopped: a signal was received; raised when the body has ended.
    """
    stop_file.unlink(missing_ok=True)
    received: list[int] = []

    def on_signal(signum: int) -> None:
        if received:
            _print(signum, "stopping without another checkpoint")
            raise _stop(signum)
        received.append(signum)
        stop_file.touch()
        _print(signum, "saving all trials; a second one stops at once")

    with _handlers(on_signal):
        yield
        if received:
            raise _stop(received[0])


@contextmanager
def _handlers(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Handle signals with `on_signal` in the body; after Stopped the outer handlers stay off."""
    before = _set_handlers(on_signal)
    stopped = False
    try:
        yield
    except Stopped:
        stopped = True
        raise
    finally:
        if not stopped:
            _restore(before)


def _set_handlers(on_signal: Callable[[int], None]) -> dict[signal.Signals, Any]:
    """Handle signals with `on_signal`, repetitions left out; return the handlers before.

    A signal that is ignored, as SIGINT is in a background process of a script and SIGHUP under
    `nohup`, stays so.
    """
    handled: list[float] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        if handled and monotonic() - handled[-1] < REPEAT_SECONDS:
            return
        handled.append(monotonic())
        on_signal(signum)

    heard = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in heard}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def _stop(signum: int) -> Stopped:
    """Return the exception that ends the process; while it propagates, only SIGINT interrupts."""
    stopped = monotonic()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if monotonic() - stopped > REPEAT_SECONDS:
            raise KeyboardInterrupt

    for other in SIGNALS:
        signal.signal(other, interrupt if other == signal.SIGINT else signal.SIG_IGN)
    return Stopped(signum)


def _print(signum: int, text: str) -> None:
    with suppress(OSError):  # the terminal is closed
        # os.write, since the signal may interrupt a write of the console.
        os.write(2, f"{signal.Signals(signum).name} received: {text}\n".encode())
