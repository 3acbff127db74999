"""The SQLite store of MLflow: every process that sees it sees it whole, whatever happens while it is created."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from configs.section import UsageError
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.waiting import until
from trainer.tracking.compare import compare
from trainer.tracking.registry import Registry
from trainer.tracking.store import create_store, is_absent

pytestmark = MLFLOW_WARNINGS

CREATE = """
import sys
from trainer.tracking.store import create_store
print("ready", flush=True)
input()
create_store(sys.argv[1])
"""


def creator(store: Path) -> subprocess.Popen[str]:
    """Starts a process that creates the store at `store` once it reads a line."""
    command = [sys.executable, "-c", CREATE, store_uri(store)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    print(file=process.stdin, flush=True)


def test_processes_that_create_one_store_at_once_all_find_it_whole(tmp_path: Path) -> None:
    uri = store_uri(tmp_path)
    creators = [creator(tmp_path) for _ in range(3)]
    for process in creators:
        begin(process)
    until(lambda: not is_absent(uri), 60)
    experiment = MlflowClient(tracking_uri=uri).create_experiment("seen")  # at once: the others may be at it still
    for process in creators:
        with process:
            assert process.wait(60) == 0
    assert MlflowClient(tracking_uri=uri).get_experiment(experiment).name == "seen"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_store_whose_creation_was_killed_is_created_anew(tmp_path: Path) -> None:
    with creator(tmp_path) as process:
        begin(process)
        until(lambda: any(path.stat().st_size for path in tmp_path.rglob("mlflow.db")), 60)
        process.kill()
    assert is_absent(store_uri(tmp_path))
    create_store(store_uri(tmp_path))
    assert not is_absent(store_uri(tmp_path))
    default = MlflowClient(tracking_uri=store_uri(tmp_path)).get_experiment("0")
    assert (default.name, default.artifact_location) == ("Default", f"{tmp_path}/mlruns/0")


def test_a_store_that_is_there_and_a_servers_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"something")
    create_store(store_uri(tmp_path))
    assert (tmp_path / "mlflow.db").read_bytes() == b"something"
    create_store("http://127.0.0.1:1")


def test_a_store_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be created .*No such file.*MLFLOW_TRACKING_URI"):
        create_store(store_uri(tmp_path / "nowhere"))


def test_a_store_that_grows_too_large_for_the_disk_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); " + CREATE
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run(
            [sys.executable, "-c", limited, store_uri(tmp_path)], input="\n", capture_output=True, text=True, check=True
        )
    *_, last = caught.value.stderr.splitlines()
    assert re.fullmatch(
        r".*UsageError: the MLflow store at sqlite:.* cannot be created \(disk I/O error\): make room.*", last
    )
    assert not list(tmp_path.iterdir())


def test_commands_that_only_read_create_no_store(tmp_path: Path) -> None:
    for read in (
        lambda: compare(store_uri(tmp_path), ["one", "two"]),
        lambda: Registry(store_uri(tmp_path), "m").promote("1"),
    ):
        with pytest.raises(UsageError, match="there is no MLflow store"):
            read()
    assert not list(tmp_path.iterdir())


def test_a_store_is_created_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(made: Path, path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what link(2) says on FAT

    monkeypatch.setattr(os, "link", refuse)
    create_store(store_uri(tmp_path))
    assert not is_absent(store_uri(tmp_path))  # before MLflow is asked, which would create it
    default = MlflowClient(tracking_uri=store_uri(tmp_path)).get_experiment("0")
    assert (default.name, default.artifact_location) == ("Default", f"{tmp_path}/mlruns/0")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_settings_behind_a_stores_path_are_no_part_of_it(tmp_path: Path) -> None:
    create_store(store_uri(tmp_path))
    assert not is_absent(f"{store_uri(tmp_path)}?timeout=60")
    assert is_absent(f"{store_uri(tmp_path / 'other')}?timeout=60")
