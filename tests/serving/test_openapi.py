"""`/openapi.json`: it tells every route, its examples are true, and no request gets an answer that it does not know."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.serve import ServeConfig
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import ask, form, served
from tests.support.videos import write_video

pytestmark = MLFLOW_WARNINGS

KEY = {"Authorization": "Bearer key"}
MODEL = "/v2/models/{model_name}"
VERSION = "/versions/{model_version}"
OPEN = {"/healthz", "/readyz"}
PATHS = {
    *OPEN,
    "/v1/model",
    "/v1/predict",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    *(f"{MODEL}{version}{end}" for version in ("", VERSION) for end in ("", "/ready", "/infer")),
}
NO_VIDEO = b'{"inputs": [{"name": "clips", "datatype": "BYTES", "shape": [1], "data": ["bm8gdmlkZW8="]}]}'
BODY_REFUSALS = {"400", "408", "413", "415", "422"}


@pytest.fixture(scope="module")
def port(champion_store: Path) -> Iterator[int]:
    config = ServeConfig(
        tracking_uri=store_uri(champion_store), max_body_bytes=200_000, max_files=3, deadline_seconds=10, explain=True
    )
    with served(config, keys=("key",)) as port:
        yield port


@pytest.fixture(scope="module")
def description(port: int) -> dict[str, Any]:
    reply = ask(port, "GET", "/openapi.json", headers=KEY)
    assert reply.status == 200
    return dict(reply.json)


def test_every_route_and_every_kind_of_refusal_is_told(description: dict[str, Any]) -> None:
    assert set(description["paths"]) == PATHS
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"]
            assert operation["description"]
            responses = set(operation["responses"])
            assert {"200", "403", "500"} <= responses
            assert ({"401"} <= responses) == ("security" in operation) == (path not in OPEN)
            assert (method == "post") == (responses >= BODY_REFUSALS) == ("requestBody" in operation)
            for status, response in operation["responses"].items():
                assert response["description"]
                assert "X-Request-ID" in response["headers"]
                assert ("Retry-After" in response["headers"]) == (status == "503")


def shape(value: Any) -> Any:
    """Returns what a value of JSON is made of: names and types; of a list, of its first element."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(one) for one in value[:1]] if isinstance(value, list) else type(value)


def test_the_examples_of_answers_are_true(port: int, description: dict[str, Any], tmp_path: Path) -> None:
    video = write_video(tmp_path / "bright.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10).read_bytes()
    content = description["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]
    names = ("one video", "with explain=1", "several")
    one, explained, several = (content["examples"][name]["value"] for name in names)
    assert shape(ask(port, "POST", "/v1/predict", video, KEY).json) == shape(one)
    assert shape(ask(port, "POST", "/v1/predict?explain=1", video, KEY).json) == shape(explained)
    body, headers = form(video, b"")
    good, empty = ask(port, "POST", "/v1/predict", body, headers | KEY).json["results"]
    assert shape(good) == shape(several["results"][0])
    assert empty == several["results"][1]


def test_the_example_of_an_inference_is_true(port: int, description: dict[str, Any], tmp_path: Path) -> None:
    video = write_video(tmp_path / "bright.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10).read_bytes()
    operation = description["paths"][f"{MODEL}/infer"]["post"]
    message = operation["requestBody"]["content"]["application/json"]["example"]
    assert video.startswith(base64.b64decode(message["inputs"][0]["data"][0]))
    message["inputs"][0]["data"] = [base64.b64encode(video).decode()]
    reply = ask(port, "POST", "/v2/models/clipstream/infer", json.dumps(message).encode(), KEY)
    assert shape(reply.json) == shape(operation["responses"]["200"]["content"]["application/json"]["example"])


@pytest.mark.parametrize(
    ("status", "path", "method", "body", "headers"),
    [
        ("400", "/v1/predict", "post", b"", KEY),
        ("401", "/v1/model", "get", None, {}),
        ("404", MODEL, "get", None, KEY),
        ("415", "/v1/predict", "post", b"x", KEY | {"Content-Type": "text/plain"}),
        ("422", "/v1/predict", "post", b"not a video", KEY),
        ("400", f"{MODEL}/infer", "post", b"{}", KEY),
        ("422", f"{MODEL}/infer", "post", NO_VIDEO, KEY),
    ],
)
def test_the_examples_of_refusals_are_true(
    port: int, description: dict[str, Any], status: str, path: str, method: str, body: bytes, headers: dict[str, str]
) -> None:
    response = description["paths"][path][method]["responses"][status]
    url = path.format(model_name="another" if status == "404" else "clipstream")
    reply = ask(port, method.upper(), url, body, headers)
    assert (str(reply.status), reply.json) == (status, response["content"]["application/json"]["example"])


def test_no_request_gets_an_answer_that_is_not_described(port: int, tmp_path: Path) -> None:
    """All of schemathesis's checks but one: no schema can tell which bytes are a video."""
    (tmp_path / "schemathesis.toml").write_text(
        '[parameters]\n"path.model_name" = "clipstream"\n"path.model_version" = "1"\n'
    )
    options = {
        "--header": "Authorization: Bearer key",
        "--checks": "all",
        "--exclude-checks": "positive_data_acceptance",
        "--phases": "examples,coverage,fuzzing",
        "--max-examples": "20",
        "--seed": "1",
        "--generation-database": "none",
    }
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json"]
    command += [f"{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
