"""How entries get through to an MLflow store that may be away: what its errors mean.

In: entries of an outbox. Out: calls of `Store`; `Away` for what may succeed later, as it is for
anything else.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipelines.tracking.mlflow_store import METRICS, Store
from pipelines.tracking.outbox import Away, Entry, without_login

_TIMEOUT, _RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_NO_LINKS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_SECONDS, _UPLOAD_SECONDS = "10", "120"  # a store may take long to put a file away
_LATE_SECONDS = 1.0  # until what it still had of ours is done, once a store answers again
_STUCK_SECONDS = 900  # for an entry that fails in a store that answers
_LONGEST = 160  # of a reason, in characters


class Sender:
    """Sends entries to a store; `send` is for one thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._failed = False
        self._stuck_since: float | None = None

    def send(self, entries: list[Entry]) -> int:
        """Carry out the first entry, or several at once; returns how many (see `outbox.Send`)."""
        answers = False
        try:
            if self._failed:
                self.store.check()
                answers = True
                time.sleep(_LATE_SECONDS)  # a run whose making timed out must be found, not remade
            count = self._first(entries)
        except Exception as error:
            if not _may_pass(error) or self._is_stuck(answers and "is locked" not in str(error)):
                self._failed, self._stuck_since = False, None
                raise
            self._failed = True
            raise Away(_short(error)) from error
        self._failed, self._stuck_since = False, None
        return count

    def _first(self, entries: list[Entry]) -> int:
        if entries[0]["do"] != "log":
            with _patience(entries[0]["do"] in ("keep", "register")):
                self.store.act(entries[0])
            return 1
        batch = _same_run(entries)
        try:
            self.store.log(batch)
        except Exception as error:
            if len(batch) == 1 or _may_pass(error):
                raise
            return self._first(batch[:1])  # whether it was this one
        return len(batch)

    def _is_stuck(self, fails: bool) -> bool:
        """Whether an entry has failed for long although the store answers."""
        if not fails:
            self._stuck_since = None
            return False
        self._stuck_since = self._stuck_since or time.monotonic()
        return time.monotonic() - self._stuck_since >= _STUCK_SECONDS


@contextmanager
def quiet_client() -> Iterator[None]:
    """Let MLflow's client give up soon and print nothing while the body runs.

    It takes that from the environment alone. What the user has set there stays.
    """
    ours = {_TIMEOUT: _SECONDS, _RETRIES: "0", _NO_LINKS: "true"}
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _patience(wanted: bool) -> Iterator[None]:
    ours = wanted and os.environ.get(_TIMEOUT) == _SECONDS
    if ours:
        os.environ[_TIMEOUT] = _UPLOAD_SECONDS
    try:
        yield
    finally:
        if ours and _TIMEOUT in os.environ:  # the run may have ended meanwhile
            os.environ[_TIMEOUT] = _SECONDS


def _same_run(entries: Iterable[Entry]) -> list[Entry]:
    """The first entries, all metrics of one run, no more than a store takes at once."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        other = batch and (entry["do"], entry["trial"]) != ("log", batch[0]["trial"])
        if other or (batch and size + len(entry["metrics"]) > METRICS):
            break
        batch.append(entry)
        size += len(entry["metrics"])
    return batch


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later, if need be after somebody set things right."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, HTTPError) and error.response is not None:
        code = error.response.status_code
    elif isinstance(error, MlflowException):
        if error.error_code == "ENDPOINT_NOT_FOUND":  # something else answers at this address
            return True
        code = error.get_http_status_code()
    else:
        passing = Away, RequestException, OperationalError, ConnectionError, TimeoutError
        return isinstance(error, passing)
    return code >= 500 or code in (401, 403, 408, 429)


def _short(error: Exception) -> str:
    """The cause, which an error of HTTP wraps several times; or the first line of its text."""
    cause = re.search(r"\[Errno[^\"')]*|timed out|too many \d+ error responses", str(error))
    text = str(error).strip().partition("\n")[0]
    return cause[0] if cause else without_login(text)[:_LONGEST]
