"""Questions to the replicas of an engine, answered in the order in which they are finished.

In: requests under keys of any kind, and the replicas to deal them out to. Out: (key, answer) pairs
as they come in; at the end an exception that names the replicas that were lost on the way.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.exceptions import RayError, RayTaskError

from evals.serving.requests import Request, Response

Key = TypeVar("Key")

SILENCE_S = 30.0  # beyond the time limit of a request, for a busy machine


class ReplicaUnavailableError(RuntimeError):
    """A replica can't answer: its engine is dead, or serves other weights than it should."""


class ReplicasLostError(Exception):
    """Some replicas were lost; answers that are missing have to be asked for again."""

    def __init__(self, replicas: Mapping[str, str]) -> None:
        """Take the reason by replica."""
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in replicas.items()))
        self.replicas = dict(replicas)


@dataclass(frozen=True)
class Replica:
    """A running engine: its name, its deployment handle, and which weights it should serve."""

    name: str
    handle: Any
    weights: str


@dataclass(frozen=True)
class Limits:
    """On requests.

    Attributes:
        timeout_s: seconds that an answer may take once the engine has the request.
        in_flight: requests that a replica works on at a time.
        count_timeouts: take a late answer for one, whatever else comes in; otherwise a replica
            that gave a late answer, and no other for half of timeout_s, is taken to hang.
    """

    timeout_s: float
    in_flight: int
    count_timeouts: bool = False


def ask(
    replicas: Sequence[Replica],
    requests: Mapping[Key, Request],
    options: Mapping[str, Any],
    limits: Limits,
) -> Iterator[tuple[Key, Response]]:
    """Deal the requests out and give the answers as they come.

    Args:
        replicas: at least one.
        requests: by key.
        options: what all requests share: arguments of vLLM's SamplingParams, and "adapter".
        limits: see there.

    Raises:
        ReplicasLostError: at the end, when replicas died, hang, or serve other weights.
        RuntimeError: a replica refused a request.
    """
    listening = _Listening(limits)
    keys = list(requests)
    try:
        for number, replica in enumerate(replicas):
            if share := keys[number :: len(replicas)]:
                listening.start(replica, [requests[key] for key in share], options)
        for name, index, answer in listening.answers():
            number = next(n for n, replica in enumerate(replicas) if replica.name == name)
            yield keys[number + index * len(replicas)], answer
    finally:
        listening.stop()
    if listening.lost:
        raise ReplicasLostError(listening.lost)


class _Listening:
    """Streams of several replicas, read by a thread each into one queue."""

    def __init__(self, limits: Limits) -> None:
        self.lost: dict[str, str] = {}
        self._limits = limits
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._streams: dict[str, Any] = {}
        self._heard: dict[str, float] = {}  # when each open stream last had a real answer
        self._late: dict[str, list[tuple[int, Response]]] = defaultdict(list)

    def start(self, replica: Replica, share: list[Request], options: Mapping[str, Any]) -> None:
        stream = replica.handle.options(stream=True).answer.remote(
            share,
            dict(options),
            weights=replica.weights,
            timeout_s=self._limits.timeout_s,
            in_flight=self._limits.in_flight,
        )
        self._streams[replica.name] = stream
        self._heard[replica.name] = time.monotonic()
        threading.Thread(target=self._read, args=(replica.name, stream), daemon=True).start()

    def _read(self, name: str, stream: Any) -> None:
        try:
            for batch in stream:
                self._events.put((name, batch))
            self._events.put((name, None))
        except BaseException as error:
            self._events.put((name, error))

    def answers(self) -> Iterator[tuple[str, int, Response]]:
        """Yield (replica, position in its share, answer) until all streams have ended."""
        while self._heard:
            try:
                name, event = self._events.get(timeout=0.5)
            except queue.Empty:
                self._notice_silence()
                continue
            if name not in self._heard:
                continue
            if event is None:
                yield from self._release(name)
                del self._heard[name]
            elif isinstance(event, BaseException):
                self._fail(name, event)
            else:
                yield from self._sift(name, event)

    def _sift(
        self, name: str, batch: list[tuple[int, Response]]
    ) -> Iterator[tuple[str, int, Response]]:
        """Hold late answers back until it is known whether the replica hangs."""
        for index, answer in batch:
            if answer.finish_reason == "timeout" and not self._limits.count_timeouts:
                self._late[name].append((index, answer))
                continue
            self._heard[name] = time.monotonic()
            yield from self._release(name)
            yield name, index, answer
        if self._late[name] and self._silence(name) > self._limits.timeout_s / 2:
            self._lose(
                name,
                f"late answers only for {self._silence(name):.3g} s; if it is only slow, lower "
                "engine.concurrency",
            )

    def _release(self, name: str) -> Iterator[tuple[str, int, Response]]:
        for index, answer in self._late.pop(name, []):
            yield name, index, answer

    def _silence(self, name: str) -> float:
        return time.monotonic() - self._heard[name]

    def _notice_silence(self) -> None:
        patience = self._limits.timeout_s + SILENCE_S
        for name in list(self._heard):
            if self._silence(name) > patience:
                self._lose(name, f"no sign of life within {patience:g} s")

    def _fail(self, name: str, error: BaseException) -> None:
        lost = isinstance(error, ReplicaUnavailableError) or (
            isinstance(error, RayError) and not isinstance(error, RayTaskError)
        )
        if not lost:
            raise RuntimeError(f"{name} refused a request: {error}") from error
        self._lose(name, str(error).strip().splitlines()[-1] if str(error).strip() else repr(error))

    def _lose(self, name: str, reason: str) -> None:
        self.lost[name] = reason
        del self._heard[name]

    def stop(self) -> None:
        """Let go of streams that have not ended."""
        for name in [*self._heard, *self.lost]:
            with suppress(Exception):  # of a stream that never began
                self._streams[name].cancel()
