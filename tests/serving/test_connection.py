"""Bytes over bare sockets that are not quite HTTP: each connection is answered or closed, and harms no other."""

import json
import socket
from collections.abc import Iterator

import pytest

from configs.serve import ServeConfig
from serve.proxy.connection import MAX_HEADERS_BYTES, LimitedProtocol
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import ask, served

pytestmark = MLFLOW_WARNINGS

HOST = b"Host: localhost\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST
POST = b"POST /v1/predict HTTP/1.1\r\n" + HOST
TRANSFER = b"Transfer-Encoding: chunked\r\n"
SECRET = b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request hidden in another's body."""


class Hasty(LimitedProtocol):
    """Waits for headers no longer than a test can."""

    headers_seconds = 0.3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    store = tmp_path_factory.mktemp("empty")
    return ServeConfig(
        tracking_uri=store_uri(store), allow_unauthenticated=True, max_body_bytes=10**5, deadline_seconds=3
    )


@pytest.fixture(scope="module")
def port(config: ServeConfig) -> Iterator[int]:
    with served(config) as port:
        yield port


@pytest.fixture(scope="module")
def hasty_port(config: ServeConfig) -> Iterator[int]:
    with served(config, protocol=Hasty) as port:
        yield port


def replies(port: int, *parts: bytes) -> bytes:
    """Returns all that comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        received = b""
        try:
            for part in parts:
                link.sendall(part)
            link.shutdown(socket.SHUT_WR)
            while chunk := link.recv(2**16):
                received += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed while this side was still sending
    return received


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        GET + b"X-Nul: a\0b\r\n\r\n",
        GET + b"X Space: a\r\n\r\n",
        GET + b"X-Latin: \xff\r\n\r\n",
        GET + b"X-Request-ID: \xff\r\n\r\n",
        b"GET /health\0z HTTP/1.1\r\n" + HOST + b"\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        POST + b"Content-Length: -5\r\n\r\nhello",
        POST + b"Content-Length: 99999999999999999999999999\r\n\r\nhello",
        POST + b"Content-Length: 5\r\n" + TRANSFER + b"\r\n0\r\n\r\n" + SECRET,
        POST + TRANSFER + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + SECRET,
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SECRET,
        POST + TRANSFER + b"\r\nffffffffffffffffff\r\nx",
        POST + TRANSFER + b"\r\n-1\r\nx\r\n",
        POST + b"Content-Length: 0\r\n\r\nX" + SECRET,
    ],
)
def test_what_is_not_http_gets_400_and_no_second_answer(port: int, request_bytes: bytes) -> None:
    received = replies(port, request_bytes)
    *_, last = received.split(b"HTTP/1.1 ")
    assert last.startswith(b"400 ")
    assert b"class_names" not in received
    assert json.loads(last.partition(b"\r\n\r\n")[2])["error"]["code"]
    assert ask(port, "GET", "/healthz").status == 200


def test_endless_headers_are_cut_off(port: int) -> None:
    for start in (GET, POST + TRANSFER + b"\r\n1\r\nx\r\n0\r\n"):  # the second: after the body
        for part in (b"X" * 2**20, b"X: " + b"y" * 2**20, b"X: y\r\n" * 2**18):
            received = replies(port, start, *[part] * 64)
            assert not received or received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    # Nothing is left unread when it closes, so that the answer surely arrives.
    assert replies(port, b"GET /?" + b"q" * MAX_HEADERS_BYTES).startswith(b"HTTP/1.1 431 ")


def test_an_absurd_query_is_only_a_bad_parameter(port: int) -> None:
    for query in ("top_k=" + "9" * 20_000, "top_k=1&" * 3000, "%00=%ff&frames=%00", "top_k=%0d%0aX:1", "&" * 20_000):
        reply = ask(port, "POST", f"/v1/predict?{query}", b"x", {"Host": "localhost"})
        assert reply.status in {422, 503}
        assert reply.code in {"bad_parameter", "no_model"}
        assert len(reply.body) < 1000


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTT",
        GET,
        GET + b"X-Slow: ",
        GET + b"\r\n" + GET,
        b"POST /nowhere HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\nhalf",
    ],
    ids=["nothing", "line", "headers", "value", "second", "answered"],
)
def test_headers_that_do_not_end_are_closed(hasty_port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty_port), timeout=30) as link:
        link.sendall(sent)
        while link.recv(2**16):
            pass


def test_many_slow_connections_block_nobody(port: int) -> None:
    links = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(300)]
    try:
        for number, link in enumerate(links):
            link.sendall([GET, POST + b"Content-Length: 1000\r\n\r\nhalf"][number % 2])
        assert ask(port, "GET", "/healthz").status == 200
        for link in links[1::2]:
            assert link.recv(2**12).startswith(b"HTTP/1.1 408 ")
    finally:
        for link in links:
            link.close()
