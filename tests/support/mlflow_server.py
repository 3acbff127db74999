"""A real `mlflow server`, which tests stop and start."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

from tests.support.ports import free_ports
from tests.support.registry import store_uri
from tests.support.waiting import until


class Server:
    """`mlflow server` over the SQLite store in a folder, with its files there too, or over another store."""

    def __init__(self, folder: Path, store: str | None = None, artifacts: list[str] | None = None) -> None:
        self.folder = folder
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        self._command += [f"--backend-store-uri={store or store_uri(folder)}"]
        self._command += artifacts or [f"--artifacts-destination={folder / 'artifacts'}"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers)

    def stop(self) -> None:
        """Ends the server as a machine that goes away does."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False
