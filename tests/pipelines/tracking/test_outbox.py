"""The outbox and what is made of a store's errors, with services that keep what they get."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipelines.tracking import mlflow_sender, outbox
from pipelines.tracking.mlflow_sender import Sender
from pipelines.tracking.outbox import Away, Entry, Outbox


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Don't wait between tries."""
    monkeypatch.setattr(outbox, "_PAUSES", (0.001,))
    monkeypatch.setattr(mlflow_sender, "_LATE_SECONDS", 0.0)


class Service:
    """Takes two numbers at once, and no negative ones."""

    def __init__(self, path: Path) -> None:
        self.took: list[int] = []
        self.told: list[str] = []
        self.here, self.asked = True, Event()
        self.path = path
        self.box = self.opened()

    def opened(self) -> Outbox:
        return Outbox(self.path, self.send, "the service", self.told.append)

    def send(self, entries: list[Entry]) -> int:
        self.asked.set()
        if not self.here:
            raise Away("refused to connect")
        numbers = [entry["n"] for entry in entries[:2]]
        if numbers[0] < 0:
            raise ValueError("negative")
        self.took += [n for n in numbers if n >= 0]
        return len(numbers) if min(numbers) >= 0 else 1

    def put(self, *numbers: int) -> None:
        for n in numbers:
            self.box.put({"n": n})


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "run" / "outbox.jsonl")


def test_everything_arrives_in_order(service: Service) -> None:
    service.put(0, 1, 2)
    service.box.start()
    service.put(3, 4)
    assert service.box.wait(0) and service.took == [0, 1, 2, 3, 4]
    service.put(5)
    assert service.box.close(0) == 0
    assert service.took == [0, 1, 2, 3, 4, 5] and service.told == []


def test_a_service_that_goes_away_is_told_of_once_and_gets_everything_later(
    service: Service,
) -> None:
    service.here = False
    service.box.start()
    service.put(0)
    assert not service.box.wait(0), "it does not wait for it"
    for n in (1, 2, 3):
        service.asked.clear()
        service.put(n)
        assert service.asked.wait(30), "it is tried again"
    assert service.box.waiting() == 4
    service.here = True
    assert service.box.close(60) == 0 and service.took == [0, 1, 2, 3]
    away, back = service.told
    assert "refused to connect" in away and str(service.path) in away
    assert back == "the service is back"


def test_the_next_process_sends_what_is_left(service: Service) -> None:
    service.put(0, 1)
    service.box.start()
    assert service.box.wait(0)
    service.here = False
    service.put(2, 3)
    assert service.box.close(0) == 2
    with service.path.open("a") as file:
        file.write('{"n": 4')  # killed while it wrote

    service.here = True
    service.box = service.opened()
    service.put(5)
    service.box.start()
    assert service.box.close(0) == 0 and service.took == [0, 1, 2, 3, 5]
    assert [json.loads(x)["n"] for x in service.path.read_text().splitlines()] == [0, 1, 2, 3, 5]


def test_the_marker_of_a_longer_file_counts_for_nothing(service: Service) -> None:
    service.put(0, 1)
    service.box.start()
    assert service.box.close(0) == 0
    service.path.write_text('{"n": 7}\n')  # somebody put another one there
    service.box = service.opened()
    service.box.start()
    assert service.box.close(0) == 0 and service.took == [0, 1, 7]


def test_what_is_never_taken_is_put_aside(service: Service) -> None:
    service.put(-1, 0, 1, -2, 2)
    service.box.start()
    assert service.box.close(0) == 0 and service.took == [0, 1, 2]
    (line,) = service.told
    assert '{"n": -1}' in line and "negative" in line and str(service.box.rejected) in line
    kept = [json.loads(x) for x in service.box.rejected.read_text().splitlines()]
    assert [k["entry"] for k in kept] == [{"n": -1}, {"n": -2}]
    assert {k["reason"] for k in kept} == {"ValueError: negative"}


class Store:
    """Of MLflow's, as `Sender` sees it; `fails` may raise for the keys of a request."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fails: Callable[[list[str]], None] = lambda keys: None
        self.checks = 0

    def check(self) -> None:
        self.checks += 1

    def act(self, entry: Entry) -> None:
        self._take([entry["do"]])

    def log(self, entries: list[Entry]) -> None:
        self._take([key for entry in entries for key in entry["metrics"]])

    def _take(self, keys: list[str]) -> None:
        self.fails(keys)
        self.batches.append(keys)


def metric(trial: str, *keys: str) -> Entry:
    return {"do": "log", "trial": trial, "metrics": dict.fromkeys(keys, 1.0)}


def send(sender: Any, entries: list[Entry]) -> None:
    while entries:
        entries = entries[sender.send(entries) :]


def test_metrics_of_a_run_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_sender, "METRICS", 3)
    store: Any = Store()
    entries = [metric("a", "1"), metric("a", "2", "3"), metric("a", "4"), metric("b", "5")]
    send(Sender(store), [*entries, {"do": "end", "trial": "b"}, metric("b", *"6789")])
    assert store.batches == [["1", "2", "3"], ["4"], ["5"], ["end"], [*"6789"]]


def test_one_bad_metric_does_not_take_its_batch_with_it() -> None:
    store: Any = Store()

    def fails(keys: list[str]) -> None:
        if "bad" in keys:
            raise MlflowException("invalid name", INVALID_PARAMETER_VALUE)

    store.fails = fails
    sender, entries = Sender(store), [metric("a", "1"), metric("a", "bad"), metric("a", "2")]
    assert sender.send(entries) == 1
    with pytest.raises(MlflowException, match="invalid name"):
        sender.send(entries[1:])
    assert sender.send(entries[2:]) == 1 and store.batches == [["1"], ["2"]]


@pytest.mark.parametrize("error", [MlflowException("too many 500"), ConnectionError("reset")])
def test_an_entry_that_always_fails_in_a_store_that_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store: Any = Store()

    def fails(keys: list[str]) -> None:
        raise error

    store.fails = fails
    sender = Sender(store)
    for _ in range(5):
        with pytest.raises(Away):
            sender.send([metric("a", "1")])
    assert store.checks == 4, "from the second time on it is asked whether it answers at all"
    monkeypatch.setattr(mlflow_sender, "_STUCK_SECONDS", 0)
    with pytest.raises(type(error)):
        sender.send([metric("a", "1")])


def test_a_locked_store_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = Store()

    def fails(keys: list[str]) -> None:
        raise MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: INSERT ...]")

    store.fails = fails
    sender = Sender(store)
    monkeypatch.setattr(mlflow_sender, "_STUCK_SECONDS", 0)
    for _ in range(3):
        with pytest.raises(Away, match=r"database is locked$"):
            sender.send([metric("a", "1")])
