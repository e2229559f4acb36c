"""Requests to the replicas of an engine, with responses in the order in which they are finished.

Requests and responses have keys of any kind. Responses of healthy replicas all arrive; then an
exception names the replicas that were lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ray.exceptions import RayError, RayTaskError

from evals.serving.requests import Request, Response

Key = TypeVar("Key")

SILENCE_S = 30.0  # allowed beyond the time limit of a request, because the machine may be busy


class ReplicaUnavailableError(RuntimeError):
    """A replica can't respond: its engine is dead, or it serves other weights than it should."""


class ReplicasLostError(Exception):
    """Some replicas were lost; requests without a response have to be sent again.

    Attributes:
        replicas: name of each lost replica -> reason.
    """

    def __init__(self, replicas: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in replicas.items()))
        self.replicas = dict(replicas)


@dataclass(frozen=True)
class Replica:
    """A running replica.

    Attributes:
        name: its name.
        handle: its Serve deployment handle.
        weights: id of the weights that it should serve.
    """

    name: str
    handle: Any
    weights: str


@dataclass(frozen=True)
class Limits:
    """Limits on requests.

    Attributes:
        timeout_s: seconds that a response may take once the engine has the request.
        in_flight: number of requests that a replica works on at the same time.
        count_timeouts: accept timeouts as responses, whatever else arrives. Otherwise a replica
            that timed out, and gave no other response for half of timeout_s, counts as hung.
    """

    timeout_s: float
    in_flight: int
    count_timeouts: bool = False


class _Event(NamedTuple):
    """News from a replica's stream: a batch of responses, an exception, or None at its end."""

    replica: str
    content: list[tuple[int, Response]] | BaseException | None


def stream_responses(
    replicas: Sequence[Replica],
    requests: Mapping[Key, Request],
    options: Mapping[str, Any],
    limits: Limits,
) -> Iterator[tuple[Key, Response]]:
    """Distribute requests among replicas and yield responses as they arrive.

    Args:
        replicas: at least one.
        requests: requests by key.
        options: options shared by all requests, see `evals.serving.requests.Backend`.
        limits: limits on the requests.

    Raises:
        ReplicasLostError: at the end, if replicas died, hung, or serve other weights.
        RuntimeError: a replica rejected a request.
    """
    streams = _Streams(limits)
    keys = list(requests)
    shares = {
        replica.name: keys[number :: len(replicas)] for number, replica in enumerate(replicas)
    }
    try:
        for replica in replicas:
            if share := shares[replica.name]:
                streams.open(replica, [requests[key] for key in share], options)
        for name, index, response in streams.responses():
            yield shares[name][index], response
    finally:
        streams.cancel()
    if streams.lost:
        raise ReplicasLostError(streams.lost)


class _Streams:
    """Response streams of several replicas, each read by its own thread into one queue."""

    def __init__(self, limits: Limits) -> None:
        self.lost: dict[str, str] = {}
        self._limits = limits
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._streams: dict[str, Any] = {}
        self._heard: dict[str, float] = {}  # open stream -> time of its last actual response
        self._timeouts: dict[str, list[tuple[int, Response]]] = defaultdict(list)

    def open(self, replica: Replica, share: list[Request], options: Mapping[str, Any]) -> None:
        """Send a replica its share of the requests and start reading its responses."""
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

    def responses(self) -> Iterator[tuple[str, int, Response]]:
        """Yield (replica, position in its share, response) until all streams have ended."""
        while self._heard:
            try:
                name, content = self._events.get(timeout=0.5)
            except queue.Empty:
                self._lose_silent_replicas()
                continue
            if name not in self._heard:
                continue
            if content is None:
                yield from self._release_timeouts(name)
                del self._heard[name]
            elif isinstance(content, BaseException):
                self._fail(name, content)
            else:
                yield from self._filter_timeouts(name, content)

    def cancel(self) -> None:
        """Cancel streams that have not ended."""
        for name in [*self._heard, *self.lost]:
            with suppress(Exception):  # raised for a stream that never began
                self._streams[name].cancel()

    def _read(self, name: str, stream: Any) -> None:
        try:
            for batch in stream:
                self._events.put(_Event(name, batch))
            self._events.put(_Event(name, None))
        except BaseException as error:
            self._events.put(_Event(name, error))

    def _filter_timeouts(
        self, name: str, batch: list[tuple[int, Response]]
    ) -> Iterator[tuple[str, int, Response]]:
        """Yield responses, but hold timeouts back until it is known whether the replica hangs."""
        for index, response in batch:
            if response.finish_reason == "timeout" and not self._limits.count_timeouts:
                self._timeouts[name].append((index, response))
                continue
            self._heard[name] = time.monotonic()
            yield from self._release_timeouts(name)
            yield name, index, response
        if self._timeouts[name] and self._silence(name) > self._limits.timeout_s / 2:
            self._lose(
                name,
                f"only timeouts for {self._silence(name):.3g} s; if it is merely slow, lower "
                "engine.concurrency",
            )

    def _release_timeouts(self, name: str) -> Iterator[tuple[str, int, Response]]:
        for index, response in self._timeouts.pop(name, []):
            yield name, index, response

    def _silence(self, name: str) -> float:
        return time.monotonic() - self._heard[name]

    def _lose_silent_replicas(self) -> None:
        patience = self._limits.timeout_s + SILENCE_S
        for name in list(self._heard):
            if self._silence(name) > patience:
                self._lose(name, f"no response within {patience:g} s")

    def _fail(self, name: str, error: BaseException) -> None:
        """Count the replica as lost if it is unavailable; raise if it rejected a request."""
        unavailable = isinstance(error, ReplicaUnavailableError) or (
            isinstance(error, RayError) and not isinstance(error, RayTaskError)
        )
        if not unavailable:
            raise RuntimeError(f"{name} rejected a request: {error}") from error
        self._lose(name, str(error).strip().splitlines()[-1] if str(error).strip() else repr(error))

    def _lose(self, name: str, reason: str) -> None:
        self.lost[name] = reason
        del self._heard[name]
