"""Delivery to MLflow in the background: training and scoring never wait for the store.

Requests wait in memory, and one thread sends them in order. They are not written to disk: whatever
is lost with the process, `Tracker.reconcile` and the same command again derive from the run's
directory. A request whose answer was lost is sent again, so it must be repeatable.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from pipelines.runtime import console
from pipelines.tracking.mlflow_store import Store, Unavailable

_TIMEOUT, _RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_NO_LINKS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_SECONDS, _UPLOAD_SECONDS = "10", "120"  # a store may take long to file an artifact
_PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one repeats
_LATE_SECONDS = 1.0  # for a store that answers again to finish what it received before
_MAX_TRIES = 100  # of a request that fails while the store answers; some 15 minutes
_MAX_BATCH = 100  # reports per call
_MAX_WAITING = 10_000  # requests in memory
_MAX_REASON = 160  # characters


@dataclass(frozen=True)
class Request:
    """A call of one of the store's methods."""

    method: Callable[..., None]
    trial: str
    arguments: tuple[Any, ...]


class Delivery:
    """The requests of one run.

    Args:
        store: its methods are called in the background.
        service: names the store in messages.
        log: file to which a line per refused request is appended.
    """

    def __init__(self, store: Store, service: str, log: Path) -> None:
        self.service = service
        self._store, self._log = store, log
        self._changed = Condition()
        self._queue: deque[Request] = deque()
        self._in_flight = 0
        self._unavailable_since: float | None = None
        self._closed = False
        self._reasons: set[str] = set()
        self._thread = Thread(target=self._run, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start to send."""
        self._thread.start()

    def put(self, method: Callable[..., None], trial: str, *arguments: Any) -> None:
        """Queue a call of one of the store's methods.

        While very many requests wait, reports are dropped: `Tracker.reconcile` sends them.
        """
        with self._changed:
            if method != self._store.log or len(self._queue) < _MAX_WAITING:
                self._queue.append(Request(method, trial, arguments))
                self._changed.notify_all()

    def wait(self, patience: float) -> int:
        """Wait until nothing is queued, or the store has been unavailable for `patience` seconds.

        As long as the store takes requests, this waits however many there are.

        Returns:
            The number of requests that still wait.
        """
        began = time.monotonic()
        with self._changed:
            while (waiting := len(self._queue) + self._in_flight) and self._thread.is_alive():
                left = 1.0
                if self._unavailable_since is not None:
                    left = max(began, self._unavailable_since) + patience - time.monotonic()
                    if left <= 0:
                        break
                self._changed.wait(min(left, 1.0))
            return waiting

    def close(self, patience: float) -> int:
        """Wait as `wait` does, then stop sending; return the number of requests left unsent."""
        waiting = self.wait(patience)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._unavailable_since is None:  # otherwise a request may hang until the process ends
            self._thread.join()
        return waiting

    def _run(self) -> None:
        while batch := self._next_batch():
            self._send(batch)

    def _next_batch(self) -> list[Request]:
        """Return the next request, or the next reports of one trial; nothing when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            if self._closed:
                return []
            first = self._queue.popleft()
            batch = [first]
            while self._queue and first.method == self._store.log and len(batch) < _MAX_BATCH:
                if (self._queue[0].method, self._queue[0].trial) != (first.method, first.trial):
                    break
                batch.append(self._queue.popleft())
            self._in_flight = len(batch)
            return batch

    def _send(self, batch: Sequence[Request]) -> None:
        """Send a batch until the store has taken or refused it, or this is closed."""
        tries = 0
        for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
            try:
                if self._unavailable_since is not None:
                    self._store.check()
                    tries += 1
                    time.sleep(_LATE_SECONDS)  # to find a run whose creation timed out
                self._call(batch)
            except Exception as error:
                if not _may_succeed_later(error) or tries >= _MAX_TRIES:
                    self._refused(batch, error)
                    return
                self._failed(error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, pause):
                        return
            else:
                self._finished(len(batch))
                return

    def _call(self, batch: Sequence[Request]) -> None:
        method = batch[0].method
        if os.environ.get(_TIMEOUT) in (_SECONDS, _UPLOAD_SECONDS):  # ours, not the user's
            uploads = method in (self._store.log_artifacts, self._store.register)
            os.environ[_TIMEOUT] = _UPLOAD_SECONDS if uploads else _SECONDS
        method(batch[0].trial, *chain.from_iterable(each.arguments for each in batch))

    def _failed(self, error: Exception) -> None:
        with self._changed:
            first = self._unavailable_since is None
            if first:
                self._unavailable_since = time.monotonic()
            self._changed.notify_all()
        if first:
            console.note(
                f"{self.service} is unavailable ({_reason(error)}): the run continues, and sends "
                "everything when it is available again"
            )

    def _finished(self, count: int) -> None:
        with self._changed:
            returned = self._unavailable_since is not None
            self._unavailable_since = None
            self._in_flight -= count
            self._changed.notify_all()
        if returned:
            console.note(f"{self.service} is available again")

    def _refused(self, batch: Sequence[Request], error: Exception) -> None:
        """Log the request that the store refuses; of several, find out which ones these are."""
        if len(batch) > 1:
            for request in batch:
                self._send([request])
            return
        [request] = batch
        what = f"{request.method.__name__} of {request.trial or 'the sweep'}"
        reason = without_login(" ".join(f"{type(error).__name__}: {error}".split()))
        arguments = without_login(str(request.arguments))[:_MAX_REASON]
        with suppress(OSError), self._log.open("a") as file:  # such as a full disk
            file.write(f"{self.service} refused {what} {arguments}: {reason}\n")
        if reason not in self._reasons:  # once per cause: a deleted run refuses hundreds of steps
            self._reasons.add(reason)
            console.note(f"{self.service} refused {what} ({reason[:_MAX_REASON]}); see {self._log}")
        self._finished(1)


@contextmanager
def quiet_client() -> Iterator[None]:
    """Let MLflow's client give up soon and print nothing while the body runs.

    The client takes these settings from the environment alone. What the user has set there stays.
    """
    ours = {_TIMEOUT: _SECONDS, _RETRIES: "0", _NO_LINKS: "true"}
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def without_login(text: str) -> str:
    """Return a text with addresses without the user name and password in them."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _may_succeed_later(error: Exception) -> bool:
    """Return whether the same request can succeed later, perhaps after somebody's repair."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, HTTPError) and error.response is not None:
        code = error.response.status_code
    elif isinstance(error, MlflowException):
        if error.error_code == "ENDPOINT_NOT_FOUND":  # another service answers at this address
            return True
        code = error.get_http_status_code()
    else:
        temporary = Unavailable, RequestException, OperationalError, ConnectionError, TimeoutError
        return isinstance(error, temporary)
    return code >= 500 or code in (401, 403, 408, 429)


def _reason(error: Exception) -> str:
    """Return the cause, which an HTTP error wraps several times, or the text's first line."""
    cause = re.search(r"\[Errno[^\"')]*|timed out|too many \d+ error responses", str(error))
    text = str(error).strip().partition("\n")[0]
    return cause[0] if cause else without_login(text)[:_MAX_REASON]
