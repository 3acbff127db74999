"""One real `python -m serve` under siege: through Ray's proxy, with memory, sockets and processes watched."""

import asyncio
import re
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest

from packer.decoders import process as decoder_process
from tests.fuzz.attack import serving_processes
from tests.support.bombs import encoded
from tests.support.load import load
from tests.support.registry import MLFLOW_WARNINGS, copy_champion
from tests.support.serving import ask, serving
from tests.support.waiting import until

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.integration]

DECODER = decoder_process.__name__
POST = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
MAX_GROWN_BYTES = 100 * 2**20
MIB = bytes(2**20)
FORM = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'


class Server:
    """The server's port and processes."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.pid = process.pid
        self.log = log
        self.port = port
        self.small, self.long = encoded(10, 64, 64), encoded(6000, 1280, 720, "mpegts")

    def is_well(self) -> bool:
        return ask(self.port, "POST", "/v1/predict", self.small).status == 200

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def memory(self) -> dict[str, int]:
        return {name: one.memory_info().rss for name, one in serving_processes(self.pid).items()}

    def flood(self, head: bytes, chunk: bytes) -> tuple[bytes, int]:
        """Returns the beginning of the answer to a gibibyte in pieces, and how many pieces were taken."""
        received, num_sent = b"", 0
        with self.connect() as link, suppress(BrokenPipeError, ConnectionResetError):
            link.sendall(head)
            while num_sent < 1024 and not select.select([link], [], [], 0)[0]:
                link.sendall(chunk)
                num_sent += 1
            received = link.recv(2**12)
        return received, num_sent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, champion_store: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    copy_champion(champion_store, home)
    with serving(home, "--deadline-seconds", "10") as (process, port):
        server = Server(process, port, home / "serve.log")
        assert server.is_well()
        yield server


@pytest.mark.parametrize(
    ("head", "chunk", "num_taken"),
    [
        (b"Content-Length: 1073741824\r\n\r\n", MIB, 16),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + MIB + b"\r\n", 100),
        (
            b"Content-Type: multipart/form-data; boundary=edge\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n%s\r\n" % (len(FORM), FORM),
            b"100000\r\n" + MIB + b"\r\n",
            100,
        ),
    ],
    ids=["length", "chunked", "form"],
)
def test_a_gibibyte_costs_little_memory(server: Server, head: bytes, chunk: bytes, num_taken: int) -> None:
    before, peaks, ended = server.memory(), server.memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for name, size in server.memory().items():
                peaks[name] = max(peaks.get(name, 0), size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    received, num_sent = server.flood(POST + head, chunk)
    ended.set()
    watcher.join()
    grown = {name: peaks[name] - size for name, size in before.items()}
    print(f"taken {num_sent} MiB, grown {grown}")
    assert not received or received.startswith(b"HTTP/1.1 413 ")
    assert num_sent < num_taken
    assert max(grown.values()) < MAX_GROWN_BYTES
    assert server.is_well()


def test_a_body_longer_than_its_length_is_another_bad_request(server: Server) -> None:
    received, num_sent = server.flood(POST + b"Content-Length: 10\r\n\r\n", MIB)
    assert not received or received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 422 "))
    assert num_sent < 16
    assert server.is_well()


def test_unfinished_requests_block_nobody_and_are_closed(server: Server) -> None:
    half = POST + b"Content-Length: 1000\r\nX-Request-Timeout-Seconds: 3600\r\n\r\nhalf"
    beginnings = [b"", POST, half]
    links = [server.connect() for _ in range(300)]
    for number, link in enumerate(links):
        link.sendall(beginnings[number % 3])
    assert server.is_well()
    ends = []
    for link in links:
        received = b""
        with link, suppress(ConnectionResetError):
            while chunk := link.recv(2**12):  # times out where the server does not close
                received += chunk
        ends.append(received[:13])
    assert set(ends) == {b"", b"HTTP/1.1 408 "}
    assert ends.count(b"HTTP/1.1 408 ") == 100
    assert server.is_well()


@pytest.mark.parametrize(
    "line",
    [
        b"X-Request-ID: \xff",
        b"X-Request-Timeout-Seconds: \xff",
        b"Serve-Multiplexed-Model-Id: \xff",
        b"X: " + b"x" * 2**20,
    ],
)
def test_headers_that_rays_proxy_cannot_read_are_refused(server: Server, line: bytes) -> None:
    with server.connect() as link, suppress(BrokenPipeError, ConnectionResetError):
        link.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n\r\n")
        assert link.recv(2**12)[:13] in {b"HTTP/1.1 400 ", b"HTTP/1.1 431 "}


def test_a_decoder_that_is_killed_costs_its_video_alone(server: Server) -> None:
    (decoder,) = [one for name, one in serving_processes(server.pid).items() if DECODER in name]
    used = decoder.cpu_times().user
    with ThreadPoolExecutor(2) as pool:
        doomed = pool.submit(ask, server.port, "POST", "/v1/predict", server.long)
        while decoder.cpu_times().user < used + 0.3:
            time.sleep(0.01)
        spared = pool.submit(ask, server.port, "POST", "/v1/predict", server.small)
        decoder.kill()
        assert (doomed.result().status, doomed.result().code) == (422, "decoder_crash")
        assert spared.result().status == 200


def test_too_many_at_once_are_refused_by_the_proxy_and_told_of(server: Server) -> None:
    outcome = asyncio.run(
        load(f"http://127.0.0.1:{server.port}/v1/predict", [server.small], concurrency=48, num_requests=400)
    )
    assert {(one.status, one.code) for one in outcome.outcomes} == {(200, None), (503, "overloaded")}
    refused = r"ProxyActor.* request method=POST path=/v1/predict status=503 code=overloaded bytes=0 .*request_id=\S"
    until(lambda: re.search(refused, server.log.read_text()) is not None)
    assert server.is_well()


def test_rays_own_ports_want_the_token_of_this_run(server: Server) -> None:
    family = psutil.Process(server.pid).children(recursive=True)
    (gcs,) = [one for one in family if one.name() == "gcs_server"]
    token = gcs.environ()["RAY_AUTH_TOKEN"]

    def ask_for_nodes(port: int, *metadata: tuple[str, str]) -> str:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
            try:
                return "answered" if call(b"", timeout=10, metadata=metadata) else "empty"
            except grpc.RpcError as error:
                return str(error.code().name)

    ports = [found.laddr.port for found in gcs.net_connections() if found.status == psutil.CONN_LISTEN]
    without = [ask_for_nodes(port) for port in ports]
    wrong = [ask_for_nodes(port, ("authorization", "Bearer " + "0" * len(token))) for port in ports]
    right = [ask_for_nodes(port, ("authorization", f"Bearer {token}")) for port in ports]
    assert "answered" in right
    assert [code for code, answer in zip(without, right, strict=True) if answer == "answered"] == ["UNAUTHENTICATED"]
    assert "answered" not in wrong


def test_the_log_holds_no_traceback(server: Server) -> None:
    """Nothing that strangers send may count as a failure of the server."""
    assert "Traceback" not in server.log.read_text()
