"""Processes that are kept for the next question, one for every thread that asks at the same time.

In: how to start one. Out: one to borrow; it ends with this process, or when a question ended badly.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar


class Worker(Protocol):
    """A process that answers questions."""

    def end(self) -> None:
        """Kill it and wait."""


P = TypeVar("P", bound=Worker)


class ProcessPool(Generic[P]):
    """Safe to use from several threads, and after a fork."""

    def __init__(self, start: Callable[..., P]) -> None:
        self._start = start
        self._idle: list[tuple[tuple[Any, ...], P]] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, *arguments: Any) -> Iterator[P]:
        """One that was started with these arguments; ended if the body raises."""
        worker = self._taken(arguments) or self._start(*arguments)
        try:
            yield worker
        except BaseException:
            worker.end()
            raise
        with self._lock:
            self._idle.append((arguments, worker))

    def _taken(self, arguments: tuple[Any, ...]) -> P | None:
        with self._lock:
            if self._owner != os.getpid():  # the parent's are the parent's
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
