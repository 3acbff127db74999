"""Drills of the server's faults: its processes, and the registry, are killed under constant load."""

import math
import signal
import time
from collections.abc import Callable

from tests.drill.rows import Row, check, recovery_seconds, refused_well, row
from tests.drill.server import QUIET_SECONDS, RECOVERY_SECONDS, WARM_SECONDS, Server, served
from tests.support.load import Load
from tests.support.mlflow_server import Server as Tracking
from tests.support.training import Project
from tests.support.waiting import until


def kill(project: Project, deployment: str, *options: str, model: bool = False) -> tuple[Load, Load, float, float]:
    """Kills one process of a deployment under load; returns the load without and with it, its time and the recovery.

    Args:
        model: Kill the process of a replica's model instead.
    """
    with served(project, *options) as server:
        load = server.constant_load()
        start = time.monotonic()
        time.sleep(QUIET_SECONDS)
        blow = time.monotonic()
        dead = server.replicas(deployment)[0]
        (server.models()[0] if model else dead).kill()
        until(lambda: any(one.create_time() > dead.create_time() for one in server.replicas(deployment)), 60)
        until(lambda: server.is_ready() and time.monotonic() > blow + QUIET_SECONDS, RECOVERY_SECONDS)
        time.sleep(WARM_SECONDS)
        outcome = load.stop()
    after = outcome.between(blow, math.inf)
    return outcome.between(start, blow), after, blow, recovery_seconds(after, blow)


def kill_replica(project: Project) -> Row:
    quiet, load, _, _ = kill(project, "ModelReplica", "--num-replicas", "2")
    wrong = check(bool(load.failed), "requests failed")
    return row("kill -9 of one of two model replicas", load, quiet, None, *wrong)


def kill_model(project: Project) -> Row:
    quiet, load, _, _ = kill(project, "ModelReplica", "--num-replicas", "2", model=True)
    wrong = check(bool(load.failed), "requests failed")
    return row("kill -9 of the process of one of two models", load, quiet, None, *wrong)


def kill_only_replica(project: Project) -> Row:
    quiet, load, _, seconds = kill(project, "ModelReplica")
    worst = max((one.seconds for one in load.failed), default=0.0)
    wrong = refused_well(load.failed, {"unavailable", "no_model"}) + check(worst > 2, f"a refusal took {worst:.1f} s")
    return row("kill -9 of the only model replica", load, quiet, seconds, *wrong)


def kill_gateway(project: Project) -> Row:
    quiet, load, blow, seconds = kill(project, "Gateway", "--num-replicas", "1", "--num-gateways", "2")
    late = [one for one in load.failed if one.start > blow + 1]
    wrong = check(bool(late), f"{len(late)} requests failed that began over a second after the kill")
    return row("kill -9 of one of two gateways", load, quiet, seconds, *wrong)


def kill_only_gateway(project: Project) -> Row:
    """New requests wait until Ray has started it again; then all come at once, which is more than it accepts."""
    quiet, load, blow, seconds = kill(project, "Gateway")
    wrong = refused_well([one for one in load.failed if one.start > blow + 1], {"overloaded"})
    return row("kill -9 of the only gateway", load, quiet, seconds, *wrong)


def kill_decoder(project: Project) -> Row:
    """Two blows, each to a decoder that was stopped first, so that it surely holds a video."""
    with served(project) as server:
        load = server.constant_load()
        start = time.monotonic()
        time.sleep(QUIET_SECONDS)
        blow = time.monotonic()
        for number in (signal.SIGSEGV, signal.SIGKILL):
            (decoder,) = server.decoders()
            decoder.suspend()
            time.sleep(0.5)
            decoder.send_signal(number)
            decoder.resume()
            time.sleep(QUIET_SECONDS / 2)
        outcome = load.stop()
    failed = [(one.status, one.code) for one in outcome.failed]
    wrong = check(failed != 2 * [(422, "decoder_crash")], f"failed: {failed}")
    after = outcome.between(blow, math.inf)
    return row("crash, then kill -9 of the decoder", after, outcome.between(start, blow), None, *wrong)


def stop_registry(project: Project) -> Row:
    """MLflow is down when the server starts; then it starts, stops under load, and starts again."""
    tracking = Tracking(project.home)
    with served(project, ready=False, MLFLOW_TRACKING_URI=tracking.uri) as server:
        until(lambda: answered(server, "no_model"), RECOVERY_SECONDS)
        tracking.start()
        try:
            until(server.is_ready, RECOVERY_SECONDS)
            load = server.constant_load()
            start = time.monotonic()
            time.sleep(QUIET_SECONDS)
            blow = time.monotonic()
            tracking.stop()
            until(lambda: "problem" in server.get("/readyz").json, RECOVERY_SECONDS)
            time.sleep(QUIET_SECONDS)
            ready = server.is_ready()
            tracking.start()
            until(lambda: "problem" not in server.get("/readyz").json, RECOVERY_SECONDS)
        finally:
            tracking.stop()
        outcome = load.stop()
    wrong = check(bool(outcome.failed), "requests failed") + check(not ready, "it called itself not ready")
    what = "MLflow down at the start, up, down under load, up"
    return row(what, outcome.between(blow, math.inf), outcome.between(start, blow), None, *wrong)


def answered(server: Server, code: str) -> bool:
    try:
        reply = server.get("/readyz")
    except OSError:
        return False
    return reply.status == 503 and reply.code == code


FAULTS: dict[str, Callable[[Project], Row]] = {
    "serve-replica": kill_replica,
    "serve-model": kill_model,
    "serve-only-replica": kill_only_replica,
    "serve-gateway": kill_gateway,
    "serve-only-gateway": kill_only_gateway,
    "serve-decoder": kill_decoder,
    "serve-registry": stop_registry,
}
