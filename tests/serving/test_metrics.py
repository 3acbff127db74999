"""The metrics of a real server, as Prometheus reads them, and the dashboard that is made of them."""

import asyncio
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.load import load
from tests.support.ports import free_ports
from tests.support.registry import MLFLOW_WARNINGS, copy_champion, register_again
from tests.support.serving import ask, form, serving
from tests.support.videos import write_video
from tests.support.waiting import until

pytestmark = MLFLOW_WARNINGS

DASHBOARD = json.loads((Path(__file__).parents[2] / "configs/deploy/grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def scrape(port: str) -> list[Sample]:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return [sample for family in families for sample in family.samples if "clipstream" in sample.name]


def total(samples: list[Sample], name: str, /, **labels: str) -> float:
    return sum(
        sample.value
        for sample in samples
        if sample.name == f"ray_clipstream_{name}" and labels.items() <= sample.labels.items()
    )


@pytest.mark.integration
def test_a_server_tells_what_the_dashboard_shows(champion_store: Path, tmp_path: Path) -> None:
    copy_champion(champion_store, tmp_path)
    video = write_video(tmp_path / "bright.mp4", [np.full((48, 64, 3), 250, np.uint8)] * 10).read_bytes()
    (metrics_port,) = free_ports(1)
    options = ["--metrics-port", metrics_port, "--alias-poll-seconds", "0.5"]
    log = tmp_path / "serve.log"
    with serving(tmp_path, *options, RAY_metrics_report_interval_ms="1000") as (_, port):
        until(lambda: f"metrics=http://127.0.0.1:{metrics_port}/metrics" in log.read_text())
        for _ in range(3):
            assert ask(port, "POST", "/v1/predict", video).status == 200
        body, headers = form(video, b"not a video")
        reply = ask(port, "POST", "/v1/predict", body, headers | {"X-Request-ID": "mine"})
        assert reply.headers.get_all("X-Request-ID") == ["mine"]
        for path in ("/nowhere", "/metrics"):  # nothing of it on this port
            reply = ask(port, "GET", path, headers={"X-Request-ID": "not sane"})
            (made,) = reply.headers.get_all("X-Request-ID")
            assert (reply.status, len(made)) == (404, 36)
        version = register_again(tmp_path)
        until(lambda: total(scrape(metrics_port), "model_info", version=version) == 1)
        until(lambda: total(scrape(metrics_port), "requests_total", code="404") == 2)
        samples = scrape(metrics_port)
        url = f"http://127.0.0.1:{port}/v1/predict"
        refused = Counter(one.code for one in asyncio.run(load(url, [video], concurrency=48, num_requests=300)).failed)
        assert refused["overloaded"]
        # On a busy machine a replica that gets no processor for a second counts as gone: unavailable.
        assert refused.keys() <= {"overloaded", "unavailable"}
        until(lambda: total(scrape(metrics_port), "refusals_total", reason="overloaded") == refused["overloaded"])
    check_values(samples, len(video))
    check_log(log.read_text())
    labels = defaultdict(set)
    for sample in samples:
        labels[sample.name] |= sample.labels.keys()
    for expression in EXPRESSIONS:
        check_expression(expression, labels)
    variable, (name, label) = variable_of("route")
    assert label in labels[name]
    assert variable["current"]["value"] in {sample.labels.get(label) for sample in samples}


def check_values(samples: list[Sample], num_bytes: int) -> None:
    assert total(samples, "requests_total", route="/v1/predict", code="200") == 4
    assert total(samples, "request_seconds_count", route="/v1/predict") == 4
    assert total(samples, "received_bytes_total", route="/v1/predict") > 4 * num_bytes
    assert total(samples, "refusals_total", reason="not_a_video") == 1
    assert total(samples, "refusals_total", reason="not_found") == 2
    for stage in ("decode", "queue", "model"):
        assert total(samples, f"{stage}_seconds_count", deployment="ModelReplica") == 4
    assert total(samples, "clips_total") == 4
    assert 1 <= total(samples, "batch_clips_count") <= 4
    assert total(samples, "model_info", name="clipstream", version="1") == 0
    assert total(samples, "model_info") == 1


def check_log(log: str) -> None:
    mine = [line for line in log.splitlines() if line.endswith("request_id=mine")]
    assert len(mine) == 2  # the gateway's and the replica's
    assert any("refused code=not_a_video" in line for line in mine)
    assert any(re.search(r"request method=POST path=/v1/predict status=200 code=not_a_video ", line) for line in mine)
    assert "/readyz" not in log
    assert "not sane" not in log


def check_expression(expression: str, labels: dict[str, set[str]]) -> None:
    names = re.findall(r"\bray_\w+", expression)
    assert names
    grouped = {label.strip() for group in re.findall(r" by \(([^)]*)\)", expression) for label in group.split(",")}
    for name in names:
        assert grouped <= labels[name], f"{name} has the labels {sorted(labels[name])}"
    for name, selector in re.findall(r"(ray_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= labels[name]


def variable_of(name: str) -> tuple[dict[str, Any], tuple[str, str]]:
    (variable,) = [variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == name]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert found
    return variable, (found[1], found[2])


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert DASHBOARD["title"]
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD  # Grafana gives it; one of another server would overwrite what has it here
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] == "timeseries"
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & covered
        assert max(x for x, _ in cells) < 24
        covered |= cells
        targets = panel["targets"]
        assert len({target["refId"] for target in targets}) == len(targets)
        for target in targets:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= set(re.findall(r"\w+", " ".join(re.findall(r" by \(([^)]*)\)", target["expr"]))))
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
