"""A real S3-compatible server for tests: Moto's, in a process of its own, which every process reaches over HTTP."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from tests.support.ports import free_ports

REGION = "us-east-1"


@contextmanager
def s3_server(log: Path) -> Iterator[dict[str, str]]:
    """Yields the environment under which s3:// leads to a new, empty server."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            _wait_for(port, process, log)
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # they keep the address of an earlier server
            yield {
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": REGION,
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            process.kill()
            fsspec.get_filesystem_class("s3").clear_instance_cache()


def put_folder(folder: Path, url: str) -> None:
    """Copies a folder's files to below an address."""
    system, root = fsspec.filesystem("s3"), url.removeprefix("s3://")  # url_to_fs would split names at ::
    for path in filter(Path.is_file, folder.rglob("*")):
        system.put_file(str(path), f"{root}/{path.relative_to(folder)}")


def get_folder(url: str, folder: Path) -> Path:
    """Copies what lies below an address to a folder."""
    system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    for name in system.find(root):
        path = folder / name.removeprefix(f"{root}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(name, str(path))
    return folder


def _wait_for(port: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()}")
