"""Starts a Ray of this machine with the application on it, drains it and stops it."""

import logging
import os
import secrets
import signal

from configs.serve import ServeCommand
from serve.gateway.auth import LOOPBACK_NAMES
from serve.proxy.set_up import CALLBACK_VARIABLE, SET_UP

APPLICATION = "clipstream"
PROXY_SECONDS = 15.0
"""How much longer than the application Ray's proxy waits; a client can raise the proxy's time, but not the other."""


def start(command: ServeCommand) -> None:
    """Starts Ray, its proxy and the application, and returns once the application is there."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else it tells of one request in place of many
    os.environ[CALLBACK_VARIABLE] = SET_UP
    if command.host in LOOPBACK_NAMES:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: Ray's node takes the loopback address
    import ray  # here, for a fast --help
    from ray import serve as ray_serve

    from serve.app import build

    num_cpus = max(os.cpu_count() or 1, command.max_replicas * command.cpus_per_replica)
    quiet = {"log_level": "WARNING"}  # Ray tells every request and every replica otherwise
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=num_cpus,
        logging_level=logging.WARNING,
        _metrics_export_port=command.metrics_port,
    )
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


def drain(deadline_seconds: float) -> None:
    """Lets the gateways answer what they have; Ray's own shutdown ends its proxy, and every connection, at once."""
    import ray
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    try:
        gateways = ray_serve.get_app_handle(APPLICATION)
        gateways.broadcast("close").results(timeout_s=deadline_seconds)
    except (KeyboardInterrupt, SystemExit):  # told again: now
        return
    except (RayServeException, ray.exceptions.RayError, TimeoutError) as error:
        logging.getLogger("serve").warning("not_drained reason=%s", error)


def stop() -> None:
    """Ends the application and every process of Ray that `start` began."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave processes behind
    import ray
    from ray import serve as ray_serve

    if ray.is_initialized():
        ray_serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown(wait_for_processes=True)
