"""A pack on a Ray cluster has the bytes of a local one, and a video that kills its decoder costs itself alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import ray_nodes
from tests.support.packs import assert_same_pack, command, run
from tests.support.ports import free_ports
from tests.support.videos import write_classes

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
OPTIONS = ["--clip.num-frames=2", "--clip.short-side-px=16", "--shards.max-samples=3", "--limits.timeout-seconds=2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment that reaches a Ray cluster of two CPUs, of the test's own."""
    with ray_nodes(2) as nodes:
        yield nodes.environment


def test_the_bytes_are_those_of_a_local_pack(cluster: dict[str, str], tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 8, "b": 7}, 4)
    (data / "b/broken.mp4").write_bytes(bytes(2000))
    assert run(data, tmp_path / "local", *OPTIONS) in {0, 1}
    arguments = [data, tmp_path / "spread", *OPTIONS, "--ray", cluster["RAY_ADDRESS"]]
    done = subprocess.run(command(arguments), env=cluster, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr
    assert_same_pack(tmp_path / "spread", tmp_path / "local")
    assert "15 packed, 1 rejected" in done.stdout


def test_no_cluster_is_reported(cluster: dict[str, str], tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 3, "b": 3}, 4)
    (port,) = free_ports(1)
    arguments = [data, tmp_path / "shards", *OPTIONS, "--ray", f"127.0.0.1:{port}"]
    done = subprocess.run(command(arguments), env=cluster, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"no Ray cluster answers at 127.0.0.1:{port} (--ray)" in done.stderr
    assert "Traceback" not in done.stderr


def test_ray_is_imported_only_for_a_cluster() -> None:
    code = "import sys, packer.pack, packer.prepare; assert not {'ray', 'fsspec', 's3fs'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
