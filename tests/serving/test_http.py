"""The HTTP rules, by real requests to the application with a real model, without Ray."""

import base64
import io
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.serve import ServeConfig, UploadLimits
from packer.video.clip import read_clip
from serve.replica.explainer import hidden, mean_colour
from serve.replica.predictor import FramesTHWC, ModelView
from tests.support.registry import CLASS_NAMES, CLIP, MLFLOW_WARNINGS, contract, register, register_again, store_uri
from tests.support.serving import Reply, access_lines, ask, form, served
from tests.support.videos import write_numbered_video, write_video
from tests.support.waiting import until

pytestmark = MLFLOW_WARNINGS

CAP_BYTES = 200_000
EDGE = b"--edge\r\nContent-Disposition: form-data; "
BAD_FORMS = [
    (b"x", "boundary=", "bad_form"),
    (b"x", "boundary=edge", "bad_form"),
    (b"--edge\r\n\r\nx\r\n--edge--\r\n", "boundary=edge", "bad_form"),
    (b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n--edge--\r\n", "boundary=edge", "bad_form"),
    (EDGE + b'name="file"; filename="a.mp4"\r\n\r\nx', "boundary=edge", "bad_form"),
    (EDGE + b'name="file"\r\n\r\n' + b"x" * 150_000 + b"\r\n--edge--\r\n", "boundary=edge", "bad_form"),
    (EDGE + b'name="\xff"\r\n\r\nx\r\n--edge--\r\n', "boundary=edge; charset=idna", "bad_form"),
    (EDGE + b'name="\xff"\r\n\r\nx\r\n--edge--\r\n', "boundary=edge; charset=undefined", "bad_form"),
    (EDGE + b'name="x"\r\n\r\nx\r\n--edge--\r\n', "boundary=edge; charset=hex", "bad_form"),
    ((EDGE + b'name="x"\r\n\r\nx\r\n') * 9 + b"--edge--\r\n", "boundary=edge", "bad_form"),
    (EDGE + b"name=" + b"x" * 100_000 + b"\r\n\r\nx\r\n--edge--\r\n", "boundary=edge", "bad_form"),
    (b"-" * 150_000, "boundary=" + "-" * 60, "empty_body"),
]
"""Bodies, what follows the content type, and the code of the refusal."""
Post = Callable[..., Reply]


def classified(answer: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of an answer that is the same each time."""
    return {name: value for name, value in answer.items() if name != "timing"}


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pictures = [np.full((48, 64, 3), 250, np.uint8)] * 10
    return write_video(tmp_path_factory.mktemp("video") / "bright.mp4", pictures, fps=10).read_bytes()


def config(store: Path, **changes: object) -> ServeConfig:
    values = {"tracking_uri": store_uri(store), "allow_unauthenticated": True, "max_files": 3}
    return ServeConfig.model_validate(values | {"max_body_bytes": CAP_BYTES, "deadline_seconds": 30} | changes)


@pytest.fixture(scope="module")
def port(champion_store: Path) -> Iterator[int]:
    with served(config(champion_store)) as port:
        yield port


@pytest.fixture(scope="module")
def explaining_port(champion_store: Path) -> Iterator[int]:
    # It does not look for a new version: torch cannot load two models at once in one process.
    with served(config(champion_store, explain=True, max_queued=4, alias_poll_seconds=3600)) as port:
        yield port


@pytest.fixture
def post(port: int) -> Post:
    def post(body: object, headers: dict[str, str] | None = None, query: str = "") -> Reply:
        return ask(port, "POST", f"/v1/predict{query}", body, headers)  # type: ignore[arg-type]

    return post


def test_a_raw_body_gives_the_answer(post: Post, bright: bytes) -> None:
    reply = post(bright, {"Content-Type": "application/x-www-form-urlencoded"})  # what plain curl says
    assert reply.status == 200
    answer = reply.json
    assert answer["model"] == {"name": "clipstream", "version": "1"}
    assert [row["class"] for row in answer["predictions"]] == ["bright", "middle", "dark"]
    assert sum(row["probability"] for row in answer["predictions"]) == pytest.approx(1)
    assert answer["clip"] == {
        "num_frames": 10,
        "frame_indices": [0, 3, 6, 9],
        "fps": 10.0,
        "duration_seconds": 1.0,
        "width_px": 64,
        "height_px": 48,
        "decode_road": "needed",
        "damage": [],
    }


def test_an_answer_tells_what_is_wrong_with_its_video(post: Post, tmp_path: Path) -> None:
    whole = write_numbered_video(tmp_path / "whole.webm", 40, codec="libvpx-vp9", options={"g": "5"}).read_bytes()
    assert post(whole).json["clip"]["damage"] == []
    assert "cut_off" in post(whole[: len(whole) // 2]).json["clip"]["damage"]


def test_an_answer_tells_where_its_time_went(post: Post, bright: bytes) -> None:
    post(bright)  # the first video starts the decoder
    before = time.monotonic()
    timing = post(bright).json["timing"]
    seconds = time.monotonic() - before
    assert set(timing) == {"decode_seconds", "queue_seconds", "model_seconds"}
    assert timing["decode_seconds"] > 0
    assert timing["model_seconds"] > 0
    assert timing["queue_seconds"] >= 0
    assert sum(timing.values()) <= seconds


def test_waiting_for_the_decoder_counts_as_queueing(post: Post, bright: bytes, tmp_path: Path) -> None:
    long = write_numbered_video(tmp_path / "long.mp4", 600).read_bytes()
    first, second = post(*form(long, bright)).json["results"]  # for one decoder
    assert second["timing"]["queue_seconds"] >= first["timing"]["decode_seconds"] / 2


def test_a_request_is_logged_with_the_version_and_the_time_of_its_answers(
    post: Post, bright: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    results = post(*form(bright, b"not a video", bright)).json["results"]
    (line,) = access_lines(caplog, 1, "code=not_a_video ")
    values = dict(pair.split("=") for pair in line.split()[1:])
    assert (values["status"], values["code"], values["version"]) == ("200", "not_a_video", "1")
    for stage in ("decode_seconds", "queue_seconds", "model_seconds"):
        total = sum(result["timing"][stage] for result in results if "timing" in result)
        assert float(values[stage]) == pytest.approx(total, abs=1e-4)


def test_the_view_is_what_enters_the_model(post: Post, tmp_path: Path) -> None:
    video = write_numbered_video(tmp_path / "numbers.mp4", 25).read_bytes()
    shown = [base64.b64decode(png) for png in post(video, query="?view=1").json["view"]]
    model = ModelView(contract())
    wanted = model.view(model.pick(read_clip(video, CLIP, UploadLimits())))
    assert np.ptp(wanted) > 100
    assert np.array_equal(np.stack([Image.open(io.BytesIO(png)) for png in shown]), wanted)
    assert {"view", "frames"}.isdisjoint(post(video).json)


def test_top_k_and_frames(post: Post, bright: bytes) -> None:
    answer = post(bright, query="?top_k=1&frames=1").json
    assert [row["class"] for row in answer["predictions"]] == ["bright"]
    assert len(answer["frames"]) == CLIP.num_frames
    assert all(frame.startswith("/9j/") for frame in answer["frames"])  # base64 of a JPEG's first bytes
    assert len(post(bright, query="?top_k=99").json["predictions"]) == len(CLASS_NAMES)


def test_an_explanation_is_what_the_model_says_without_each_frame(
    post: Post, explaining_port: int, tmp_path: Path
) -> None:
    pictures = [np.full((48, 64, 3), level, np.uint8) for level in (250, 250, 100, 200)]
    video = write_video(tmp_path / "dip.mp4", pictures).read_bytes()
    answer = ask(explaining_port, "POST", "/v1/predict?explain=1&top_k=3", video).json
    explanation = answer.pop("explanation")
    assert classified(answer) == classified(post(video, query="?top_k=3").json)
    assert (explanation["class"], explanation["against"]) == ("bright", "middle")
    assert explanation["method"] == "occlusion of single frames"
    assert explanation["seconds"] > 0
    model = ModelView(contract())
    frames = model.view(model.pick(read_clip(video, CLIP, UploadLimits())))
    assert explanation["lead"] == pytest.approx(lead_of_bright(frames), abs=1e-4)
    without = [lead_of_bright(hidden(frames, number, mean_colour(frames))) for number in range(4)]
    weights = explanation["frame_weights"]
    assert weights == pytest.approx([lead_of_bright(frames) - lead for lead in without], abs=1e-4)
    assert weights[2] < -0.5 < 0.2 < weights[0]


def lead_of_bright(frames: FramesTHWC) -> float:
    """Returns by how much `Brightness` prefers bright to middle."""
    mean = float(frames.mean())
    return ((mean - 128) / 64) ** 2 - ((mean - 255) / 64) ** 2


def test_each_of_several_files_is_explained_but_not_more_than_half_of_the_room(
    explaining_port: int, bright: bytes
) -> None:
    body, headers = form(bright, b"not a video")
    good, bad = ask(explaining_port, "POST", "/v1/predict?explain=1", body, headers).json["results"]
    assert len(good["explanation"]["frame_weights"]) == CLIP.num_frames
    assert bad["error"]["code"] == "not_a_video"
    body, headers = form(bright, bright, bright)
    results = ask(explaining_port, "POST", "/v1/predict?explain=1", body, headers).json["results"]
    assert [result.get("error", {}).get("code") for result in results] == [None, None, "overloaded"]


def test_explanations_are_given_only_if_the_operator_allows_them(port: int, explaining_port: int, post: Post) -> None:
    assert ServeConfig().explain is False
    reply = post(b"not even read", query="?explain=1")
    assert (reply.status, reply.code) == (422, "not_explained")
    assert "--explain" in reply.json["error"]["message"]
    told = [ask(address, "GET", "/v1/model").json["explains"] for address in (port, explaining_port)]
    assert told == [False, True]


def test_one_file_of_a_form_is_like_a_raw_body(post: Post, bright: bytes) -> None:
    assert classified(post(*form(bright)).json) == classified(post(bright).json)


def test_of_several_files_a_bad_one_has_an_error_of_its_own(post: Post, bright: bytes) -> None:
    reply = post(*form(bright, b"not a video", b""))
    assert reply.status == 200
    good, bad, empty = reply.json["results"]
    assert classified(good) == classified(post(bright).json)
    assert bad["error"]["code"] == "not_a_video"
    assert empty["error"]["code"] == "empty_file"


@pytest.mark.parametrize(
    ("body", "headers", "query", "status", "code"),
    [
        (b"", {}, "", 400, "empty_body"),
        (*form(), "", 400, "empty_body"),
        (*form(b"x", field="other"), "", 400, "bad_form"),
        (b"x", {"Content-Encoding": "gzip"}, "", 415, "unsupported_encoding"),
        (b"x", {}, "?frames=maybe", 422, "bad_parameter"),
        (b"x", {}, "?top-k=3", 422, "bad_parameter"),
        (*form(b"x", b"x", b"x", b"x"), "", 400, "bad_form"),
        (b"x", {"Content-Type": "multipart/form-data"}, "", 400, "bad_form"),
        *((body, {"Content-Type": f"multipart/form-data; {rest}"}, "", 400, code) for body, rest, code in BAD_FORMS),
        (b"{}", {"Content-Type": "application/json"}, "", 415, "unsupported_media_type"),
        (b"http://127.0.0.1/video.mp4", {"Content-Type": "text/plain"}, "", 415, "unsupported_media_type"),
        (b"not a video", {}, "", 422, "not_a_video"),
        (b"x", {}, "?top_k=0", 422, "bad_parameter"),
        (b"x", {}, "?top_k=many", 422, "bad_parameter"),
        (b"x" * (CAP_BYTES + 1), {}, "", 413, "too_large"),
        (*form(b"x" * CAP_BYTES, b"x" * CAP_BYTES), "", 413, "too_large"),
    ],
    ids=[
        "none",
        "no-file",
        "field",
        "gzip",
        "maybe",
        "unknown",
        "many",
        "no-edge",
        *map(str, range(len(BAD_FORMS))),
        "json",
        "text",
        "bytes",
        "zero",
        "word",
        "large",
        "large-form",
    ],
)
def test_refusals(post: Post, body: bytes, headers: dict[str, str], query: str, status: int, code: str) -> None:
    reply = post(body, headers, query)
    assert (reply.status, reply.code) == (status, code)


def test_a_streamed_body_is_cut_off_at_the_cap(post: Post) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * 2**20:
            sent += 2**16
            yield b"x" * 2**16

    try:
        reply = post(chunks())
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has answered and closed while this side was still sending
    else:
        assert (reply.status, reply.code) == (413, "too_large")
    assert sent < 50 * 2**20


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/docs", 404, "GET /docs: Not Found: GET /openapi.json lists the routes"),
        ("GET", "/v1/predict", 405, "GET /v1/predict: Method Not Allowed: use POST"),
        ("PUT", "/v1/predict", 405, "PUT /v1/predict: Method Not Allowed: use POST"),
        ("OPTIONS", "/v1/predict", 405, "OPTIONS /v1/predict: Method Not Allowed: use POST"),
        ("POST", "/healthz", 405, "POST /healthz: Method Not Allowed: use GET"),
    ],
)
def test_unknown_paths_and_methods_are_json_too(port: int, method: str, path: str, status: int, sentence: str) -> None:
    reply = ask(port, method, path)
    assert (reply.status, reply.json["error"]["message"]) == (status, sentence)
    assert reply.headers["Allow"] == (sentence.rsplit(" ", 1)[1] if status == 405 else None)


def test_the_model_is_told(port: int) -> None:
    assert ask(port, "GET", "/v1/model").json["class_names"] == list(CLASS_NAMES)


def test_a_body_that_does_not_arrive_is_given_up(champion_store: Path) -> None:
    with (
        served(config(champion_store, deadline_seconds=0.5)) as port,
        socket.create_connection(("127.0.0.1", port)) as link,
    ):
        link.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"x-request-timeout-seconds: 3600\r\n\r\nhalf"
        )
        link.settimeout(30)
        reply = link.recv(10_000)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in reply.lower()


def test_a_video_that_outlasts_the_deadline_is_given_up(champion_store: Path, tmp_path: Path) -> None:
    long = write_numbered_video(tmp_path / "long.mp4", 3000).read_bytes()
    with served(config(champion_store, deadline_seconds=0.2, max_body_bytes=2**24)) as port:
        reply = ask(port, "POST", "/v1/predict", long)
    assert (reply.status, reply.code) == (503, "deadline_exceeded")
    assert reply.headers["Retry-After"]


def test_above_the_queues_bound_the_answer_is_503_at_once(champion_store: Path, bright: bytes) -> None:
    with served(config(champion_store, max_queued=1)) as port:
        results = ask(port, "POST", "/v1/predict", *form(bright, bright, bright)).json["results"]
    assert [result.get("error", {}).get("code") for result in results] == [None, "overloaded", "overloaded"]


def test_without_a_model_the_server_lives_and_says_so(tmp_path: Path, bright: bytes) -> None:
    with served(config(tmp_path)) as port:
        assert ask(port, "GET", "/healthz").status == 200
        reply = ask(port, "GET", "/readyz")
        assert (reply.status, reply.code) == (503, "no_model")
        assert str(tmp_path) not in reply.body.decode()
        sentence, seconds = reply.json["error"]["message"], reply.headers["Retry-After"]
        for method, path in [("GET", "/v1/model"), ("POST", "/v1/predict")]:  # every route says the same
            assert ask(port, method, path, bright).json == reply.json
        for path in ("/v2/health/ready", "/v2/models/clipstream", "/v2/models/clipstream/ready"):
            told = ask(port, "GET", path)
            assert (told.status, told.json, told.headers["Retry-After"]) == (503, {"error": sentence}, seconds)
            assert told.headers["X-Error-Code"] == "no_model"
    assert not list(tmp_path.iterdir())  # and makes no store of its own


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_answer_head_like_get(port: int, path: str) -> None:
    answer, head = ask(port, "GET", path), ask(port, "HEAD", path)
    assert (head.status, head.body) == (answer.status, b"") == (200, b"")
    assert same_headers(head) == same_headers(answer)
    assert head.headers["Content-Length"] == str(len(answer.body))


def test_a_server_without_a_model_answers_head_like_get_too(tmp_path: Path) -> None:
    with served(config(tmp_path)) as port:
        answer, head = ask(port, "GET", "/readyz"), ask(port, "HEAD", "/readyz")
    assert (head.status, head.body) == (answer.status, b"") == (503, b"")
    assert same_headers(head) == same_headers(answer)
    assert head.headers["X-Error-Code"] == "no_model"


def same_headers(reply: Reply) -> dict[str, str]:
    """Returns the headers but for the two that differ from answer to answer."""
    return {name: value for name, value in reply.headers.items() if name.lower() not in {"date", "x-request-id"}}


def test_a_new_version_that_is_not_what_it_says_leaves_the_old_one_serving(tmp_path: Path, bright: bytes) -> None:
    def problem(port: int) -> str | None:
        reply = ask(port, "GET", "/readyz")
        assert reply.status == 200
        text: str | None = reply.json.get("problem")
        return text

    register(tmp_path)
    with served(config(tmp_path, alias_poll_seconds=0.1)) as port:
        assert problem(port) is None
        register(tmp_path, ("dark", "bright"))  # its model has logits of three classes
        until(lambda: problem(port))
        assert problem(port) == "the version that the alias points at cannot be loaded: see the server's log"
        assert ask(port, "POST", "/v1/predict", bright).json["model"]["version"] == "1"
        assert register_again(tmp_path) == "3"
        until(lambda: not problem(port))
        assert ask(port, "POST", "/v1/predict", bright).json["model"]["version"] == "3"
