"""ask(): dealing out, losses, silence, refusals; the replicas are fakes that count. Ports."""

import socket
import time

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from evals.serving import client
from evals.serving.client import Limits, Replica, ReplicasLostError
from evals.serving.requests import Request, Response
from evals.settings import check_port


class Fake:
    """A replica's handle. Answers with its name and the prompt, after what `before` does."""

    def __init__(self, name: str, before=lambda prompt: None) -> None:
        self.name, self.before, self.asked, self.cancelled = name, before, [], False

    @property
    def answer(self):
        return self

    def options(self, *, stream: bool):
        assert stream
        return self

    def remote(self, requests, options, *, weights, timeout_s, in_flight):
        self.asked.append([list(request.prompt) for request in requests])
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


def ask(*fakes: Fake, timeout_s: float = 60, count_timeouts: bool = False) -> dict[str, Response]:
    replicas = [Replica(fake.name, fake, "") for fake in fakes]
    limits = Limits(timeout_s, 4, count_timeouts)
    got: dict[str, Response] = {}
    try:
        got.update(client.ask(replicas, REQUESTS, {}, limits))
    except ReplicasLostError as error:
        error.got = got
        raise
    return got


def test_each_answer_comes_under_its_key_from_the_replica_that_was_asked():
    got = ask(Fake("a"), Fake("b"))
    assert got == {f"key {n}": Response(f"{'b' if n % 2 else 'a'} {[n]}", "stop") for n in range(7)}


def test_what_other_replicas_answer_is_kept_when_one_dies():
    def die(prompt):
        if prompt == [1]:
            raise ActorDiedError()

    replicas = [Replica("a", Fake("a"), ""), Replica("b", Fake("b", die), "")]
    got = {}
    with pytest.raises(ReplicasLostError) as caught:
        for key, answer in client.ask(replicas, REQUESTS, {}, Limits(60, 4)):
            got[key] = answer
    assert list(caught.value.replicas) == ["b"]
    assert set(got) == set(REQUESTS) - {"key 1"}


def test_refusal_is_an_error_with_its_message():
    def refuse(prompt):
        raise RayTaskError("answer", "ValueError: very wrong", ValueError("very wrong"))

    with pytest.raises(RuntimeError, match=r"b refused a request.*very wrong"):
        ask(Fake("b", refuse))


def test_a_late_answer_is_counted_while_others_come_in():
    assert ask(Fake("a", late_if([3])))["key 3"].finish_reason == "timeout"


def test_only_late_answers_mean_that_the_replica_hangs():
    def hang(prompt):
        time.sleep(0.15)
        return Response("", "timeout")

    with pytest.raises(ReplicasLostError, match="late answers only for"):
        ask(fake := Fake("a", hang), timeout_s=0.1)
    assert fake.cancelled
    counted = ask(Fake("a", hang), timeout_s=0.1, count_timeouts=True)
    assert [answer.finish_reason for answer in counted.values()] == ["timeout"] * 7


def test_silence_means_that_the_replica_hangs(monkeypatch):
    monkeypatch.setattr(client, "SILENCE_S", 0.1)
    with pytest.raises(ReplicasLostError, match="no sign of life"):
        ask(Fake("a", lambda prompt: time.sleep(30)), timeout_s=0.1)


def late_if(slow: list[int]):
    return lambda prompt: Response("", "timeout") if prompt == slow else None


def test_port_in_use_is_named():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} .* give another"):
            check_port(port)
