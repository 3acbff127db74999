"""A whole training against a real `mlflow server` over a database, whose files lie in a real S3-like store."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest

from configs.train import CHAMPION
from packer.shards.manifest import read_manifest
from tests.support.mlflow_server import Server
from tests.support.postgresql import postgresql
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.runs import CONFIG, NUM_STEPS, curve, train
from trainer.driver.release import register_best
from trainer.driver.report import report
from trainer.tracking.registry import Registry
from trainer.tracking.run_log import RunLog
from trainer.tracking.runs import end_run, open_run
from trainer.worker.spec import JobSpec

pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> Iterator[Server]:
    """A server that hands files on to S3 itself, or, over PostgreSQL, one whose clients do."""
    over_sqlite = request.param == "sqlite"
    root = f"{bucket}/artifacts"
    direct = ["--no-serve-artifacts", f"--default-artifact-root={root}"]
    with nullcontext(store_uri(tmp_path)) if over_sqlite else postgresql() as store:
        made = Server(tmp_path, store, [f"--artifacts-destination={root}"] if over_sqlite else direct)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def test_a_run_is_tracked_and_its_model_registered(server: Server, bucket: str, packed: Path, tmp_path: Path) -> None:
    run_id = open_run(server.uri, CONFIG, None)
    spec = JobSpec(CONFIG, packed, tmp_path / "run", run_id, server.uri, num_workers=1)
    spec.run_folder.mkdir()
    manifest = read_manifest(packed)
    log = RunLog(server.uri, run_id)
    log.description(CONFIG, manifest, "0" * 64, "commit")
    log.close()
    spec.stop_file.touch()
    assert train(spec).stopped  # after one step; what follows goes on from its checkpoint
    spec.stop_file.unlink()
    outcome = train(spec)
    report(spec, manifest, outcome.evaluations)
    assert register_best(spec, manifest, outcome).version == "1"
    end_run(server.uri, run_id, "FINISHED")

    assert [step for step, _ in curve(spec, "train_loss")] == list(range(1, NUM_STEPS + 1))
    registry = Registry(server.uri, CONFIG.registered_model)
    run = registry.client.get_run(run_id)
    assert (run.info.status, run.data.tags["code_version"]) == ("FINISHED", "commit")
    assert run.data.params["global_batch"] == "4"
    assert run.data.metrics["test_top1"] == outcome.test["top1"]
    assert run.inputs.dataset_inputs[0].dataset.name == "shards"
    system, root = fsspec.core.url_to_fs(f"{bucket}/artifacts", use_listings_cache=False)
    stored = {name.removeprefix(f"{root}/") for name in system.find(root)}
    folder = f"{run.info.experiment_id}/{run_id}/artifacts"
    for name in ("config.yaml", "data/train_clips.png", "evaluation/test/confusion.csv", "model_card.md"):
        assert f"{folder}/{name}" in stored
    assert any(name.endswith("MLmodel") for name in stored)
    _, contract = registry.load(f"models:/{CONFIG.registered_model}@{CHAMPION}")
    assert contract.class_names == ("a", "b")
