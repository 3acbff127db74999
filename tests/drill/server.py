"""A real `python -m serve` over a real model in a real store, under load from a process of its own."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import psutil

from configs.model import ModelConfig
from configs.pack import ClipConfig
from configs.train import ViewConfig
from tests.support.load import Load, read_outcomes
from tests.support.ports import free_ports
from tests.support.processes import decoders, replicas
from tests.support.registry import store_uri
from tests.support.serving import Reply, ask
from tests.support.training import Project
from tests.support.videos import write_numbered_video
from tests.support.waiting import until
from trainer.model.cnn_rnn import CnnRnn
from trainer.model.contract import ModelContract
from trainer.tracking.registry import Registry

MODEL_NAME = "clipstream"
START_SECONDS = 120.0
RECOVERY_SECONDS = 90.0
QUIET_SECONDS = 20.0
WARM_SECONDS = 3.0
CONSTANT_SHARE = 0.4
"""Constant load, of what a closed loop of `CAPACITY_CLIENTS` gets answered."""
CAPACITY_CLIENTS = 4


def register_models(store: Path, num_versions: int = 2) -> None:
    """Registers the same CNN-RNN (ResNet-18, LSTM, random weights; 8 frames of 64 px) as several versions."""
    import mlflow

    registry = Registry(store_uri(store), MODEL_NAME)
    experiment = registry.client.create_experiment("drill", artifact_location=(store / "artifacts").as_uri())
    mlflow.set_tracking_uri(registry.uri)
    run_id = registry.client.create_run(experiment).info.run_id
    contract = ModelContract(
        class_names=("dark", "middle", "bright"),
        clip=ClipConfig(num_frames=8, short_side_px=64),
        view=ViewConfig(short_side_px=64, size_px=64),
        manifest_sha256="0" * 64,
        val_sha256="0" * 64,
        select_by="macro_f1",
        val_metric=0.5,
        code_version="drill",
    )
    model = CnnRnn(ModelConfig(weights="none"), num_classes=3, num_frames=8).eval()
    uri = registry.export(model, run_id, contract)
    for _ in range(num_versions):
        registry.promote(registry.register(uri, run_id, contract))


class BackgroundLoad:
    """`python -m tests.support.load` until it is stopped."""

    def __init__(self, url: str, video: Path, *options: str) -> None:
        self._out = video.with_suffix(".jsonl")
        command = [sys.executable, "-m", "tests.support.load", url, str(video), f"--out={self._out}", *options]
        self.start = time.monotonic()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def stop(self) -> Load:
        """Returns what came of all requests once the last is answered."""
        self._process.send_signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> Load:
        """Returns the same of a load that ends by itself."""
        assert self._process.wait(180) == 0
        return Load(read_outcomes(self._out), time.monotonic() - self.start)


class Server:
    """A served application as its clients and its machine see it."""

    def __init__(self, project: Project, port: int) -> None:
        self.project = project
        self.port = port
        self.video = write_numbered_video(project.home / "video.mp4", 50, height_px=240, width_px=320)

    def get(self, path: str) -> Reply:
        return ask(self.port, "GET", path)

    def post(self) -> Reply:
        return ask(self.port, "POST", "/v1/predict", self.video.read_bytes())

    def is_ready(self) -> bool:
        with suppress(OSError):
            return self.get("/readyz").status == 200
        return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/predict"

    @cached_property
    def capacity(self) -> float:
        """Videos per second that a closed loop gets answered."""
        self.closed_loop(CAPACITY_CLIENTS, WARM_SECONDS)
        return self.closed_loop(CAPACITY_CLIENTS, 2 * WARM_SECONDS).throughput

    def closed_loop(self, concurrency: int, seconds: float) -> Load:
        return self.background(f"--concurrency={concurrency}", f"--seconds={seconds}").ended()

    def open_loop(self, rate: float, seconds: float) -> Load:
        return self.background(f"--rate={rate}", f"--seconds={seconds}").ended()

    def constant_load(self) -> BackgroundLoad:
        load = self.background(f"--rate={CONSTANT_SHARE * self.capacity}")
        time.sleep(WARM_SECONDS)
        return load

    def background(self, *options: str) -> BackgroundLoad:
        return BackgroundLoad(self.url, self.video, *options)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Returns the processes of a deployment, ModelReplica or Gateway, the oldest first."""
        return replicas(deployment, self.project.alive())

    def models(self) -> list[psutil.Process]:
        """Returns the processes of the models, told by the memory that they share with their replicas."""
        others = self.replicas("ModelReplica")
        return [one for one in self.project.alive() if one not in others and "memfd:batch" in _maps(one)]

    def decoders(self) -> list[psutil.Process]:
        return decoders(self.project.alive())


class ServeCommand(Server):
    """`python -m serve`."""

    def __init__(self, project: Project, *options: str, **variables: str) -> None:
        (port,) = free_ports(1)
        super().__init__(project, int(port))
        command = [sys.executable, "-m", "serve", "--port", port, "--alias-poll-seconds", "1", *options]
        self.log = project.home / "serve.log"  # a pipe that nobody reads would stop the server once it is full
        self.process = project.start("bash", "-c", f"exec {shlex.join(command)} >{self.log} 2>&1", **variables)


@contextmanager
def served(project: Project, *options: str, ready: bool = True, **variables: str) -> Iterator[ServeCommand]:
    """Serves for as long as the block runs, then stops as `kill` does; no process may be left."""
    server = ServeCommand(project, *options, **variables)
    try:
        if ready:
            until(lambda: server.is_ready() or server.process.poll() is not None, START_SECONDS)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(180)
        print(server.log.read_text(), file=sys.stderr)
        until(lambda: not project.alive(), 30)


def _maps(process: psutil.Process) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/maps").read_text()
    return ""
