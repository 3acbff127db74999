"""A Ray cluster of the test's own, of as many nodes as wanted, each a process group that can be killed as a whole."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.ports import free_ports
from tests.support.processes import train_workers
from tests.support.training import ROOT
from tests.support.waiting import until


class Nodes:
    """Nodes on this machine; `environment` reaches their cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._starting = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path),
        }
        self._gcs, self._dashboard, self._client = free_ports(3)
        self.environment = self._starting | {"RAY_ADDRESS": f"127.0.0.1:{self._gcs}"}

    def start_head(self, num_cpus: int) -> None:
        options = ["--head", f"--port={self._gcs}", f"--temp-dir={self._folder}", "--dashboard-host=127.0.0.1"]
        self._start(
            num_cpus, *options, f"--dashboard-port={self._dashboard}", f"--ray-client-server-port={self._client}"
        )

    def add(self, num_cpus: int) -> None:
        """Starts a further node."""
        self._start(num_cpus, f"--address=127.0.0.1:{self._gcs}", "--min-worker-port=0", "--max-worker-port=0")

    def train_workers(self) -> list[psutil.Process]:
        """Returns the training workers that run on the nodes."""
        started = [one for process in self._processes for one in psutil.Process(process.pid).children(recursive=True)]
        return train_workers(started)

    def kill_newest(self) -> None:
        """Takes the newest node away, as a machine that loses its power."""
        process = self._processes.pop()
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.wait()

    def stop(self) -> None:
        while self._processes:
            process = self._processes.pop()
            tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            process.terminate()
            for one in psutil.wait_procs(tree, timeout=20)[1]:
                one.kill()
            process.wait()

    def _start(self, num_cpus: int, *options: str) -> None:
        (agent,) = free_ports(1)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={num_cpus}", *options]
        command += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
        path = self._folder / f"log-{len(list(self._folder.glob('log-*')))}"
        with path.open("wb") as log:
            process = subprocess.Popen(command, env=self._starting, stdout=log, stderr=log, start_new_session=True)
        self._processes.append(process)
        until(lambda: "Ray runtime started" in path.read_text())


@contextmanager
def ray_nodes(*num_cpus: int) -> Iterator[Nodes]:
    """A cluster of nodes of so many CPUs for as long as the block runs; the first one is the head."""
    folder = Path(tempfile.mkdtemp(prefix="clipstream-", dir="/tmp"))  # a socket's path may have 107 bytes
    nodes = Nodes(folder)
    try:
        nodes.start_head(num_cpus[0])
        for number in num_cpus[1:]:
            nodes.add(number)
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)
