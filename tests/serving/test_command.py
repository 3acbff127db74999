"""`python -m serve` as a user meets it: its own Ray, a real store, real HTTP; and the deploy config."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from configs.load import find_config
from configs.section import UsageError
from configs.serve import API_KEY_VARIABLE, ServeConfig
from serve.__main__ import main
from serve.gateway.auth import read_keys
from tests.support.processes import replicas
from tests.support.registry import MLFLOW_WARNINGS, register, register_again
from tests.support.serving import Reply, ask, form, serving
from tests.support.videos import write_video
from tests.support.waiting import until

pytestmark = MLFLOW_WARNINGS


def reply_or_none(port: int, path: str) -> Reply | None:
    try:
        return ask(port, "GET", path)
    except OSError:
        return None


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    options = ["--alias-poll-seconds", "0.5", "--max-body-bytes", "200000"]
    with serving(tmp_path, *options, ready=False) as made:
        yield made


@pytest.mark.integration
def test_the_whole_life_of_a_server(server: tuple[subprocess.Popen[bytes], int], tmp_path: Path) -> None:
    process, port = server
    video = write_video(tmp_path / "bright.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10).read_bytes()

    def code(path: str) -> str | None:
        reply = reply_or_none(port, path)
        return reply.code if reply and reply.status == 503 else None

    until(lambda: code("/readyz") == "no_model")
    assert ask(port, "POST", "/v1/predict", video).code == "no_model"

    register(tmp_path)
    until(lambda: ask(port, "GET", "/readyz").status == 200)
    answer = ask(port, "POST", "/v1/predict", video, {"X-Request-ID": "mine"})
    assert answer.headers.get_all("X-Request-ID") == ["mine"]
    assert answer.json["model"] == {"name": "clipstream", "version": "1"}
    assert answer.json["predictions"][0]["class"] == "bright"

    several = ask(port, "POST", "/v1/predict", *form(video, b"not a video")).json["results"]
    assert several[0] == answer.json | {"timing": several[0]["timing"]}
    assert several[1]["error"]["code"] == "not_a_video"
    assert ask(port, "POST", "/v1/predict", b"").code == "empty_body"
    assert ask(port, "POST", "/v1/predict", b"x" * 200_001).code == "too_large"
    assert ask(port, "GET", "/openapi.json", headers={"Host": "rebound.example"}).code == "foreign_host"
    assert ask(port, "GET", "/openapi.json").status == 200
    tag = ask(port, "GET", "/").headers["ETag"]
    assert ask(port, "GET", "/", headers={"If-None-Match": tag}).status == 304

    clips = {"name": "clips", "datatype": "UINT8", "shape": [1, 4, 3, 24, 24], "data": [250] * 4 * 3 * 24 * 24}
    reply = ask(port, "POST", "/v2/models/clipstream/infer", json.dumps({"inputs": [clips]}).encode())
    assert reply.json["outputs"][0]["data"][2] == pytest.approx(answer.json["predictions"][0]["probability"], abs=1e-3)
    too_long = json.dumps({"inputs": [clips | {"shape": [1, 1, 3, 48, 48]}]}).encode()
    assert ask(port, "POST", "/v2/models/clipstream/infer", too_long).status == 400

    version = register_again(tmp_path)
    until(lambda: ask(port, "POST", "/v1/predict", video).json["model"]["version"] == version)

    (replica,) = replicas("ModelReplica", family(process))
    replica.kill()
    refused = ask(port, "POST", "/v1/predict", video)  # by the gateway: there is no other
    assert (refused.status, refused.code) == (503, "unavailable")
    assert refused.headers["Retry-After"]
    until(lambda: ask(port, "POST", "/v1/predict", video).status == 200)

    started = family(process)
    assert started
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    check_log((tmp_path / "serve.log").read_text())


def check_log(log: str) -> None:
    """Checks that a server that first had no model, and that Ctrl-C ended, told both in a line each."""
    before, _, after = log.partition("stopping after Ctrl-C: requests inside get their answers")
    start, _, _ = before.partition("model_loaded version=1")
    assert start.startswith("starting Ray on this machine, then loading clipstream@champion")
    assert start.count("waiting for a model, looked for every 0.5 s: the registry has no model clipstream") == 1
    assert "Traceback" not in start
    assert [line for line in after.splitlines()[1:] if "request method=" not in line] == []


def test_the_deploy_config_is_rays_and_ours() -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load(find_config("serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(values)
    assert schema.http_options.host == "127.0.0.1"
    assert schema.grpc_options.grpc_servicer_functions == []
    config = ServeConfig.model_validate(schema.applications[0].args)
    assert not config.allow_unauthenticated


def test_the_application_is_not_built_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from serve.app import build

    with pytest.raises(UsageError, match="no API key: set CLIPSTREAM_API_KEY"):
        build(ServeConfig())
    monkeypatch.setenv(API_KEY_VARIABLE, "one, two")
    file = tmp_path / "keys"
    file.write_text("three\n\n")
    assert read_keys(ServeConfig(api_key_file=str(file))) == ("one", "two", "three")
    assert build(ServeConfig())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "no API key"),
        (["--config", "absent.yaml"], "no config file absent.yaml"),
        (
            ["--num-replicas", "2", "--autoscaling.max-replicas", "3"],
            r"--num-replicas \(2\) and --autoscaling.max-replicas \(3\) exclude",
        ),
        (
            ["--autoscaling.min-replicas", "3", "--autoscaling.max-replicas", "2"],
            r"--autoscaling.min-replicas \(3\) is above --autoscaling.max-replicas",
        ),
        (["--top-k", "0"], "--top-k: Input should be greater than or equal to 1"),
        (["--api-key-file", "absent"], r"--api-key-file \(/.*/absent\) cannot be read"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert re.search(message, output)


def test_a_taken_port_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_the_gateway_imports_neither_torch_nor_mlflow() -> None:
    script = "import sys, serve.app; print(sorted({'torch', 'mlflow'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
