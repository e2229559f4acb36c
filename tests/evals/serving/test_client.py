"""Distribution of requests, lost replicas, timeouts, rejections; the replicas are fakes. Ports."""

import socket
import time

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from evals.serving import client
from evals.serving.client import Limits, Replica, ReplicasLostError, stream_responses
from evals.serving.requests import Request, Response
from evals.settings import EngineSettings, check_port


class Fake:
    """A replica whose responses are its name and the prompt, unless `before` returns one."""

    def __init__(self, name: str, before=lambda prompt: None) -> None:
        self.name, self.before, self.cancelled = name, before, False

    @property
    def answer(self):
        return self

    def options(self, *, stream: bool):
        assert stream
        return self

    def remote(self, requests, options, *, weights, timeout_s, in_flight):
        return Stream(self, requests)


class Stream:
    def __init__(self, replica: Fake, requests) -> None:
        self.replica, self.requests = replica, requests

    def __iter__(self):
        for index, request in reversed(list(enumerate(self.requests))):
            made = self.replica.before(request.prompt)
            yield [(index, made or Response(f"{self.replica.name} {request.prompt}", "stop"))]

    def cancel(self) -> None:
        self.replica.cancelled = True


REQUESTS = {f"key {number}": Request([number], 4) for number in range(7)}


def send(*fakes: Fake, timeout_s: float = 60, count_timeouts: bool = False) -> dict[str, Response]:
    """Send `REQUESTS` to the replicas; return the responses by key."""
    replicas = [Replica(fake.name, fake, "") for fake in fakes]
    return dict(stream_responses(replicas, REQUESTS, {}, Limits(timeout_s, 4, count_timeouts)))


def timeout_for(slow: list[int]):
    return lambda prompt: Response("", "timeout") if prompt == slow else None


def test_each_response_has_its_key_and_comes_from_the_replica_that_got_the_request():
    responses = send(Fake("a"), Fake("b"))
    assert responses == {
        f"key {n}": Response(f"{'b' if n % 2 else 'a'} {[n]}", "stop") for n in range(7)
    }


def test_responses_of_healthy_replicas_arrive_when_another_one_dies():
    def die(prompt):
        if prompt == [1]:
            raise ActorDiedError()

    replicas = [Replica("a", Fake("a"), ""), Replica("b", Fake("b", die), "")]
    responses = {}
    with pytest.raises(ReplicasLostError) as caught:
        for key, response in stream_responses(replicas, REQUESTS, {}, Limits(60, 4)):
            responses[key] = response
    assert list(caught.value.replicas) == ["b"]
    assert set(responses) == set(REQUESTS) - {"key 1"}


def test_a_rejected_request_is_an_error_with_its_message():
    def reject(prompt):
        raise RayTaskError("answer", "ValueError: very wrong", ValueError("very wrong"))

    with pytest.raises(RuntimeError, match=r"b rejected a request.*very wrong"):
        send(Fake("b", reject))


def test_a_timeout_among_other_responses_is_a_response():
    assert send(Fake("a", timeout_for([3])))["key 3"].finish_reason == "timeout"


def test_a_replica_with_nothing_but_timeouts_hangs():
    def hang(prompt):
        time.sleep(0.15)
        return Response("", "timeout")

    with pytest.raises(ReplicasLostError, match="only timeouts for"):
        send(fake := Fake("a", hang), timeout_s=0.1)
    assert fake.cancelled
    counted = send(Fake("a", hang), timeout_s=0.1, count_timeouts=True)
    assert [response.finish_reason for response in counted.values()] == ["timeout"] * 7


def test_a_silent_replica_hangs(monkeypatch):
    monkeypatch.setattr(client, "SILENCE_S", 0.1)
    with pytest.raises(ReplicasLostError, match="no response within"):
        send(Fake("a", lambda prompt: time.sleep(30)), timeout_s=0.1)


def test_a_port_in_use_is_an_error_that_names_it():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} .* give another"):
            check_port(port)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_number_that_is_no_port_is_an_error_that_names_the_option(port):
    with pytest.raises(ValueError, match=f"--port is {port}: give a port from 1 to 65535"):
        check_port(port, "--port")
    with pytest.raises(ValueError, match=rf"engine\.port is {port}; it must lie in 1 to 65535"):
        EngineSettings(port=port)
