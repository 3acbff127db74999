"""Runs `python -m trainer` and Ray's commands as a user does, in a project folder of the test's own."""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.support.terminal import Terminal
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
CLUSTER = ["bash", "configs/deploy/cluster.sh"]
MARK = "CLIPSTREAM_TEST_MARK"
TINY = {
    "global_batch": 8,
    "log_every_steps": 1,
    "loader_workers": 0,
    "threads_per_worker": 1,
    "view": {"short_side_px": 32, "size_px": 32},
    "model": {"backbone": "narrow", "width": 8, "weights": "none", "hidden_size": 16, "dropout": 0.0},
}


@dataclass(frozen=True)
class Ended:
    code: int
    log: str


@dataclass
class Project:
    """A CLIPSTREAM_HOME with tiny shards and a tiny configuration, its processes and its MLflow store."""

    home: Path
    ray_folder: str
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def store(self) -> MlflowClient:
        uri = f"sqlite:///{self.home / 'mlflow.db'}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def start(self, *command: str, cwd: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
        """Starts a command in a process group of its own, as a shell's foreground does."""
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=self._variables() | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def _variables(self) -> dict[str, str]:
        foreign = ("CLIPSTREAM_", "MLFLOW_", "RAY_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        local = {"CLIPSTREAM_HOME": str(self.home), "RAY_TMPDIR": self.ray_folder, MARK: self.mark}
        return clean | local | self.environment

    def train_in_terminal(self, *options: str) -> Terminal:
        """Starts a training in a terminal, where Ctrl-C can be typed."""
        return Terminal([sys.executable, "-m", "trainer", "--config", "tiny.yaml", *options], ROOT, self._variables())

    def run(self, *command: str, cwd: Path = ROOT, **variables: str) -> Ended:
        return ended(self.start(*command, cwd=cwd, **variables))

    def start_training(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-m", "trainer", "--config", "tiny.yaml", *options, **variables)

    def train(self, *options: str, **variables: str) -> Ended:
        return ended(self.start_training(*options, **variables))

    def await_checkpoint(self, run: str, after_step: int = 0) -> None:
        """Waits until a run has a checkpoint of a step above `after_step`."""
        until(lambda: newest_step(self.home, run) > after_step)

    def mlflow_run(self, name: str) -> Run:
        """Returns the one MLflow run of this name."""
        experiment = self.store.get_experiment_by_name("clipstream")
        (run,) = self.store.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
        return run

    def curve(self, name: str, metric: str) -> list[tuple[int, float]]:
        """Returns the (global step, value) points of a run's curve, in the order of the steps, doubled ones too."""
        points = self.store.get_metric_history(self.mlflow_run(name).info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def steps(self, name: str, metric: str) -> list[int]:
        return [step for step, _ in self.curve(name, metric)]

    def alive(self) -> list[psutil.Process]:
        """Returns the processes that this project's commands started, they or theirs, and that still live."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@contextmanager
def project(home: Path, shards: Path) -> Iterator[Project]:
    """A project for as long as the block runs; at its end no process of it may be left."""
    shutil.copytree(shards, home / "shards")
    (home / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    ray_folder = tempfile.mkdtemp(prefix="clipstream-", dir="/tmp")  # a socket's path may have 107 bytes
    made = Project(home, ray_folder)
    try:
        yield made
        until(lambda: not made.alive(), 20)
    finally:
        for process in made.alive():
            process.kill()
        shutil.rmtree(ray_folder, ignore_errors=True)


def newest_step(home: Path, run: str) -> int:
    found = (home / "runs" / run / "checkpoints").glob("step-*")
    return max((int(path.name.partition("-")[2]) for path in found), default=0)


def ended(process: subprocess.Popen[str]) -> Ended:
    try:
        log, _ = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        log, _ = process.communicate()
    print(log)  # shown if the test fails
    return Ended(process.returncode, log)


def ray_job(cluster: Project, *arguments: str, cwd: Path = ROOT) -> Ended:
    """Runs `ray job ...` in a shell that knows the cluster."""
    shell = f". {cluster.home / '.ray' / 'env'}; exec ray job {shlex.join(arguments)}"
    return cluster.run("bash", "-c", shell, cwd=cwd)


def stop_ray_job(cluster: Project, job: str) -> str:
    """Stops a job and returns the status that it ended with.

    It sends what `ray job stop` sends, a command that takes longer to start than a small training takes to end.
    """
    exports = dict(re.findall(r'export (\w+)="?([^"\n]+)', (cluster.home / ".ray" / "env").read_text()))
    headers = {"Authorization": f"Bearer {Path(exports['RAY_AUTH_TOKEN_PATH']).read_text().strip()}"}
    url = f"{exports['RAY_API_SERVER_ADDRESS']}/api/jobs/{job}"

    def status() -> str:
        with urlopen(Request(url, headers=headers), timeout=30) as answer:
            return str(json.load(answer)["status"])

    urlopen(Request(f"{url}/stop", method="POST", headers=headers), timeout=30).close()
    until(lambda: status() in {"STOPPED", "FAILED", "SUCCEEDED"})
    return status()
