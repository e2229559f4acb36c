"""Background delivery, with a store that lives in memory and can be made to fail."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from requests import HTTPError, Response

from pipelines.tracking import delivery
from pipelines.tracking.delivery import Delivery, quiet_client
from pipelines.tracking.mlflow_store import Unavailable

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
LOCKED = "(sqlite3.OperationalError) database is locked\n[SQL: INSERT INTO metrics ...]"


class MemoryStore:
    """Holds what it was called with; `fails` may raise for a value, `answers` for a check."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[Any]]] = []
        self.timeouts: list[str | None] = []
        self.fails: Callable[[Any], None] = lambda value: None
        self.checked, self.tried = 0, Event()
        self.available = True

    def check(self) -> None:
        self.checked += 1
        self.tried.set()
        if not self.available:
            raise ConnectionError("[Errno 111] Connection refused')")

    def log(self, trial: str, *values: Any) -> None:
        self._take("log", trial, values)

    def tag(self, trial: str, *values: Any) -> None:
        self._take("tag", trial, values)

    def register(self, trial: str, *values: Any) -> None:
        self._take("register", trial, values)

    def log_artifacts(self, trial: str, *values: Any) -> None:
        self._take("log_artifacts", trial, values)

    def _take(self, method: str, trial: str, values: Any) -> None:
        self.timeouts.append(os.environ.get(TIMEOUT))
        self.check()
        for value in values:
            self.fails(value)
        self.calls.append((method, trial, list(values)))

    @property
    def logged(self) -> list[Any]:
        """Every value of every report, in order."""
        return [value for method, _, values in self.calls if method == "log" for value in values]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_PAUSES", (0.001,))
    monkeypatch.setattr(delivery, "_LATE_SECONDS", 0.0)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines on the terminal."""
    lines: list[str] = []
    monkeypatch.setattr(delivery.console, "note", lines.append)
    return lines


@pytest.fixture
def store() -> Any:
    return MemoryStore()


@pytest.fixture
def sender(store: Any, tmp_path: Path, notes: list[str]) -> Delivery:
    return Delivery(store, "the store", tmp_path / "driver.log")


def test_requests_arrive_in_order_and_reports_of_a_trial_together(
    store: Any, sender: Delivery, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_MAX_BATCH", 3)
    for value in range(5):
        sender.put(store.log, "a", value)
    sender.put(store.log, "b", 5)
    sender.put(store.tag, "b", "key", "value")
    sender.put(store.tag, "b", "key", "value")
    sender.put(store.log, "b", 6)
    sender.start()
    assert sender.close(0) == 0
    tag = ("tag", "b", ["key", "value"])
    assert store.calls == [
        ("log", "a", [0, 1, 2]),
        ("log", "a", [3, 4]),
        ("log", "b", [5]),
        tag,
        tag,
        ("log", "b", [6]),
    ]
    assert notes == [] and store.checked == len(store.calls), "a store that works is not asked"


def test_an_unavailable_store_is_reported_once_and_gets_everything_later(
    store: Any, sender: Delivery, notes: list[str]
) -> None:
    store.available = False
    sender.start()
    sender.put(store.log, "a", 0)
    assert sender.wait(0) == 1, "wait does not wait for an unavailable store"
    for value in (1, 2, 3):
        store.tried.clear()
        sender.put(store.log, "a", value)
        assert store.tried.wait(30), "the store is tried again"
    assert store.calls == [] and len(notes) == 1
    store.available = True
    assert sender.close(60) == 0 and store.logged == [0, 1, 2, 3]
    unavailable, available = notes
    assert "the store is unavailable ([Errno 111] Connection refused)" in unavailable
    assert available == "the store is available again"


def test_a_store_that_stays_unavailable_does_not_hold_up_the_end(
    store: Any, sender: Delivery
) -> None:
    store.available = False
    sender.start()
    for value in range(3):
        sender.put(store.log, "a", value)
    assert sender.close(0.05) == 3


def test_the_queue_is_bounded_by_dropping_reports(
    store: Any, sender: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_MAX_WAITING", 10)
    for value in range(100):
        sender.put(store.log, "a", value)
    for value in range(20):
        sender.put(store.tag, "a", value)
    sender.start()
    assert sender.close(0) == 0
    assert store.logged == list(range(10))
    assert [values for method, _, values in store.calls if method == "tag"] == [
        [value] for value in range(20)
    ]


def test_a_refused_report_does_not_take_its_batch_with_it(
    store: Any, sender: Delivery, notes: list[str], tmp_path: Path
) -> None:
    def refuse_negative(value: int) -> None:
        if value < 0:
            raise MlflowException("invalid name", INVALID_PARAMETER_VALUE)

    store.fails = refuse_negative
    for value in (-1, 0, 1, -2, 2):
        sender.put(store.log, "a", value)
    sender.start()
    assert sender.close(0) == 0 and store.logged == [0, 1, 2]
    log = tmp_path / "driver.log"
    [note] = notes
    assert note == f"the store refused log of a (MlflowException: invalid name); see {log}"
    assert log.read_text().splitlines() == [
        f"the store refused log of a ({value},): MlflowException: invalid name"
        for value in (-1, -2)
    ]


def http_error(code: int) -> HTTPError:
    response = Response()
    response.status_code = code
    return HTTPError(response=response)


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("too many 500 error responses"),
        MlflowException(LOCKED),
        ConnectionError("reset"),
        TimeoutError(),
        Unavailable("its experiment was deleted"),
        http_error(503),
        http_error(429),
        http_error(401),
    ],
)
def test_a_temporary_error_is_retried_but_not_for_ever(
    store: Any,
    sender: Delivery,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """While the store answers other requests, one that always fails shall not stop them."""
    tried = []

    def fail(value: int) -> None:
        if value == 0:
            tried.append(value)
            raise error

    monkeypatch.setattr(delivery, "_MAX_TRIES", 5)
    store.fails = fail
    sender.put(store.tag, "a", 0)
    sender.put(store.tag, "a", 1)
    sender.start()
    sender.close(60)
    assert len(tried) == 6 and store.calls == [("tag", "a", [1])]
    assert "is unavailable" in notes[0] and "[SQL" not in notes[0]
    assert "refused tag of a" in notes[1]


@pytest.mark.parametrize("error", [http_error(400), http_error(413), LookupError("no run")])
def test_a_lasting_error_is_not_retried(store: Any, sender: Delivery, error: Exception) -> None:
    tried = []

    def fail(value: int) -> None:
        tried.append(value)
        raise error

    store.fails = fail
    sender.put(store.tag, "a", 0)
    sender.start()
    assert sender.close(60) == 0 and tried == [0]


def test_an_outage_does_not_count_as_tries(
    store: Any, sender: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_MAX_TRIES", 2)
    store.available = False
    sender.put(store.tag, "a", 0)
    sender.start()
    for _ in range(10):
        store.tried.clear()
        assert store.tried.wait(30)
    store.available = True
    assert sender.close(60) == 0 and store.calls == [("tag", "a", [0])]


@pytest.mark.parametrize(
    ("user", "expected"), [(None, ["10", "120", "120", "10"]), ("7", ["7"] * 4)]
)
def test_uploads_have_a_long_timeout_unless_the_user_sets_one(
    store: Any,
    sender: Delivery,
    monkeypatch: pytest.MonkeyPatch,
    user: str | None,
    expected: list[str],
) -> None:
    monkeypatch.delenv(TIMEOUT, raising=False)
    if user is not None:
        monkeypatch.setenv(TIMEOUT, user)
    with quiet_client():
        for method in (store.tag, store.register, store.log_artifacts, store.tag):
            sender.put(method, "a", 0)
        sender.start()
        sender.close(0)
    assert store.timeouts == expected and os.environ.get(TIMEOUT) == user
