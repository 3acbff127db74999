"""Who gets an answer: clients with a key; without keys, only this machine's programs and the server's own page."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.serve import ServeConfig
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import ask, served

pytestmark = MLFLOW_WARNINGS


@pytest.fixture(scope="module")
def config(champion_store: Path) -> ServeConfig:
    return ServeConfig(tracking_uri=store_uri(champion_store), allow_unauthenticated=True)


@pytest.fixture(scope="module")
def port(config: ServeConfig) -> Iterator[int]:
    with served(config) as port:
        yield port


@pytest.fixture(scope="module")
def locked(config: ServeConfig) -> Iterator[int]:
    """The port of a server with two keys."""
    with served(config, keys=("first", "second")) as port:
        yield port


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1:9", "[::1]", "[::1]:8000"])
def test_without_a_key_loopback_names_are_served(port: int, host: str) -> None:
    assert ask(port, "GET", "/v1/model", headers={"Host": host, "Origin": f"http://{host}"}).status == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "rebound.example"}, "foreign_host"),
        ({"Host": "127.0.0.1.example:80"}, "foreign_host"),
        ({"Host": ""}, "foreign_host"),
        ({"Host": "localhost."}, "foreign_host"),
        ({"Host": "localhost.example"}, "foreign_host"),
        ({"Host": "evil@localhost"}, "foreign_host"),
        ({"Host": "localhost/"}, "foreign_host"),
        ({"Host": "localhost:80:80"}, "foreign_host"),
        ({"Host": "[::1"}, "foreign_host"),
        ({"Host": "::1"}, "foreign_host"),
        ({"Host": "[::ffff:127.0.0.1]"}, "foreign_host"),
        ({"Host": "0.0.0.0"}, "foreign_host"),
        ({"Host": "2130706433"}, "foreign_host"),
        ({"Host": "localhost:8000", "Origin": "http://evil.example"}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "http://localhost:3000"}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "null"}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": ""}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "file://"}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "http://["}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "http://localhost"}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "http://localhost.:8000"}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000.evil.example"}, "foreign_origin"),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000@evil.example"}, "foreign_origin"),
    ],
)
def test_without_a_key_other_web_pages_are_refused(port: int, headers: dict[str, str], code: str) -> None:
    reply = ask(port, "GET", "/v1/model", headers=headers)
    assert (reply.status, reply.code) == (403, code)


def test_cors_stays_closed(port: int, locked: int) -> None:
    """No answer lets a page of another origin read it, whether the server has keys or not."""
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET", "POST"):
        for path in ("/", "/v1/predict", "/v1/model", "/readyz", "/nowhere"):
            for reply in (
                ask(port, method, path, headers=asked),
                ask(port, method, path, headers=asked | {"Origin": f"http://127.0.0.1:{port}"}),
                ask(locked, method, path, headers=asked),
                ask(locked, method, path, headers=asked | {"Authorization": "Bearer first"}),
            ):
                assert not [name for name in reply.headers if name.lower().startswith("access-control-")]
                assert method != "OPTIONS" or reply.status in {401, 403, 404, 405}


def test_a_host_that_is_none_breaks_nothing_and_is_redirected_nowhere(locked: int) -> None:
    for host in ("[::1", "evil.example", "a b", "\xff"):
        headers = {"Host": host, "Authorization": "Bearer first"}
        for path in ("/nowhere", "/v1/model/", "//v1/model", "/v1/predict/"):
            reply = ask(locked, "GET", path, headers=headers)
            assert reply.status in {400, 404}
            assert "Location" not in reply.headers


def test_with_keys_each_opens_and_nothing_else_does(locked: int) -> None:
    for key in ("first", "second"):
        headers = {"Authorization": f"Bearer {key}", "Host": "clips.example", "Origin": "http://other.example"}
        assert ask(locked, "GET", "/v1/model", headers=headers).status == 200
    for authorization in ("", "Bearer", "Bearer third", "Basic first", "first"):
        reply = ask(locked, "GET", "/v1/model", headers={"Authorization": authorization})
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert [ask(locked, "GET", path).status for path in ("/", "/healthz", "/readyz")] == [200] * 3
    assert "1" not in ask(locked, "GET", "/readyz").body.decode()  # no version for strangers
