"""A store that fails for a moment costs nothing; one that fails for good stops a pack, and costs no video."""

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from configs.pack import ClipConfig, DecodeLimits
from packer.storage.location import RemotePath, is_inside, is_url, locate
from packer.video.clip import read_clip
from packer.video.container import VideoError
from tests.support.packs import assert_same_pack, run
from tests.support.videos import write_classes


class _Flaky(SimpleHTTPRequestHandler):
    """Fails the first request for every file, and each for `gone.mp4`; knows no ranges."""

    num_requests: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.num_requests[self.path] += 1
        if self.num_requests[self.path] == 1 or self.path.endswith("gone.mp4"):
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    _Flaky.num_requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Flaky, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.integration
def test_videos_of_a_web_server_that_fails_now_and_then(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a b": 4, "c#": 3}, 4)
    (data / "c#/notes.txt").write_text("no video")
    with web_server(tmp_path) as url:
        for source, target in ((f"{url}/data", "remote"), (data, "local")):
            assert run(source, tmp_path / target, "--clip.num-frames=2", "--workers=1") == 0
    assert_same_pack(tmp_path / "remote", tmp_path / "local")


@pytest.mark.integration
def test_a_web_server_that_fails_for_good_stops_the_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data", {"a": 3, "b": 3}, 4)
    (data / "b/video 1.mp4").rename(data / "b/gone.mp4")
    options = ["--clip.num-frames=2", "--workers=1"]
    with web_server(data) as url:
        assert run(url, tmp_path / "shards", *options) == 1
        assert f"{url}/b/gone.mp4 cannot be reached: ClientResponseError: 503" in capsys.readouterr().err
        assert not (tmp_path / "shards/rejected.csv").exists()


def test_a_request_is_tried_again_unless_the_file_is_missing(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 1}, 4)
    (data / "gone.mp4").touch()
    with web_server(data) as url:
        clip = read_clip(f"{url}/a/video%200.mp4", ClipConfig(), DecodeLimits())
        assert clip == read_clip(data / "a/video 0.mp4", ClipConfig(), DecodeLimits())
        with pytest.raises(OSError, match="ClientResponseError: 503"):
            (RemotePath(url, retry_seconds=(0.01, 0.01)) / "gone.mp4").read_bytes()
        assert _Flaky.num_requests["/gone.mp4"] == 3
        with pytest.raises(VideoError, match="the file cannot be read: No such file") as caught:
            read_clip(f"{url}/no.mp4", ClipConfig(), DecodeLimits())
        assert caught.value.reason == "unreadable"
        assert _Flaky.num_requests["/no.mp4"] == 2
        assert RemotePath(f"{url}/a/video%200.mp4").read_range(4, 4) == b"ftyp"


def test_addresses_are_told_from_paths() -> None:
    assert [is_url(name) for name in ("s3://b/x", "s3:/b/x", "/a://b", "x")] == [True, False, False, False]
    assert locate("http://b/x/") == RemotePath("http://b/x")
    assert locate("/a://b") == Path("/a://b")


def test_what_lies_in_a_folder_is_known() -> None:
    assert is_inside(RemotePath("s3://b/data/x"), RemotePath("s3://b/data"))
    assert not is_inside(RemotePath("s3://b/data2"), RemotePath("s3://b/data"))
    assert not is_inside(Path("/b/data"), RemotePath("s3://b/data"))
