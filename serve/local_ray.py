"""A Ray on this machine only, with the application on it, for as long as a `with` block lasts.

It starts no dashboard and no gRPC server, and leaves no process behind. If the server listens on a loopback address,
so do Ray's own ports, those of its metrics included. Only the replicas' ports always listen on every address; they want
a token that is made anew for each start.
"""

import logging
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from configs.serve import ServeCommand
from serve.gateway.auth import LOOPBACK_NAMES
from serve.proxy.set_up import CALLBACK_VARIABLE, SET_UP

logger = logging.getLogger(__name__)

APPLICATION = "clipstream"
PROXY_SECONDS = 15.0
"""How much longer than the application Ray's proxy waits for an answer. Clients can raise only the proxy's time."""


@contextmanager
def running(command: ServeCommand) -> Iterator[str]:
    """Starts Ray and the application; yields the host and port of the metrics; stops everything with the block.

    At the end, the requests inside get their answers first, within `deadline_seconds`. Another Ctrl-C or SIGTERM ends
    that wait. In the block SIGTERM raises SystemExit(0), as Ctrl-C raises KeyboardInterrupt.
    """
    _exit_on_sigterm()
    try:
        _start_ray(command)
        _start_application(command)
        _exit_on_sigterm()  # again, because Ray has installed its own handler
        try:
            yield _metrics_address()
        finally:
            _drain(command.deadline_seconds)
    finally:
        _stop()


def address(host: str, port: int) -> str:
    """Returns host and port as a URL has them: `127.0.0.1:8000`, `[::1]:8000`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _start_ray(command: ServeCommand) -> None:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # otherwise Ray prints one of many similar requests
    os.environ[CALLBACK_VARIABLE] = SET_UP
    if command.host in LOOPBACK_NAMES:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too, it makes Ray's node use loopback
    import ray  # here, for a fast --help

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=max(os.cpu_count() or 1, command.max_replicas * command.cpus_per_replica),
        logging_level=logging.WARNING,
        _metrics_export_port=command.metrics_port,
    )


def _start_application(command: ServeCommand) -> None:
    from ray import serve as ray_serve

    from serve.app import build

    quiet = {"log_level": "WARNING"}  # otherwise Ray logs every request and every replica
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": command.host,
            "port": command.port,
            "request_timeout_s": command.deadline_seconds + PROXY_SECONDS,
        },
        logging_config=quiet,
    )
    ray_serve.run(build(command), name=APPLICATION, logging_config=quiet)


def _metrics_address() -> str:
    import ray

    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    return address(node["NodeManagerAddress"], node["MetricsExportPort"])


def _drain(deadline_seconds: float) -> None:
    """Waits until the gateways have answered what they have; Ray's own shutdown cuts every connection at once."""
    import ray
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    try:
        gateways = ray_serve.get_app_handle(APPLICATION)
        gateways.broadcast("close").results(timeout_s=deadline_seconds)
    except (KeyboardInterrupt, SystemExit):
        logger.warning("not_drained reason=another signal")
    except (RayServeException, ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("not_drained reason=%s", error)


def _stop() -> None:
    """Ends the application and every process of Ray that was started here."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # another Ctrl-C would leave processes behind
    import ray
    from ray import serve as ray_serve

    if ray.is_initialized():
        ray_serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown(wait_for_processes=True)


def _exit_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, _raise_exit)


def _raise_exit(number: int, frame: object) -> None:
    raise SystemExit(0)
