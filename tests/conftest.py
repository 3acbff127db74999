"""What every test shares: a scrubbed environment, the data for tests, the system's programs."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from packer.__main__ import main
from tests.support.videos import write_classes

if TYPE_CHECKING:  # torch takes seconds, which tests of the packer need not
    from tests.support.runs import MakeSpec
    from trainer.worker.outcome import Outcome
    from trainer.worker.spec import JobSpec


def pytest_configure() -> None:
    """Lets the programs that tests start hear Ctrl-C, even if the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


_KEPT = {"CLIPSTREAM_TEST_DATA", "CLIPSTREAM_REQUIRE_SYSTEM"}


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the settings of whoever runs it, nor what libraries set while another test ran."""
    for name in os.environ:
        if name.startswith(("CLIPSTREAM_", "MLFLOW_", "RAY_")) and name not in _KEPT:
            monkeypatch.delenv(name)
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        del os.environ[name]  # mlflow.set_tracking_uri sets MLFLOW_TRACKING_URI for child processes, for one


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real videos that CLIPSTREAM_TEST_DATA names."""
    folder = os.environ.get("CLIPSTREAM_TEST_DATA")
    if not folder:
        pytest.skip("CLIPSTREAM_TEST_DATA is not set: it names the folder of real videos")
    return Path(folder)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pack of two classes, 4 frames of 32 x 32 per clip, whose shards are of different sizes; copy to change.

    The first number that a clip's frames show is a multiple of 6 and names the clip.
    """
    folder = tmp_path_factory.mktemp("packed")
    data = write_classes(folder / "data", {"a": 17, "b": 14}, num_frames=6)
    options = ["--workers=1", "--clip.num-frames=4", "--clip.short-side-px=32", "--shards.max-samples=3"]
    assert main([str(data), str(folder / "shards"), *options]) == 0
    return folder / "shards"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: for models as small as a test's, more only wait for each other."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def make_spec(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> "MakeSpec":
    """Makes runs of `packed` in one MLflow store."""
    from tests.support.runs import spec_maker

    return spec_maker(tmp_path_factory.mktemp("training"), packed)


@pytest.fixture(scope="module")
def whole_run(make_spec: "MakeSpec") -> "tuple[JobSpec, Outcome]":
    """A run that nothing interrupted, and its outcome."""
    from tests.support.runs import train_on_one_thread

    spec = make_spec()
    return spec, train_on_one_thread(spec)


@pytest.fixture(scope="session")
def champion_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an MLflow store with a champion, which answers how bright a video is; not to be changed."""
    from tests.support.registry import register

    folder = tmp_path_factory.mktemp("champion")
    register(folder)
    return folder


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running S3 server, as environment variables."""
    from tests.support.s3 import s3_server

    with s3_server(tmp_path_factory.mktemp("s3") / "log") as environment:
        yield environment


@pytest.fixture
def bucket(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a new bucket, which this test and the processes that it starts can reach."""
    import fsspec

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"
