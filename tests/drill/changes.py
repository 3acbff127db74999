"""Drills of what a server goes through in its life: new versions, too much load, shutdown, a new config, scaling."""

import math
import time
from collections.abc import Callable

import yaml

from configs.load import find_config
from tests.drill.rows import Row, check, recovery_seconds, refused_well, row
from tests.drill.server import MODEL_NAME, QUIET_SECONDS, RECOVERY_SECONDS, WARM_SECONDS, Server, served
from tests.support.load import Load
from tests.support.ports import free_ports
from tests.support.registry import store_uri
from tests.support.training import CLUSTER, ROOT, Project
from tests.support.waiting import until
from trainer.tracking.registry import Registry

NUM_SWAPS = 10
SWAP_SECONDS = 10.0
"""Time for one swap: the poll, the load and the check of a version."""
P99_FACTOR, WORST_FACTOR = 1.5, 2.0
"""How much slower answers may be while versions are swapped than while none is."""
OVERLOAD_FACTOR = 4.0
REFUSAL_SHARE = 0.1
"""How long refusals may take, as a share of what accepted requests take in a queue that is just full: by the same
machine in the same minute, which a limit in seconds is not (0.12 to 0.22 s where answers take 2.4 s)."""


def swap(project: Project) -> Row:
    """Time windows with and without a swap take turns, so that other work on the machine affects both equally."""
    registry = Registry(store_uri(project.home), MODEL_NAME)
    windows: list[tuple[str | None, float]] = []
    with served(project, "--num-replicas", "2") as server:
        load = server.constant_load()
        for number in range(2 * NUM_SWAPS):
            version = str(1 + number // 2 % 2) if number % 2 else None
            windows.append((version, time.monotonic()))
            if version:
                registry.promote(version)
            time.sleep(SWAP_SECONDS)
        outcome = load.stop()
    loads = [(version, outcome.between(start, start + SWAP_SECONDS)) for version, start in windows]
    without, during = (
        Load([one for version, window in loads if bool(version) is swapped for one in window.outcomes], 1)
        for swapped in (False, True)
    )
    late = [version for version, window in loads if version and window.answered[-1].version != version]
    slow = [
        f"{name} is {during.percentile(percent) / without.percentile(percent):.1f} times that without a swap"
        for name, percent, factor in (("p99", 99, P99_FACTOR), ("worst", 100, WORST_FACTOR))
        if during.percentile(percent) > factor * without.percentile(percent)
    ]
    return row(
        f"alias moved {NUM_SWAPS} times, two replicas",
        during,
        without,
        None,
        *slow,
        *check(bool(outcome.failed), f"{len(outcome.failed)} requests failed"),
        *check(bool(late), f"{len(late)} versions were not swapped within {SWAP_SECONDS:g} s"),
        *check(any(one.version is None for one in outcome.answered), "an answer names no version"),
    )


def overload(project: Project) -> Row:
    """Accepted requests take no longer than they would in a queue that is always just full."""
    with served(project) as server:
        full = server.closed_loop(32, QUIET_SECONDS)
        load = server.open_loop(OVERLOAD_FACTOR * server.capacity, QUIET_SECONDS)
        time.sleep(1)
        after = server.post().status
    slowest = max((one.seconds for one in load.failed), default=0.0)
    late = sorted(one.seconds for one in load.failed)[int(0.99 * len(load.failed))] if load.failed else math.nan
    slow = load.percentile(99) > P99_FACTOR * full.percentile(99)
    return row(
        f"{OVERLOAD_FACTOR:g} times the load it can take: refused within {late:.3f} s (p99), {slowest:.3f} s (worst); "
        f"accepted beside a queue that is just full",
        load,
        full,
        None,
        *refused_well(load.failed, {"overloaded"}),
        *check(not late <= REFUSAL_SHARE * full.percentile(99), f"p99 of the refusals is {late:.3f} s"),
        *check(slow, "what was accepted took longer"),
        *check(after != 200, "it does not answer afterwards"),
    )


def shut_down(project: Project) -> Row:
    """SIGTERM while requests wait: all accepted requests are answered, and new ones are refused."""
    with served(project) as server:
        load = server.background(f"--rate={1.5 * server.capacity}")
        time.sleep(WARM_SECONDS)
        blow = time.monotonic()
        server.process.terminate()
        until(lambda: server.process.poll() is not None, RECOVERY_SECONDS)
        seconds = time.monotonic() - blow
        outcome = load.stop()
    accepted = [one for one in outcome.outcomes if one.code not in {"overloaded", "shutting_down"} and one.start < blow]
    lost = [one for one in accepted if one.status != 200]
    refused = [one for one in outcome.outcomes if one.status and one not in accepted and one.status != 200]
    wrong = check(bool(lost), f"{len(lost)} accepted requests were lost, such as {lost[:1]}")
    wrong += refused_well(refused, {"overloaded", "shutting_down"})
    what = f"SIGTERM under 1.5 times the load it can take: gone after {seconds:.1f} s, {len(refused)} refused"
    return row(what, Load(accepted, seconds), None, None, *wrong)


def redeploy(project: Project) -> Row:
    """`serve deploy` of a changed config: its only replica is away meanwhile, and refusals say so."""
    config = yaml.safe_load(find_config("serve.yaml").read_text())
    args = config["applications"][0]["args"]
    args |= {"allow_unauthenticated": True, "registered_model": MODEL_NAME}
    config["http_options"]["port"], config["grpc_options"]["port"] = map(int, free_ports(2))
    path = project.home / "serve.yaml"

    def deploy(top_k: int) -> None:
        args["top_k"] = top_k
        path.write_text(yaml.safe_dump(config))
        script = f". {project.home / '.ray' / 'env'}; RAY_DASHBOARD_ADDRESS=$RAY_API_SERVER_ADDRESS serve deploy {path}"
        assert project.run("bash", "-c", script).code == 0

    assert project.run(*CLUSTER, "start", PYTHONPATH=str(ROOT)).code == 0
    try:
        server = Server(project, config["http_options"]["port"])
        deploy(1)
        until(server.is_ready, RECOVERY_SECONDS)
        load = server.constant_load()
        start = time.monotonic()
        time.sleep(QUIET_SECONDS)
        blow = time.monotonic()
        deploy(2)
        until(lambda: len(server.post().json.get("predictions", [])) == 2, RECOVERY_SECONDS)
        time.sleep(WARM_SECONDS)
        outcome = load.stop()
    finally:
        project.run(*CLUSTER, "stop")
    after = outcome.between(blow, math.inf)
    wrong = refused_well(after.failed, {"unavailable", "no_model"})
    quiet = outcome.between(start, blow)
    return row("serve deploy of a changed config", after, quiet, recovery_seconds(after, blow), *wrong)


def autoscale(project: Project) -> Row:
    """One replica at rest, three under more load than one can take, then one again: no request fails meanwhile."""
    options = ["--autoscaling.max-replicas", "3", "--autoscaling.target-ongoing-requests", "2"]
    with served(project, *options, "--autoscaling.downscale-delay-seconds", "5") as server:
        at_rest = len(server.replicas("ModelReplica"))
        start = time.monotonic()
        load = server.background("--concurrency", "12")
        until(lambda: len(server.replicas("ModelReplica")) == 3, RECOVERY_SECONDS)
        seconds = time.monotonic() - start
        time.sleep(QUIET_SECONDS)
        loaded = load.stop()
        rest = server.background("--rate", "1")
        until(lambda: len(server.replicas("ModelReplica")) == 1, 2 * RECOVERY_SECONDS)
        outcome = Load(loaded.outcomes + rest.stop().outcomes, time.monotonic() - start)
    wrong = check(at_rest != 1, f"{at_rest} replicas at rest") + check(bool(outcome.failed), "requests failed")
    return row(f"12 clients at once: 1 to 3 replicas in {seconds:.0f} s, and back", outcome, None, None, *wrong)


CHANGES: dict[str, Callable[[Project], Row]] = {
    "serve-swap": swap,
    "serve-overload": overload,
    "serve-shutdown": shut_down,
    "serve-deploy": redeploy,
    "serve-autoscale": autoscale,
}
