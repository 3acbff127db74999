"""The life of `python -m serve` beside its answers: an IPv6 address, samples in class folders, and an orderly end."""

import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from serve.local_ray import address
from tests.support.registry import MLFLOW_WARNINGS, register
from tests.support.serving import ask, serving
from tests.support.videos import write_video
from tests.support.waiting import until

pytestmark = MLFLOW_WARNINGS

LOOPBACK = "::1"


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server((LOOPBACK, 0), family=socket.AF_INET6):
        return True
    return False


def test_an_address_is_written_as_a_url_has_it() -> None:
    assert address("127.0.0.1", 80) == "127.0.0.1:80"
    assert address("localhost", 8000) == "localhost:8000"
    assert address(LOOPBACK, 8000) == "[::1]:8000"


@pytest.mark.integration
def test_ctrl_c_while_it_starts_ends_it_in_order(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serving(tmp_path, ready=False) as (process, _):
        until(lambda: "starting Ray" in log.read_text())
        time.sleep(1)  # into the middle of it
        for told in ("stopping after Ctrl-C", "still waiting for Ray"):
            os.killpg(process.pid, signal.SIGINT)
            until(lambda told=told: told in log.read_text())
        started = psutil.Process(process.pid).children(recursive=True)
        assert process.wait(120) == 130
        _, alive = psutil.wait_procs(started, timeout=10)
        assert not alive
    assert len(log.read_text().splitlines()) == 3


@pytest.mark.integration
def test_a_server_on_ipv6_answers_and_ends_in_order(tmp_path: Path) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    register(tmp_path)
    (tmp_path / "samples" / "bright").mkdir(parents=True)
    video = write_video(tmp_path / "samples/bright/one.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10).read_bytes()
    log = tmp_path / "serve.log"
    with serving(tmp_path, "--host", LOOPBACK, "--samples", "samples", ready=False) as (process, port):
        until(lambda: "listening url=" in log.read_text() or process.poll() is not None)
        (metrics,) = re.findall(
            rf"listening url=http://\[::1\]:{port} metrics=http://(\S+)/metrics model=", log.read_text()
        )
        assert metrics.startswith(("127.0.0.1:", "[::1]:"))

        def status(method: str, path: str, body: bytes | None = None) -> int:
            with suppress(OSError):
                return ask(port, method, path, body, host=LOOPBACK).status
            return 0

        until(lambda: status("GET", "/readyz") == 200)
        for path in ("/healthz", "/readyz"):  # through Ray's proxy
            head = ask(port, "HEAD", path, host=LOOPBACK)
            assert (head.status, head.body) == (200, b"")
            assert head.headers["Content-Length"] == str(len(ask(port, "GET", path, host=LOOPBACK).body))
        assert ask(port, "GET", "/samples", host=LOOPBACK).json == {"samples": ["bright/one.mp4"]}
        assert status("POST", "/v1/predict", video) == 200

        started = psutil.Process(process.pid).children(recursive=True)
        head = f"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(video)}\r\nConnection: close\r\n\r\n"
        with socket.create_connection((LOOPBACK, port), timeout=60) as link:
            link.sendall(head.encode() + video[:100])
            time.sleep(2)  # until the gateway has it
            process.send_signal(signal.SIGTERM)
            until(lambda: ask(port, "GET", "/readyz", host=LOOPBACK).status == 503)
            assert ask(port, "POST", "/v1/predict", video, host=LOOPBACK).code == "shutting_down"
            link.sendall(video[100:])
            received = b"".join(iter(lambda: link.recv(2**16), b""))
        assert received.startswith(b"HTTP/1.1 200 ")  # whoever is inside still gets an answer
        assert b'"bright"' in received
        assert process.wait(60) == 0
        assert status("GET", "/healthz") == 0
        _, alive = psutil.wait_procs(started, timeout=10)
        assert not alive
        assert "not_drained" not in log.read_text()
