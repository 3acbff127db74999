"""Training as a job on a cluster started as `make cluster` does it: submitted, stopped, resubmitted, worked on."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import processes
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.training import CLUSTER, ROOT, Ended, Project, newest_step, project, ray_job, stop_ray_job
from tests.support.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), *MLFLOW_WARNINGS]

EPOCHS = 50  # 20 can be over before a busy machine has seen the first checkpoint and sent the stop


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Iterator[Project]:
    with project(tmp_path_factory.mktemp("cluster"), packed) as made:
        narrow = {"COLUMNS": "40"}  # to which ps cuts the arguments of processes, unless it is told not to
        assert made.run(*CLUSTER, "start", **narrow).code == 0
        try:
            yield made
        finally:
            assert made.run(*CLUSTER, "stop", **narrow).code == 0


def submit(
    cluster: Project, name: str, run: str, *options: str, cwd: Path = ROOT, variables: dict[str, str] | None = None
) -> Ended:
    """Submits a training; `options` come before the dashes."""
    environment = ["--runtime-env-json", json.dumps({"env_vars": variables})] if variables is not None else []
    command = ["python", "-m", "trainer", "--config", str(cluster.home / "tiny.yaml"), "--run", run]
    command += ["--epochs", str(EPOCHS), "--num-workers", "2"]
    return ray_job(cluster, "submit", "--submission-id", name, *options, *environment, "--", *command, cwd=cwd)


def edited_copy(folder: Path) -> Path:
    """A user's copy of the project: with an edit, and with a fat ignored folder that no upload could take."""
    for package in ("configs", "packer", "trainer", "serve"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / ".gitignore", folder)
    worker = folder / "trainer" / "worker" / "entry.py"
    worker.write_text(worker.read_text().replace('"""', '"""Edited. ', 1) + '\nprint("an edited worker")\n')
    for name in (".venv", "shards"):
        (folder / name).mkdir()
        with (folder / name / "fat.bin").open("wb") as file:
            file.truncate(2**31)
    return folder


def test_a_job_is_stopped_resubmitted_and_finished(cluster: Project, tmp_path: Path) -> None:
    submit(cluster, "ours", "stopped", "--no-wait")
    cluster.await_checkpoint("stopped")
    assert stop_ray_job(cluster, "ours") == "STOPPED"
    first = cluster.mlflow_run("stopped")
    assert first.info.status == "KILLED"
    step = newest_step(cluster.home, "stopped")
    assert cluster.steps("stopped", "train_loss")[-1] == step
    stopped = ray_job(cluster, "logs", "ours")
    assert f"run stopped is stopped: its newest checkpoint is of step {step}. " in stopped.log

    # What Ray does by itself, on a cluster that was not started by `make cluster`.
    defaults = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": "3"}
    submit(cluster, "defaults", "stopped", "--no-wait", variables=defaults)
    cluster.await_checkpoint("stopped", after_step=step)
    assert stop_ray_job(cluster, "defaults") == "STOPPED"
    assert cluster.mlflow_run("stopped").info.status == "KILLED"

    working_dir = edited_copy(tmp_path / "project")
    finished = submit(cluster, "uploaded", "stopped", "--working-dir", ".", cwd=working_dir)
    assert finished.code == 0
    assert "an edited worker" in finished.log
    assert "_ray_pkg_" in finished.log.partition("package=")[2].splitlines()[0]
    assert "resumed at step " in finished.log
    run = cluster.mlflow_run("stopped")
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    assert run.data.params["shards"] == str(cluster.home / "shards")
    assert run.info.artifact_uri.startswith((cluster.home / "mlruns").as_uri())


def test_a_killed_worker_costs_no_step_and_changes_none(cluster: Project) -> None:
    """Two runs of the same seed, disturbed in different ways and places, have the same losses to the last bit."""
    submit(cluster, "killed", "killed", "--no-wait", variables={"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"})
    cluster.await_checkpoint("killed", after_step=10)
    train_workers(cluster)[0].send_signal(signal.SIGKILL)
    logged = ray_job(cluster, "logs", "--follow", "killed")
    assert "worker failed rank=" in logged.log
    assert "resumed at step " in logged.log
    until(lambda: cluster.mlflow_run("killed").info.status == "FINISHED", 30)

    killed, stopped = (cluster.curve(name, "train_loss") for name in ("killed", "stopped"))
    assert [step for step, _ in killed] == list(range(1, len(killed) + 1))
    assert killed == stopped


def test_an_uploaded_job_without_a_home_is_refused(cluster: Project, tmp_path: Path) -> None:
    working_dir = edited_copy(tmp_path / "project")
    refused = submit(
        cluster, "homeless", "homeless", "--working-dir", ".", cwd=working_dir, variables={"CLIPSTREAM_HOME": ""}
    )
    assert refused.code == 1
    assert "is Ray's temporary copy of the working directory and is deleted after the job" in refused.log
    assert "Traceback" not in refused.log
    assert "exit code 2" in refused.log


def train_workers(cluster: Project) -> list[psutil.Process]:
    ray_start = psutil.Process(int((cluster.home / ".ray" / "pid").read_text()))
    return processes.train_workers(ray_start.children(recursive=True))
