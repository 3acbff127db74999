"""MLflow's page over a store on this machine: `python -m trainer ui` says where it is, and nothing else.

The server writes dozens of lines of its own; they are shown only if it ends by itself.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import BinaryIO
from urllib.request import ProxyHandler, build_opener

from mlflow import MlflowClient

from configs.section import UsageError
from trainer.tracking.errors import store_answers
from trainer.tracking.pages import KIND, KIND_TAG, home_page, runs_page
from trainer.tracking.store import check_store

HOST = "127.0.0.1"
START_SECONDS = 300.0
"""How long the server may take to answer: it takes 5 to 10 s, on a busy machine over a minute."""
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.2


def show(uri: str, port: int) -> None:
    """Prints the address of MLflow's page; for a store on this machine, serves the page until Ctrl-C or SIGTERM.

    Args:
        uri: MLflow's store.
        port: To serve on.

    Raises:
        UsageError: There is no store, it does not answer, the port is taken, or the server ended.
    """
    if uri.startswith(("http://", "https://")):
        print(f"MLflow: {_page(uri, uri)}", flush=True)
        return
    check_store(uri)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UsageError(f"port {port} cannot be used ({error.strerror}): give another --port") from error
    with tempfile.TemporaryFile() as log, _server(uri, port, log) as server:
        if sys.stdout.isatty():
            print("MLflow starts ...", end="\r", flush=True)  # the address takes the place of this
        _await_start(server, port, log)
        print(f"MLflow: {_page(uri, f'http://{HOST}:{port}')} (Ctrl-C ends it)", flush=True)
        server.wait()
        raise UsageError(f"MLflow's server ended: {_tail(log)}")


def _page(uri: str, address: str) -> str:
    """Returns the address of the table of runs of the experiment with the newest run."""
    client = MlflowClient(tracking_uri=uri)
    with store_answers(uri):
        found = client.search_experiments(filter_string=f"tags.`{KIND_TAG}` = '{KIND}'")
        ids = [experiment.experiment_id for experiment in found]
        runs = client.search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1) if ids else []
    return runs_page(address, runs[0].info.experiment_id) if runs else home_page(address)


@contextmanager
def _server(uri: str, port: int, log: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the server for as long as the block runs; Ctrl-C and SIGTERM end the block without an error."""
    command = [sys.executable, "-m", "mlflow", "server", f"--backend-store-uri={uri}", "--workers=1"]
    # Its job executors, seven processes that take a quarter of a core, serve features that are not used here.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A session of its own: Ctrl-C reaches this process alone, which then ends the server without its farewell.
    server = subprocess.Popen(
        [*command, f"--host={HOST}", f"--port={port}"], stdout=log, stderr=log, env=environment, start_new_session=True
    )
    try:
        yield server
    except KeyboardInterrupt:
        print()
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(STOP_SECONDS)
    except ProcessLookupError:
        pass
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _await_start(server: subprocess.Popen[bytes], port: int, log: BinaryIO) -> None:
    opener = build_opener(ProxyHandler({}))  # the address is this machine's
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(f"http://{HOST}:{port}/health", timeout=5):
                return
        except (OSError, HTTPException):
            time.sleep(_POLL_SECONDS)
    raise UsageError(f"MLflow's server did not start: {_tail(log)}")


def _tail(log: BinaryIO) -> str:
    """Returns the last line that the server wrote."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it wrote no reason"
