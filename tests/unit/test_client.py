"""post_all() against a real server on loopback: order, bound on requests in flight, faults."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evals.client import post_all
from evals.deployment import check_port


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    in_flight = most_in_flight = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Echo.lock:
            Echo.in_flight += 1
            Echo.most_in_flight = max(Echo.most_in_flight, Echo.in_flight)
        time.sleep(body.get("sleep", 0.01))
        with Echo.lock:
            Echo.in_flight -= 1
        answer = json.dumps(body).encode()
        self.send_response(body.get("status", 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    Echo.in_flight = Echo.most_in_flight = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_answers_come_in_order_with_bounded_concurrency(url):
    bodies = [{"n": n} for n in range(40)]
    assert post_all(url, bodies, concurrency=4, timeout_s=60) == bodies
    assert 2 <= Echo.most_in_flight <= 4


def test_late_answer_is_none_and_the_others_stay(url):
    bodies = [{"n": 0}, {"n": 1, "sleep": 30}, {"n": 2}]
    answers = post_all(url, bodies, concurrency=1, timeout_s=4)
    assert answers == [bodies[0], None, bodies[2]]


def test_refusal_and_silence_are_errors(url):
    with pytest.raises(RuntimeError, match=r"status 400.*very wrong"):
        post_all(url, [{"status": 400, "why": "very wrong"}], concurrency=2, timeout_s=60)
    with pytest.raises(RuntimeError, match="no answer from"):
        post_all("http://127.0.0.1:9/", [{}], concurrency=2, timeout_s=60)


def test_port_in_use_is_named(url):
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ValueError, match=f"port {port} .* give another"):
        check_port(port)
