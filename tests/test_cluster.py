"""A pack on a Ray cluster has the bytes of a local one, and a video that kills its decoder costs itself alone."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.packs import assert_same_pack, command, run
from tests.training import until
from tests.videos import write_classes

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
OPTIONS = ["--clip.num-frames=2", "--clip.short-side-px=16", "--shards.max-samples=3", "--limits.timeout-seconds=2"]


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment that reaches a Ray cluster of two CPUs, of the test's own."""
    folder = tempfile.mkdtemp(prefix="clipstream-", dir="/tmp")  # a socket's path may have 107 bytes
    gcs, dashboard, agent, client = free_ports(4)
    token = Path(folder) / "token"
    token.write_text(secrets.token_hex(32))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path),
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    start += [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    start += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--disable-usage-stats"]
    with (Path(folder) / "log").open("wb") as log:
        head = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: "Ray runtime started" in (Path(folder) / "log").read_text())
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    finally:
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        head.terminate()
        for process in psutil.wait_procs(processes, timeout=20)[1]:
            process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_bytes_are_those_of_a_local_pack(cluster: dict[str, str], tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 8, "b": 7}, 4)
    (data / "b/broken.mp4").write_bytes(bytes(2000))
    assert run(data, tmp_path / "local", *OPTIONS) in {0, 1}
    arguments = [data, tmp_path / "spread", *OPTIONS, "--ray", cluster["RAY_ADDRESS"]]
    done = subprocess.run(command(arguments), env=cluster, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr
    assert_same_pack(tmp_path / "spread", tmp_path / "local")
    assert "15 packed, 1 rejected" in done.stdout


def test_no_cluster_is_said(cluster: dict[str, str], tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 3, "b": 3}, 4)
    (port,) = free_ports(1)
    arguments = [data, tmp_path / "shards", *OPTIONS, "--ray", f"127.0.0.1:{port}"]
    done = subprocess.run(command(arguments), env=cluster, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"no Ray cluster answers at 127.0.0.1:{port} (--ray)" in done.stderr
    assert "Traceback" not in done.stderr


def test_ray_is_loaded_for_a_cluster_alone() -> None:
    code = "import sys, packer.run, packer.prepare; assert not {'ray', 'fsspec', 's3fs'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
