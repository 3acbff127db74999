"""Asks a served application over real HTTP, and serves one in this process, without Ray."""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from configs.serve import ServeConfig
from serve.gateway.http import make_app
from serve.proxy.connection import LimitedProtocol
from serve.replica.classifier import Classifier
from tests.support.leaks import LEAKS
from tests.support.ports import free_ports


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code; every error answer has one, and a sentence, and nothing else."""
        answer = self.json
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"code", "message"}
        assert not LEAKS.search(self.body)
        return str(answer["error"]["code"])


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Reply:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def access_lines(caplog: pytest.LogCaptureFixture, count: int, part: str = "") -> list[str]:
    """Returns the lines that a server in this process has logged about requests, once there are that many.

    Args:
        part: Return only lines with this text, because the line of an earlier request may come late.
    """
    deadline = time.monotonic() + 30
    while True:
        lines = [line for line in caplog.messages if line.startswith("request method=") and part in line]
        if len(lines) >= count:
            return lines
        assert time.monotonic() < deadline
        time.sleep(0.01)


def form(*files: bytes, field: str = "file") -> tuple[bytes, dict[str, str]]:
    """Returns the body and the headers of a multipart form with these files."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{i}.mp4"\r\n\r\n'.encode()
        + file
        + b"\r\n"
        for i, file in enumerate(files)
    ]
    return b"".join(parts) + b"--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


@contextmanager
def served(
    config: ServeConfig, keys: tuple[str, ...] = (), port: int = 0, protocol: type[LimitedProtocol] = LimitedProtocol
) -> Iterator[int]:
    """Serves a real classifier by uvicorn for as long as the block runs; yields its port, a free one by default."""
    settings = uvicorn.Config("", port=port, http=protocol, ws="none", log_level="warning")
    ready, server = threading.Event(), uvicorn.Server(settings)

    async def serve() -> None:
        classifier = Classifier(config)
        await classifier.start()
        server.config.app = make_app(classifier, config, keys)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        ready.set()
        await task
        await classifier.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(
    home: Path, *options: str, ready: bool = True, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Runs `python -m serve` over the store in `home` for as long as the block runs; yields it and its port.

    Args:
        home: Its log is put there too, as serve.log.
        ready: Wait until it is.
    """
    port = int(free_ports(1)[0])
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLIPSTREAM_", "MLFLOW_", "RAY_"))
    }
    command = [sys.executable, "-m", "serve", "--port", str(port), *options]
    log = home / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=kept | {"CLIPSTREAM_HOME": str(home)} | variables,
            start_new_session=True,  # so that a test can press Ctrl-C, which every process of a terminal's group hears
        )
    try:
        deadline = time.monotonic() + 120
        while ready and not _is_ready(port):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        yield process, port
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        print(log.read_text())  # shown if the test fails


def _is_ready(port: int) -> bool:
    try:
        return ask(port, "GET", "/readyz").status == 200
    except OSError:
        return False
