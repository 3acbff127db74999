"""The Open Inference Protocol, by a real client of it and by plain HTTP, around a real model."""

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from configs.pack import DecodeLimits
from configs.serve import ServeConfig
from packer.video.clip import read_clip
from serve.messages.tensors import MAX_JSON_NAMES, MAX_JSON_VALUES
from serve.replica.predictor import Predictor
from tests.support.registry import CLASS_NAMES, CLIP, MLFLOW_WARNINGS, VIEW, Brightness, contract, store_uri
from tests.support.serving import Reply, access_lines, ask, served
from tests.support.videos import write_numbered_video, write_video

pytestmark = MLFLOW_WARNINGS

INFER = "/v2/models/clipstream/infer"
KEY = {"Authorization": "Bearer key"}
SHAPE = [1, CLIP.num_frames, 3, VIEW.size_px, VIEW.size_px]
CAP_BYTES = 200_000


def config(store: Path, **changes: object) -> ServeConfig:
    values = {"tracking_uri": store_uri(store), "max_files": 3, "max_body_bytes": CAP_BYTES}
    return ServeConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def port(champion_store: Path) -> Iterator[int]:
    with served(config(champion_store), keys=("key",)) as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    bright = write_video(folder / "bright.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10, fps=10)
    return [write_numbered_video(folder / "numbers.mp4", 9, width_px=96), bright]


def predicted(port: int, video: Path) -> list[float]:
    """What the server's own route says of a video, in the order of the classes."""
    answer = ask(port, "POST", "/v1/predict", video.read_bytes(), KEY).json
    by_name = {row["class"]: row["probability"] for row in answer["predictions"]}
    return [by_name[name] for name in CLASS_NAMES]


def tensor(data: NDArray[Any], datatype: str) -> triton.InferInput:
    tensor = triton.InferInput("clips", data.shape, datatype)
    tensor.set_data_from_numpy(data)
    return tensor


def infer(port: int, message: object, binary: bytes = b"", path: str = INFER, **headers: str) -> Reply:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    if binary:
        headers["Inference-Header-Content-Length"] = str(len(body))
    return ask(port, "POST", path, body + binary, KEY | headers)


def message(*data: str, shape: list[int] | None = None, **changes: object) -> dict[str, Any]:
    clips = {"name": "clips", "datatype": "BYTES", "shape": shape or [len(data)], "data": list(data)}
    return {"inputs": [clips | changes]}


def pixels(data: object, shape: list[int] = SHAPE) -> dict[str, Any]:
    return {"inputs": [{"name": "clips", "datatype": "UINT8", "shape": shape, "data": data}]}


def test_a_client_of_the_protocol_learns_what_is_served(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live(KEY)
    assert client.is_server_ready(KEY)
    assert client.is_model_ready("clipstream", headers=KEY)
    assert client.is_model_ready("clipstream", "1", headers=KEY)
    assert not client.is_model_ready("clipstream", "2", headers=KEY)
    assert not client.is_model_ready("another", headers=KEY)
    assert client.get_server_metadata(KEY)["extensions"] == ["binary_tensor_data", "classification"]
    assert client.get_model_metadata("clipstream", "1", headers=KEY) == {
        "name": "clipstream",
        "versions": ["1"],
        "platform": "pytorch_exportedprogram",
        "inputs": [{"name": "clips", "datatype": "UINT8", "shape": [-1, *SHAPE[1:]]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_the_log_tells_the_version_that_answered(
    port: int, videos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert infer(port, message(base64.b64encode(videos[0].read_bytes()).decode())).status == 200
    (line,) = access_lines(caplog, 1, f"path={INFER} ")
    assert " status=200 " in line
    assert " version=1" in line


@pytest.mark.parametrize("in_binary", [True, False])
def test_videos_and_their_frames_get_the_answers_of_the_own_route(
    client: triton.InferenceServerClient, port: int, videos: list[Path], in_binary: bool
) -> None:
    expected = np.array([predicted(port, video) for video in videos], np.float32)
    predictor = Predictor(Brightness(), contract(), "cpu", 1)
    clips = [predictor.view(read_clip(video, CLIP, DecodeLimits())) for video in videos]
    frames = np.stack(clips).transpose(0, 1, 4, 2, 3).copy()
    files = np.array([video.read_bytes() for video in videos], np.object_)
    output = triton.InferRequestedOutput("probabilities", binary_data=in_binary)
    for data, datatype in [(files, "BYTES"), (frames, "UINT8")]:
        result = client.infer(
            "clipstream", [tensor(data, datatype)], request_id="7", outputs=[output], headers=dict(KEY)
        )
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
        answer = result.get_response()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("clipstream", "1", "7")
        assert ("data" in result.get_output("probabilities")) is not in_binary


@pytest.mark.parametrize("in_binary", [True, False])
def test_the_best_classes_come_in_words(
    client: triton.InferenceServerClient, port: int, videos: list[Path], in_binary: bool
) -> None:
    output = triton.InferRequestedOutput("probabilities", binary_data=in_binary, class_count=2)
    files = np.array([videos[1].read_bytes()], np.object_)
    result = client.infer("clipstream", [tensor(files, "BYTES")], "1", outputs=[output], headers=dict(KEY))
    ((best, second),) = result.as_numpy("probabilities")
    value, index, name = (best.decode() if in_binary else best).split(":")
    assert (index, name) == ("2", "bright")
    assert float(value) == pytest.approx(predicted(port, videos[1])[2], abs=1e-6)
    assert (second.decode() if in_binary else second).endswith(":1:middle")


def test_json_carries_pixels_and_files_in_base64(port: int, videos: list[Path]) -> None:
    video = videos[1].read_bytes()
    encoded = base64.b64encode(video).decode()
    nested = np.full(SHAPE, 255).tolist()
    flat = np.full(SHAPE, 255).ravel().tolist()
    rows = [infer(port, body).json["outputs"][0]["data"] for body in (message(encoded), pixels(nested), pixels(flat))]
    assert rows[0] == pytest.approx(predicted(port, videos[1]), abs=1e-6)
    assert rows[1] == rows[2]


@pytest.mark.parametrize(
    ("body", "binary", "status", "sentence"),
    [
        (b"", b"", 400, "Invalid JSON"),
        (b"[" * 100_000, b"", 400, "Invalid JSON: recursion limit"),
        ({}, b"", 400, "inputs: Field required"),
        ({"inputs": []}, b"", 400, "inputs: List should have at least 1 item"),
        (message("", name="other"), b"", 400, "inputs.0.name: Input should be 'clips'"),
        (message("", datatype="FP32"), b"", 400, "inputs.0.datatype: Input should be 'UINT8' or 'BYTES'"),
        (message("no base64!"), b"", 400, "a string in base64"),
        (message("", shape=[2]), b"", 400, r"shape ([2]) must be [N]"),
        (message("", "", "", ""), b"", 400, "4 clips: one request may hold at most 3"),
        (message(data=None, shape=[1]), b"", 400, "either `data`, or `binary_data_size`"),
        (message(data=None, shape=[1], parameters={"binary_data_size": 9}), b"four", 400, "4 were sent"),
        (
            message(data=None, shape=[1], parameters={"binary_data_size": 5}),
            b"\x02\0\0\0.",
            400,
            "length in four bytes",
        ),
        (
            message(data=None, shape=[2], parameters={"binary_data_size": 5}),
            b"\x01\0\0\0.",
            400,
            "length in four bytes",
        ),
        (message(base64.b64encode(b"not a video").decode()), b"", 422, "clip 0: "),
        (message("", ""), b"", 422, "clip 0: "),
        (pixels([1, 2]), b"", 400, "must be [N, T, 3, S, S] and fit the 2 values"),
        (pixels([1, 2], [2]), b"", 400, "must be [N, T, 3, S, S]"),
        (pixels([], []), b"", 400, "inputs.0.shape: List should have at least 1 item"),
        (pixels([0.5], [1] * 5), b"", 400, "whole numbers from 0 to 255"),
        (pixels([256], [1] * 5), b"", 400, "whole numbers from 0 to 255"),
        (pixels(["1"], [1] * 5), b"", 400, "whole numbers from 0 to 255"),
        (pixels([[1], 2], [1, 1, 1, 1, 2]), b"", 400, "whole numbers from 0 to 255"),
        (pixels([1], [1] * 5), b"", 400, "shape [1, 1, 1, 1] does not fit the model's [4, 3, 24, 24]"),
        (pixels([1], [2**64] * 5), b"", 400, "shape.0: Input should be less than"),
    ],
)
def test_refusals(port: int, body: object, binary: bytes, status: int, sentence: str) -> None:
    reply = infer(port, body, binary)
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert sentence in reply.json["error"]
    assert len(reply.json["error"]) < 300


@pytest.mark.parametrize("length", ["-1", "9999999", "x", "\xc2\xb2", "9" * 5000])
def test_a_length_of_json_that_is_none_is_refused(port: int, length: str) -> None:
    reply = infer(port, message(""), **{"Inference-Header-Content-Length": length})
    assert reply.status == 400
    assert "must be a number from 0 to" in reply.json["error"]


@pytest.mark.parametrize("count", [0, -1, 1.5, "two", True])
def test_a_count_of_classes_that_is_none_is_refused(port: int, count: object) -> None:
    body = pixels(np.full(SHAPE, 255).ravel().tolist())
    body["outputs"] = [{"name": "probabilities", "parameters": {"classification": count}}]
    reply = infer(port, body)
    assert (reply.status, "must be a number of classes" in reply.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"inputs": [' + b"[]," * MAX_JSON_VALUES, "send the tensor as binary data"),
        (b"{" + b'"a": 0, ' * MAX_JSON_NAMES + b'"inputs": []}', "holds more than 1000 names"),
    ],
)
def test_json_of_too_many_values_or_names_is_not_parsed(champion_store: Path, body: bytes, message: str) -> None:
    with served(config(champion_store, allow_unauthenticated=True, max_body_bytes=2**26)) as port:
        reply = infer(port, body)
    assert reply.status == 400
    assert message in reply.json["error"]


def test_errors_of_every_layer_have_the_protocols_form(port: int, client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Bearer KEY"):
        client.get_server_metadata()
    with pytest.raises(InferenceServerException, match="only version 1 is served"):
        client.get_model_metadata("clipstream", "2", headers=KEY)
    for method, path, status in [
        ("GET", "/v2/models/another", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/another/infer", 404),
    ]:
        reply = ask(port, method, path, headers=KEY)
        assert reply.status == status
        assert isinstance(reply.json["error"], str)
    frames = np.full(SHAPE, 9, np.uint8).tobytes()
    body = message(data=None, shape=SHAPE, datatype="UINT8", parameters={"binary_data_size": len(frames)})
    assert infer(port, body, frames).status == 200
    assert infer(port, body, frames, path="/v2/models/clipstream/versions/2/infer").status == 404
    assert infer(port, b"x" * (CAP_BYTES + 1)).status == 413


def test_the_queues_bound_and_a_missing_model_are_told_alike(
    champion_store: Path, tmp_path: Path, videos: list[Path]
) -> None:
    body = message(*[base64.b64encode(video.read_bytes()).decode() for video in videos])
    with served(config(champion_store, allow_unauthenticated=True, max_queued=1)) as port:
        reply = infer(port, body)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    assert reply.json["error"].startswith("clip 1: the server has all")
    with served(config(tmp_path, allow_unauthenticated=True)) as port:
        assert ask(port, "GET", "/v2/health/live").status == 200
        assert ask(port, "GET", "/v2/health/ready").status == 503
        assert infer(port, body).status == 503
