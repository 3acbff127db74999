"""A run that cannot succeed is refused before workers start, with one sentence per problem, all at once."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from configs.model import ModelConfig
from configs.section import UsageError
from configs.train import TrainConfig, ViewConfig
from packer.shards.manifest import read_manifest
from tests.support.nodes import ray_nodes
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.s3 import put_folder
from tests.support.training import ROOT, TINY, project
from trainer.driver.preflight import check, model_problems, shared_memory_problems, spread_problems

pytestmark = MLFLOW_WARNINGS

VIEW = ViewConfig(short_side_px=32, size_px=32)


@pytest.fixture
def pack(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of one's own to change, in the home folder."""
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    return shutil.copytree(packed, tmp_path / "shards")


def change(pack: Path, changes: Callable[[dict], object]) -> None:
    manifest = json.loads((pack / "manifest.json").read_text())
    changes(manifest)
    (pack / "manifest.json").write_text(json.dumps(manifest))


def refusals(**values: object) -> list[str]:
    """Returns the lines that a configuration is refused with."""
    try:
        check(TrainConfig(**{"view": VIEW, "global_batch": 8, **values}))
    except UsageError as error:
        return str(error).splitlines()
    return []


def test_a_good_run_passes(pack: Path) -> None:
    assert refusals() == []
    assert not (pack.parent / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (lambda manifest: manifest["splits"].pop("val"), "has no sample in its val split: pack again"),
        (lambda manifest: manifest["splits"]["train"].update(num_samples=0), "has no sample in its train split"),
        (lambda manifest: manifest.update(class_names=["a"]), "holds one class (a): a classifier needs at least two"),
        (lambda manifest: manifest.update(samples_sha256="0" * 64), "samples.parquet is not the index of this pack"),
        (lambda manifest: manifest.update(format_version=9), "has format 9"),
        (lambda manifest: manifest.pop("splits"), "is damaged"),
        (
            lambda manifest: manifest["config"]["clip"].update(num_frames=1),
            "model.temporal_shift and model.differences need 2",
        ),
        (
            lambda manifest: manifest["config"]["clip"].update(short_side_px=24),
            "view.size_px (32) is more than the 24 px that",
        ),
    ],
)
def test_a_pack_that_does_not_fit_is_refused(pack: Path, changes: Callable[[dict], object], sentence: str) -> None:
    change(pack, changes)
    (line,) = refusals(model=ModelConfig(temporal_shift=True))
    assert sentence in line


def test_frames_stored_at_their_own_size_fit_every_view(pack: Path) -> None:
    change(pack, lambda manifest: manifest["config"]["clip"].update(short_side_px=0))
    assert refusals() == []


def test_the_index_of_another_pack_is_refused(pack: Path) -> None:
    with (pack / "samples.parquet").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))
    (line,) = refusals()
    assert f"{pack}/samples.parquet is not the index of this pack (its sha256 differs from the manifest's)" in line
    (pack / "samples.parquet").unlink()
    (line,) = refusals()
    assert "samples.parquet cannot be read (No such file or directory): run the packer again" in line


@pytest.mark.integration
def test_a_cache_that_cannot_serve_is_refused(pack: Path, bucket: str, tmp_path: Path) -> None:
    (line,) = refusals(cache="cache")
    assert f"cache ({tmp_path}/cache) is for shards at an address, not for {pack}: leave --cache out" in line
    put_folder(pack, f"{bucket}/shards")
    far = {"shards": f"{bucket}/shards", "cache": "cache"}
    assert refusals(**far, cache_bytes=10**6) == []
    (line,) = refusals(**far, cache_bytes=50_000, shuffle_block=3)
    assert re.search(r"cache_bytes \(50000\) must be at least \d+, the 3 largest shards, which are read at the", line)
    (line,) = refusals(**(far | {"cache": "shards/manifest.json"}))
    assert f"cache ({pack}/manifest.json) cannot be written" in line


def test_what_rays_controller_imports_of_ours_is_light() -> None:
    """It comes before the workers, on their way to the first step."""
    code = (
        "import sys, trainer.worker.entry, trainer.driver.failure\n"
        "assert not {'torch', 'mlflow', 'torchvision'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_what_fails_together_is_told_together_without_torch_and_ray(pack: Path) -> None:
    change(pack, lambda manifest: manifest.update(class_names=["a"], samples_sha256="0" * 64))
    (pack.parent / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    code = """
import sys
from trainer.__main__ import main
assert main(["--config", "tiny.yaml", "--num-workers", "9"]) == 2
assert not {"torch", "ray", "mlflow", "matplotlib"} & sys.modules.keys()
"""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nothing listens there
        store = f"http://127.0.0.1:{closed.getsockname()[1]}"
        environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("python -m trainer: ")]
    for line, part in zip(
        lines,
        [
            "--num-workers (9) must be at most --global-batch (8), one clip each: give --num-workers 8 or",
            "holds one class (a)",
            "is not the index of this pack",
            f"the MLflow server at {store} does not answer (",
        ],
        strict=True,
    ):
        assert part in line


class Answer(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code if self.path == "/deep/health" else 500)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def server(code: int) -> Iterator[str]:
    handler = type("Handler", (Answer,), {"code": code})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://user:secret@127.0.0.1:{http.server_port}/deep/"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(("code", "answers"), [(200, True), (401, True), (404, True), (503, False)])
def test_a_server_that_answers_at_all_is_there(
    pack: Path, monkeypatch: pytest.MonkeyPatch, code: int, answers: bool
) -> None:
    with server(code) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        lines = refusals()
    assert bool(lines) is not answers
    assert "secret" not in str(lines)


def test_a_server_that_says_nothing_is_not_waited_for(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        (line,) = refusals()
    assert "does not answer (timed out): start it, or unset MLFLOW_TRACKING_URI" in line


def test_a_store_that_cannot_be_written_is_refused(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{pack / 'manifest.json' / 'mlflow.db'}")
    (line,) = refusals()
    assert "cannot be written" in line
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{pack / 'new' / 'mlflow.db'}")
    assert refusals() == []


def test_checkpoints_need_room(packed: Path, tmp_path: Path) -> None:
    def problems(hidden_size: int) -> list[str]:
        config = TrainConfig(model=ModelConfig(backbone="narrow", hidden_size=hidden_size))
        return list(model_problems(config, read_manifest(packed), tmp_path / "runs/one"))

    assert problems(16) == []
    (line,) = problems(400_000)
    # 4 checkpoints of 3 x 4 bytes for each of an LSTM's 4 x 400,000 x 400,000 weights, and of some more
    assert "free, the checkpoints of this model take 3.07e+04 GB: make room" in line


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="shared memory is not a folder here")
def test_batches_need_shared_memory() -> None:
    def problems(global_batch: int, num_workers: int, num_loader_workers: int) -> list[str]:
        clip_bytes = 4 * 3 * VIEW.size_px**2
        return list(shared_memory_problems(global_batch, clip_bytes, num_workers, num_loader_workers))

    assert problems(8, 1, 2) == []
    assert problems(10**12, 1, 0) == []
    (line,) = problems(10**9, 4, 2)
    # 2 loaders of 4 workers with 2 processes, of 2 batches each and one in use, 250,000,000 clips of 12,288 bytes each
    assert "the batches of 4 workers with loader_workers (2) each take 1.23e+05 GB: lower --loader-workers" in line
    (fewer,) = problems(10**9, 4, 1)
    assert "take 7.37e+04 GB" in fewer


def test_paths_of_one_machine_do_not_serve_a_cluster(tmp_path: Path) -> None:
    def problems(store: str, **values: object) -> list[str]:
        config = TrainConfig(**{"shards": str(tmp_path), "runs": str(tmp_path), **values})
        return [
            line.partition(" may not be on the cluster's other nodes")[0] for line in spread_problems(config, store)
        ]

    store = "sqlite:////x/mlflow.db"
    assert problems(store) == [f"shards ({tmp_path})", f"runs ({tmp_path})", f"the MLflow store at {store}"]
    assert problems("http://server", shards="s3://bucket/shards") == [f"runs ({tmp_path})"]
    assert problems(store, shared_filesystem=True) == []


@pytest.mark.integration
def test_a_cluster_of_two_nodes_is_seen(packed: Path, tmp_path: Path) -> None:
    with project(tmp_path, packed) as made, ray_nodes(1, 1) as nodes:
        variables = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        large = ["--global-batch", str(10**10), "--loader-workers", "1"]
        refused = made.train("--run", "far", *large, **variables)
        few = made.train("--run", "far", "--shared-filesystem", "--num-workers", "3", **variables)
        lines = [line for line in refused.log.splitlines() if line.startswith("python -m trainer: ")]
        assert refused.code == few.code == 2
        shown = [line.split("(")[0] for line in lines[:2]]
        assert shown == ["python -m trainer: --shards ", "python -m trainer: --runs "]
        assert "mlflow.db may not be on the cluster's other nodes" in lines[2]
        assert "the batches of 1 workers with --loader-workers (1) each take" in lines[3]
        assert not (made.home / "mlflow.db").exists()
        assert "may not be" not in few.log
        assert "--num-workers (3) must be at most 2, the cluster's CPUs" in few.log
