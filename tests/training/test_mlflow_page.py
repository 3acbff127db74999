"""MLflow's page as people meet it: `python -m trainer ui`, and a real browser on the addresses that it prints."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from configs.train import TrainConfig
from tests.support.browser import Browser, chromium
from tests.support.ports import free_ports
from tests.support.programs import system_program
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from trainer.__main__ import main
from trainer.tracking.pages import KIND, KIND_TAG, home_page, run_page, runs_page, version_page
from trainer.tracking.registry import Registry
from trainer.tracking.run_log import RunLog
from trainer.tracking.runs import open_run
from trainer.tracking.store import create_store

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.integration]

CARD = """# clipstream version 1

**93.8% of 16 test clips are right**

| class | clips |
| --- | ---: |
| walk | 7 |
| run | 9 |

Most frequent mistakes: none.
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store with an experiment from before experiments were marked, and in it the id of a run with a model."""
    folder = tmp_path_factory.mktemp("page")
    uri = store_uri(folder)
    create_store(uri)
    client = MlflowClient(uri, registry_uri=uri)  # MLflow's own default may be that of another test
    client.create_experiment("clipstream", artifact_location=(folder / "artifacts").as_uri())
    run_id = open_run(uri, TrainConfig(run="nightly"), folder / "artifacts")
    log = RunLog(uri, run_id)
    log.metrics({"best/val_top1": 0.875, "best/test_top1": 0.9375, "val_top1": 0.75, "val_loss": 0.5}, 7)
    log.note(CARD)
    log.close()
    client.create_registered_model("clipstream")
    client.create_model_version("clipstream", f"{(folder / 'artifacts').as_uri()}/model", run_id)
    Registry(uri, "clipstream").describe("1", CARD)
    return uri, run_id


@pytest.fixture(scope="module")
def page(store: tuple[str, str]) -> Iterator[str]:
    """The address that `python -m trainer ui` prints; at its end, everything that it printed was this one line."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "trainer", "ui", "--port", str(port)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": store[0]}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"MLflow: http://127.0.0.1:{port}/#/experiments/"), line or process.stderr.read()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (rest.strip(), errors, process.returncode) == ("", "", 0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    log = tmp_path_factory.mktemp("driver") / "log"
    with chromium(system_program("chromium"), system_program("chromedriver"), log) as browser:
        browser.resize(1600, 1000)
        yield browser


def test_a_run_says_who_started_it_and_by_what(store: tuple[str, str]) -> None:
    tags = MlflowClient(store[0]).get_run(store[1]).data.tags
    assert tags["mlflow.source.name"] == "python -m trainer"
    assert tags["mlflow.user"]


def test_the_address_opens_the_runs_with_their_accuracy(page: str, browser: Browser, store: tuple[str, str]) -> None:
    experiment = MlflowClient(store[0]).get_experiment_by_name("clipstream").experiment_id
    address = page.partition("/#/")[0]
    assert runs_page(address, experiment) == page
    browser.open(page)
    browser.wait("body", "nightly")
    for text in ("Model registry", "best/val_top1", "0.875", "best/test_top1", "0.9375"):
        browser.wait("body", text)
    assert "Prompts" not in browser.text("body")


def test_the_page_of_a_run_begins_with_its_card(page: str, browser: Browser, store: tuple[str, str]) -> None:
    experiment = MlflowClient(store[0]).get_run(store[1]).info.experiment_id
    browser.open(run_page(page.partition("/#/")[0], experiment, store[1]))
    browser.wait("body", "93.8% of 16 test clips are right")
    browser.wait("body", "python -m trainer")


def test_the_page_of_a_version_renders_the_tables_of_its_card(page: str, browser: Browser) -> None:
    browser.open(version_page(page.partition("/#/")[0], "clipstream", "1"))
    browser.wait("table td", "walk")
    cells = browser.run("return [...document.querySelectorAll('table td')].map((cell) => cell.innerText.trim())")
    assert cells == ["walk", "7", "run", "9"]
    assert "|" not in browser.text("body")


def test_a_server_has_its_own_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["ui"]) == 2
    assert "the MLflow store at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert home_page("https://mlflow.example/").startswith("https://mlflow.example/#/experiments")


def test_what_cannot_be_shown_is_one_sentence(
    store: tuple[str, str],
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = page.partition("/#/")[0].rpartition(":")[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[0])
    assert main(["ui", "--port", port]) == 2
    assert f"port {port} cannot be used (Address already in use): give another --port" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(tmp_path))
    assert main(["ui"]) == 2
    assert "there is no MLflow store at" in capsys.readouterr().err


def test_an_experiment_is_marked_and_what_a_user_has_set_stays(store: tuple[str, str]) -> None:
    client = MlflowClient(store[0])
    assert client.get_experiment_by_name("clipstream").tags[KIND_TAG] == KIND
    of_user = client.create_experiment("of-user", tags={KIND_TAG: "regression"})
    for name in ("of-user", "new"):
        open_run(store[0], TrainConfig(experiment=name), None)
    assert client.get_experiment(of_user).tags[KIND_TAG] == "regression"
    assert client.get_experiment_by_name("new").tags[KIND_TAG] == KIND
