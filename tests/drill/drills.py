"""The drills: each one breaks a training of 84 steps that reads, trains, tracks and registers as a user's does."""

import os
import time
from collections.abc import Callable

from tests.drill.runs import FROZEN, MIDDLE, NEXT_EPOCH, RESIZED_TOLERANCE, Drills, Row
from tests.support.mlflow_server import Server
from tests.support.nodes import ray_nodes
from tests.support.training import CLUSTER, Ended, ended, ray_job, stop_ray_job
from tests.support.waiting import until
from trainer.worker.checkpoint import CheckpointStore


def kill_worker(drills: Drills) -> Row:
    process = drills.start("worker")
    drills.workers()[0].kill()
    seconds = drills.await_recovery("worker")
    return drills.row("worker", "kill -9 of one of two workers in mid-epoch", ended(process), seconds)


def kill_driver(drills: Drills) -> Row:
    drills.kill_driver("driver")
    before = drills.project.mlflow_run("driver").info.status
    assert drills.project.train("--run", "other", "--epochs", "1").code == 0
    after = drills.project.mlflow_run("driver").info.status
    wrong = [] if (before, after) == ("RUNNING", "KILLED") else [f"MLflow said {before}, then {after}"]
    done, seconds = drills.go_on("driver")
    return drills.row("driver", "kill -9 of the driver; the same command again", done, seconds, *wrong)


def take_over(drills: Drills) -> Row:
    """On a storage that does not share locks: the first command's workers sleep until the second command trains."""
    first = drills.start("takeover")
    sleeping = drills.workers()
    for worker in sleeping:
        worker.suspend()
    (drills.project.home / "runs" / "takeover" / ".lock").unlink()
    second = drills.project.start_training("--run", "takeover")
    seconds = drills.await_recovery("takeover")
    for worker in sleeping:
        worker.resume()
    ousted, done = ended(first), ended(second)
    said = ousted.code == 1 and "another command has taken the run over" in ousted.log
    wrong = [] if said else [f"the first command ended with {ousted.code}"]
    return drills.row("takeover", "the same run started beside its own workers", done, seconds, *wrong)


def stop_job(drills: Drills) -> Row:
    project = drills.project

    def submit(name: str, *options: str) -> Ended:
        command = ["python", "-m", "trainer", "--config", str(project.home / "tiny.yaml"), "--run", "job"]
        return ray_job(project, "submit", "--submission-id", name, *options, "--", *command)

    assert project.run(*CLUSTER, "start").code == 0
    try:
        submit("first", "--no-wait")
        drills.await_step("job", MIDDLE)
        stop_ray_job(project, "first")
        status = project.mlflow_run("job").info.status
        submit("second", "--no-wait")
        seconds = drills.await_recovery("job")
        done = ray_job(project, "logs", "--follow", "second")
        until(lambda: project.mlflow_run("job").info.status == "FINISHED", 30)
    finally:
        project.run(*CLUSTER, "stop")
    wrong = [] if status == "KILLED" else [f"MLflow said {status} after the stop"]
    return drills.row("job", "ray job stop; submitted again", done, seconds, *wrong)


def lose_node(drills: Drills) -> Row:
    """Two workers on two nodes, then one."""
    with ray_nodes(1, 1) as nodes:
        variables = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        process = drills.start("node", "--min-workers", "1", "--shared-filesystem", *FROZEN, **variables)
        nodes.kill_newest()
        seconds = drills.await_recovery("node")
        done = ended(process)
    what = "one of two nodes lost, gone on with one worker"
    return drills.row("node", what, done, seconds, options=FROZEN, tolerance=RESIZED_TOLERANCE)


def grow(drills: Drills) -> Row:
    """One worker, then another node; Ray looks for new nodes every 20 s, so the worker is held back until it did."""
    with ray_nodes(1) as nodes:
        variables = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        options = ["--min-workers", "1", "--resize-interval-seconds", "1", "--shared-filesystem", *FROZEN]
        process = drills.start("grow", *options, **variables)
        (worker,) = nodes.train_workers()
        worker.suspend()
        nodes.add(1)
        joined = time.monotonic()
        while drills.progress("grow")[0] == 1 and process.poll() is None:
            drills.let_step("grow", worker)
        assert process.poll() is None, f"grow ended as it began: {ended(process).log}"
        drills.await_recovery("grow")
        seconds = time.monotonic() - joined
        done = ended(process)
    what = "a node joins, gone on with two workers"
    return drills.row("grow", what, done, seconds, options=FROZEN, tolerance=RESIZED_TOLERANCE)


def break_checkpoint(drills: Drills) -> Row:
    drills.kill_driver("checkpoint")
    until(lambda: not drills.project.alive(), 120)  # its workers live a little longer, and write checkpoints
    store = CheckpointStore(drills.project.home / "runs" / "checkpoint" / "checkpoints")
    newest, before, *_ = store.steps()
    path = store.folder / f"step-{newest:010d}" / "state.pt"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(16))
    done, seconds = drills.go_on("checkpoint")
    said = "checkpoint ignored" in done.log and f"resumed at step {before}:" in done.log
    wrong = [] if said else ["the log does not say that the one before was taken"]
    return drills.row("checkpoint", "driver killed, newest checkpoint damaged", done, seconds, *wrong)


def lose_storage(drills: Drills) -> Row:
    """A file takes the place of the checkpoints' folder for a while, past an epoch's end: nothing can be written."""
    process = drills.start("storage")
    folder = drills.project.home / "runs" / "storage" / "checkpoints"
    aside = folder.rename(folder.parent / "aside")
    folder.touch()
    drills.await_step("storage", NEXT_EPOCH, process)
    time.sleep(10)
    folder.unlink()
    aside.rename(folder)
    done = ended(process)
    wrong = [] if "checkpoint not written" in done.log else ["the log does not say it"]
    return drills.row("storage", "storage of the checkpoints fails past the end of an epoch", done, None, *wrong)


def stop_tracking(drills: Drills) -> Row:
    drills.undisturbed()  # first: later, the champion's files belong to a server that is gone
    server = Server(drills.project.home)
    server.start()
    try:
        process = drills.start("tracking", MLFLOW_TRACKING_URI=server.uri)
        server.stop()
        time.sleep(5)
        server.start()
        done = ended(process)
    finally:
        server.stop()
    wrong = [] if "tracking refused" in done.log else ["the log does not say it"]
    return drills.row("tracking", "MLflow server killed, started again after 5 s", done, None, *wrong)


DRILLS: dict[str, Callable[[Drills], Row]] = {
    "worker": kill_worker,
    "driver": kill_driver,
    "takeover": take_over,
    "job": stop_job,
    "node": lose_node,
    "grow": grow,
    "checkpoint": break_checkpoint,
    "storage": lose_storage,
    "tracking": stop_tracking,
}
