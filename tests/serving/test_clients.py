"""`POST /v1/predict` as real clients send it: curl, requests, and the bytes of a browser's form."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from configs.serve import ServeConfig
from tests.support.programs import system_program
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import ask, form, served
from tests.support.videos import write_video

pytestmark = MLFLOW_WARNINGS

LARGE_BYTES = 2 * 2**20
"""Above 1 MiB curl asks by `Expect: 100-continue` before it sends."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to send."""
    folder = tmp_path_factory.mktemp("folder")
    video = write_video(folder / "clip.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10, fps=10).read_bytes()
    (folder / "large.mp4").write_bytes(video + LARGE_BYTES.to_bytes(4, "big") + b"free" + bytes(LARGE_BYTES - 8))
    (folder / "odd;\"' ü\n.mp4").write_bytes(video)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def port(champion_store: Path) -> Iterator[int]:
    config = ServeConfig(tracking_uri=store_uri(champion_store), allow_unauthenticated=True, max_files=3)
    with served(config) as port:
        yield port


@pytest.fixture
def curl(folder: Path, port: int) -> Callable[..., tuple[int, Any]]:
    def curl(*options: str) -> tuple[int, Any]:
        """Returns the status and the JSON."""
        url = f"http://127.0.0.1:{port}/v1/predict?top_k=1"
        command = [
            system_program("curl"),
            "--silent",
            "--max-time",
            "60",
            "--write-out",
            "\n%{http_code}",
            *options,
            url,
        ]
        output = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
        body, _, status = output.rpartition("\n")
        return int(status), json.loads(body or "null")

    return curl


def outcome(answer: dict[str, Any]) -> str | list[str]:
    """Returns the first class or the error's code, of each file where there are several."""
    if "results" in answer:
        return [str(outcome(result)) for result in answer["results"]]
    return str(answer["error"]["code"] if "error" in answer else answer["predictions"][0]["class"])


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        ("--data-binary @clip.mp4", 200, "bright"),
        ("--data-binary @large.mp4", 200, "bright"),
        ("--data-binary @large.mp4 --http1.0", 200, "bright"),
        ("-X POST -T clip.mp4", 200, "bright"),
        ("-X POST -T large.mp4 -H Transfer-Encoding:chunked", 200, "bright"),
        ("-T clip.mp4", 405, "method_not_allowed"),
        ("-F file=@clip.mp4", 200, "bright"),
        ("-F file=@large.mp4;type=text/plain;filename=/etc/passwd", 200, "bright"),
        ("-F file=@clip.mp4 -F file=@notes.txt -F file=@empty.mp4", 200, ["bright", "not_a_video", "empty_file"]),
        ("-F file=@notes.txt", 422, "not_a_video"),
        ("-F file=@empty.mp4", 400, "empty_file"),
        ("-F file=@empty.mp4 -F file=@empty.mp4", 200, ["empty_file", "empty_file"]),
        ("-F file=<notes.txt", 400, "bad_form"),
        ("-F file=@clip.mp4 -F top_k=1", 400, "bad_form"),
        ("-F video=@clip.mp4", 400, "bad_form"),
        ("-F file=@clip.mp4 -F file=@clip.mp4 -F file=@clip.mp4 -F file=@clip.mp4", 400, "bad_form"),
        ("-d {} -H Content-Type:application/json", 415, "unsupported_media_type"),
        ("-X POST", 400, "empty_body"),
        ("-X OPTIONS", 405, "method_not_allowed"),
    ],
)
def test_curl(curl: Callable[..., tuple[int, Any]], options: str, status: int, expected: str | list[str]) -> None:
    got_status, answer = curl(*options.split())
    assert (got_status, outcome(answer)) == (status, expected)


def test_curl_asks_for_the_head_alone(curl: Callable[..., tuple[int, Any]]) -> None:
    assert curl("--head", "--output", "/dev/null") == (405, None)


def test_requests(folder: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1/predict"
    video = (folder / "clip.mp4").read_bytes()
    odd = next(folder.glob("odd*"))
    with requests.Session() as session, odd.open("rb") as first, (folder / "notes.txt").open("rb") as second:
        chunks = (video[start : start + 1000] for start in range(0, len(video), 1000))
        assert outcome(session.post(url, data=chunks).json()) == "bright"
        assert outcome(session.post(url, files={"file": first}).json()) == "bright"
        first.seek(0)
        both = [("file", first), ("file", second)]
        assert outcome(session.post(url, files=both).json()) == ["bright", "not_a_video"]


@pytest.mark.parametrize(
    "file_name", [b"", b"\xff\xfe.mp4", "ü;\N{PILE OF POO}.mp4".encode(), b"%22%0D%0A.mp4", b"a" * 3000]
)
@pytest.mark.parametrize("charset", ["", "; charset=no-such"])
def test_no_name_of_a_file_matters(port: int, folder: Path, file_name: bytes, charset: str) -> None:
    edge = b"----WebKitFormBoundaryx6Sx5hBpCvS0jn7A"
    head = b'Content-Disposition: form-data; name="file"; filename="' + file_name + b'"\r\nContent-Type: video/mp4'
    video = (folder / "clip.mp4").read_bytes()
    body = b"--" + edge + b"\r\n" + head + b"\r\n\r\n" + video + b"\r\n--" + edge + b"--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={edge.decode()}{charset}"}
    reply = ask(port, "POST", "/v1/predict", body, headers)
    assert outcome(reply.json) == "bright"


@pytest.mark.parametrize("charset", ["undefined", "utf-16", "idna", "zip"])
def test_a_charset_that_fits_nothing_is_refused(port: int, charset: str) -> None:
    body, headers = form(b"x")
    headers["Content-Type"] += f"; charset={charset}"
    assert ask(port, "POST", "/v1/predict", body, headers).status in {400, 422}


def test_a_form_of_very_many_fields_is_refused(port: int) -> None:
    body, headers = form(*[b""] * 50_000, field="other")
    reply = ask(port, "POST", "/v1/predict", body, headers)
    assert (reply.status, reply.code) == (400, "bad_form")


@pytest.mark.parametrize("top_k", ["0", "-1", "1.5", "many", "", "1e3", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_a_number_of_classes_that_is_none_is_refused(port: int, top_k: str) -> None:
    reply = requests.post(f"http://127.0.0.1:{port}/v1/predict", params={"top_k": top_k}, data=b"x")
    assert (reply.status_code, outcome(reply.json())) == (422, "bad_parameter")


@pytest.mark.parametrize("top_k", ["1000", str(10**30)])
def test_more_classes_than_there_are_are_all_of_them(port: int, folder: Path, top_k: str) -> None:
    reply = ask(port, "POST", f"/v1/predict?top_k={top_k}", (folder / "clip.mp4").read_bytes())
    assert len(reply.json["predictions"]) == 3
