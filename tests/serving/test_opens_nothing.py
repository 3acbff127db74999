"""Files that name other files and addresses: nobody comes to the address, and nobody opens the file."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.serve import ServeConfig
from tests.support.bombs import box, ebml, encoded, in_header, matroska
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import ask, form, served

pytestmark = MLFLOW_WARNINGS


@dataclass(frozen=True)
class Canaries:
    """What must stay untouched: a server, and a pipe that has the name of a video."""

    listener: socket.socket
    pipe: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/video.mp4"

    def assert_untouched(self) -> None:
        with pytest.raises(BlockingIOError):
            self.listener.accept()
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):  # nobody has the pipe open to read
            os.close(os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def canaries(tmp_path: Path) -> Iterator[Canaries]:
    pipe = tmp_path / "canary.mp4"
    os.mkfifo(pipe)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield Canaries(listener, pipe)


@pytest.fixture(scope="module")
def port(champion_store: Path) -> Iterator[int]:
    config = ServeConfig(tracking_uri=store_uri(champion_store), allow_unauthenticated=True, deadline_seconds=20)
    with served(config) as port:
        yield port


TEXTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "hls-key": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:9,\na.ts\n',
    "hls-variant": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet>'
    "</Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={0}\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{0}\nm=video 9 RTP/AVP 26\n",
    "asx": '<ASX version="3.0"><ENTRY><REF HREF="{}"/></ENTRY></ASX>',
    "asf-reference": "[Reference]\nRef1={}\n",
    "smooth": '<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{}"/></SmoothStreamingMedia>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{}"/></svg>',
    "subtitles": "WEBVTT\n\n00:00.000 --> 00:01.000\n{}\n",
    "protocol": "concat:{0}|{0}",
    "subfile": "subfile,,start,0,end,0,,:{}",
    "name": "{}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_name_others_open_nothing(port: int, canaries: Canaries, name: str) -> None:
    for target in (canaries.url, str(canaries.pipe), f"file:{canaries.pipe}", f"{canaries.pipe.parent}/%d.mp4"):
        reply = ask(port, "POST", "/v1/predict", TEXTS[name].format(target).encode())
        assert (reply.status, reply.code) == (422, "not_a_video")
    canaries.assert_untouched()


def elsewhere(target: str) -> dict[str, bytes]:
    """Returns videos whose headers say that their data lies elsewhere, in each way that the formats know."""
    name = target.encode()
    path = name + b"\0" * (len(name) % 2)
    alias = bytes(10) + b"\0" * 28 + bytes(12) + b"\0" * 64 + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    alias += struct.pack(">hh", 2, len(name)) + path + struct.pack(">hh", -1, 0)
    video = encoded(10, 64, 64)
    start = video.index(b"dref") - 4
    entries = {
        "url": box(b"url ", bytes(4), name, b"\0"),
        "urn": box(b"urn ", bytes(4), b"name\0", name, b"\0"),
        "alias": box(b"alis", bytes(4), alias),
        "resource": box(b"rsrc", bytes(4), alias),
    }
    videos = {
        f"reference-{kind}": resized(video, start, box(b"dref", bytes(4), struct.pack(">I", 1), entry))
        for kind, entry in entries.items()
    }
    reference = box(b"rmda", box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(name) + 1), name, b"\0"))
    videos["reference-movie"] = in_header(box(b"rmra", reference))
    linked = ebml("1549A966", ebml("3EB923", bytes(16)), ebml("3E83BB", name), ebml("7384", name))
    videos["linked-segment"] = matroska(linked)
    return videos


def resized(video: bytes, start: int, new: bytes) -> bytes:
    """Returns an MP4 with another box at `start`, and the boxes around it as much larger."""
    (size,) = struct.unpack(">I", video[start : start + 4])
    changed = bytearray(video[:start] + new + video[start + size :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = changed.index(kind) - 4
        (old,) = struct.unpack(">I", changed[at : at + 4])
        changed[at : at + 4] = struct.pack(">I", old + len(new) - size)
    return bytes(changed)


def test_videos_whose_data_lies_elsewhere_open_nothing(port: int, canaries: Canaries) -> None:
    for target in (canaries.url, str(canaries.pipe)):
        for name, video in elsewhere(target).items():
            reply = ask(port, "POST", "/v1/predict", video)
            assert reply.status in {200, 422}, name
            assert reply.status == 200 or reply.code != "timeout"
    canaries.assert_untouched()


def test_no_input_is_a_path_or_an_address(port: int, canaries: Canaries) -> None:
    for target in (canaries.url, str(canaries.pipe)):
        query = f"?url={target}&path={target}&file={target}"
        refused = ask(port, "POST", f"/v1/predict{query}", b"").json["error"]
        assert refused["code"] == "bad_parameter"  # and names what it was given
        headers = {"Content-Location": target, "X-File": target, "X-Sendfile": target}
        assert ask(port, "POST", "/v1/predict", b"", headers).code == "empty_body"
        body, form_headers = form(target.encode())
        assert ask(port, "POST", "/v1/predict", body, form_headers).code == "not_a_video"
        text = body.replace(b'; filename="0.mp4"', b"")  # a text field
        assert ask(port, "POST", "/v1/predict", text, form_headers).code == "bad_form"
        named = body.replace(b"0.mp4", target.encode())
        assert ask(port, "POST", "/v1/predict", named, form_headers).code == "not_a_video"
    canaries.assert_untouched()
