"""What a request leaves behind: its id in the answer, one line in the log, its record for the metrics."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from configs.serve import ServeConfig
from serve.gateway.http import make_app
from serve.messages.refusal import Refusal
from serve.messages.schema import Answer, ModelStatus, Wanted
from serve.request.record import RequestObserver, RequestRecord
from tests.support.serving import access_lines, ask

INSANE_IDS = ["", " ", "two words", "x" * 129, "<script>", 'quote"d']


class NoClassifier:
    """Refuses empty-looking videos and fails on all others."""

    async def classify(self, video: bytes, wanted: Wanted) -> Answer:
        raise Refusal(422, "not_a_video", "no") if video == b"bad" else RuntimeError("/a/path/of/the/server")

    async def status(self) -> ModelStatus:
        return ModelStatus(problem="there is none")


class Recorder(RequestObserver):
    def __init__(self) -> None:
        self.seen: list[RequestRecord] = []

    def request(self, record: RequestRecord) -> None:
        self.seen.append(record)


@contextmanager
def served_app(app: FastAPI) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def seen() -> list[RequestRecord]:
    return []


@pytest.fixture
def port(seen: list[RequestRecord]) -> Iterator[int]:
    """The application with API keys, around something that fails."""
    recorder = Recorder()
    recorder.seen = seen
    with served_app(make_app(NoClassifier(), ServeConfig(), ("key",), recorder)) as port:
        yield port


KEY = {"Authorization": "Bearer key"}
REQUESTS = [
    ("GET", "/healthz", None, {}, 200),
    ("GET", "/readyz", None, {}, 503),
    ("GET", "/v1/model", None, {}, 401),
    ("GET", "/nowhere", None, KEY, 404),
    ("GET", "/v1/predict", None, KEY, 405),
    ("POST", "/v1/predict", b"bad", KEY, 422),
    ("POST", "/v1/predict", b"video", KEY, 500),
]


def test_every_answer_has_the_requests_id(port: int) -> None:
    for method, path, body, headers, status in REQUESTS:
        reply = ask(port, method, path, body, headers | {"X-Request-ID": "Root=1-67891233:mine"})
        assert reply.status == status
        assert reply.headers.get_all("X-Request-ID") == ["Root=1-67891233:mine"]
    made = {ask(port, "GET", "/healthz").headers["X-Request-ID"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("insane", INSANE_IDS)
def test_an_id_that_is_not_short_and_plain_is_replaced(port: int, insane: str) -> None:
    (answered,) = ask(port, "GET", "/healthz", headers={"X-Request-ID": insane}).headers.get_all("X-Request-ID") or []
    assert len(answered) == 36


def test_a_failure_is_told_to_the_log_alone(port: int, caplog: pytest.LogCaptureFixture) -> None:
    reply = ask(port, "POST", "/v1/predict", b"video", KEY)
    assert (reply.status, reply.code) == (500, "internal_error")
    assert b"path" not in reply.body
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "request_failed path=/v1/predict"
    assert "/a/path/of/the/server" in str(record.exc_info)


def test_a_request_is_one_line_without_query_or_key(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask(port, "GET", "/healthz")
    ask(port, "GET", "/v1%0Arequest%20path=/forged?secret=1", headers=KEY)
    ask(port, "POST", "/v1/predict", b"bad", KEY)
    lines = access_lines(caplog, 2)
    assert len(lines) == 2  # nobody wants to read that the server was alive
    assert lines[0].startswith("request method=GET path=/v1%0Arequest%20path%3D/forged status=404 code=not_found ")
    assert lines[1].startswith("request method=POST path=/v1/predict status=422 code=not_a_video bytes=3 seconds=0.0")
    assert not any(word in line for line in lines for word in ("key", "secret", "\n"))


def test_the_observer_is_told_of_every_request(port: int, seen: list[RequestRecord]) -> None:
    for method, path, body, headers, _ in REQUESTS:
        ask(port, method, path, body, headers)
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer key\r\nContent-Length: 9\r\n\r\nhalf"
        )
        deadline = time.monotonic() + 30
        link.shutdown(socket.SHUT_WR)
    while len(seen) <= len(REQUESTS):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [(record.route, record.status) for record in seen] == [
        ("/healthz", 200),
        ("/readyz", 503),
        ("other", 401),  # refused before it was routed
        ("other", 404),
        ("/v1/predict", 405),
        ("/v1/predict", 422),
        ("/v1/predict", 500),
        ("/v1/predict", 499),
    ]
    assert [record.num_bytes for record in seen] == [0, 0, 0, 0, 0, 3, 5, 4]
    assert [record.refusals for record in seen[2:7]] == [
        ["unauthorized"],
        ["not_found"],
        ["method_not_allowed"],
        ["not_a_video"],
        ["internal_error"],
    ]
