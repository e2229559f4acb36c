"""Worker processes that are reused, one per thread that needs one at the same time."""

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar


class Worker(Protocol):
    """A process that answers requests."""

    def end(self) -> None:
        """Kill the process and wait for its end."""


W = TypeVar("W", bound=Worker)


class ProcessPool(Generic[W]):
    """Idle workers, kept for the next request; they end with this process.

    Safe to use from several threads, and after a fork.
    """

    def __init__(self, start: Callable[..., W]) -> None:
        """Start workers with `start(*arguments)` when they are first needed."""
        self._start = start
        self._idle: list[tuple[tuple[Any, ...], W]] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, *arguments: Any) -> Iterator[W]:
        """Yield a worker that was started with `arguments`; end it if the body raises."""
        worker = self._take_idle(arguments) or self._start(*arguments)
        try:
            yield worker
        except BaseException:
            worker.end()
            raise
        with self._lock:
            self._idle.append((arguments, worker))

    def _take_idle(self, arguments: tuple[Any, ...]) -> W | None:
        """Return an idle worker started with `arguments`, if any; end those with others."""
        with self._lock:
            if self._owner != os.getpid():  # after a fork: the idle workers belong to the parent
                self._owner, self._idle = os.getpid(), []
            atexit.unregister(self._end_all)
            atexit.register(self._end_all)
            while self._idle:
                known, worker = self._idle.pop()
                if known == arguments:
                    return worker
                worker.end()
        return None

    def _end_all(self) -> None:
        with self._lock:
            if self._owner == os.getpid():
                while self._idle:
                    self._idle.pop()[1].end()
