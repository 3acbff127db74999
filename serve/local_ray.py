"""A Ray on this machine only, with the application on it.

It starts no dashboard and no gRPC server, and leaves no process behind. If the server listens on a loopback address,
so do Ray's own ports, those of its metrics included. Only the replicas' ports always listen on every address; they want
a token that is made anew for each start.
"""

import logging
import os
import secrets
import threading
import time

from configs.serve import ServeCommand
from serve.gateway.auth import LOOPBACK_NAMES
from serve.proxy.set_up import CALLBACK_VARIABLE, SET_UP

logger = logging.getLogger(__name__)

APPLICATION = "clipstream"
PROXY_SECONDS = 15.0
"""How much longer than the application Ray's proxy waits for an answer. Clients can raise only the proxy's time."""
POLL_SECONDS = 0.1
"""How often a wait looks whether it is still wanted."""


class StartError(Exception):
    """Ray could not start the application; the text says why."""


class LocalRay:
    """Ray and the application, from start to end.

    `start`, `deploy` and `end` must be called from one thread, which must outlive Ray: Linux ends Ray's processes with
    the thread that started them. The other methods may be called from any thread.

    Args:
        command: The options.
    """

    metrics_address: str
    """Host and port of the metrics, after `deploy`."""

    def __init__(self, command: ServeCommand) -> None:
        self._command = command
        self._is_running = False
        self._to_end = threading.Event()
        self._at_once = threading.Event()

    def start(self) -> None:
        """Starts Ray, which puts its own handler of SIGTERM in the place of the caller's.

        Raises:
            StartError: It did not start.
        """
        _start_ray(self._command)

    def deploy(self) -> None:
        """Starts the application, and returns when it runs, or when it is to end.

        Raises:
            StartError: It cannot run.
        """
        _deploy(self._command)
        while not _is_running():
            if self._to_end.wait(POLL_SECONDS):
                return
        self._is_running = True
        self.metrics_address = _metrics_address()

    def ask_to_end(self) -> None:
        """Lets `deploy` return early."""
        self._to_end.set()

    def hurry(self) -> None:
        """Lets `end` cut off the requests that have no answer yet."""
        self._at_once.set()

    def end(self) -> None:
        """Ends every process that was started here; requests inside get their answers first."""
        if self._is_running:
            self._drain()
        import ray
        from ray import serve as ray_serve
        from ray._private import worker

        worker._worker_logs_enabled = False  # from here on Ray's processes only tell that others of them have ended
        if ray.is_initialized():
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown(wait_for_processes=True)

    def _drain(self) -> None:
        """Waits until the gateways have answered what they have; Ray's own shutdown cuts every connection at once."""
        import ray
        from ray import serve as ray_serve
        from ray.serve.exceptions import RayServeException

        deadline = time.monotonic() + self._command.deadline_seconds
        try:
            answers = ray_serve.get_app_handle(APPLICATION).broadcast("close")
            while not self._at_once.is_set():
                try:
                    answers.results(timeout_s=POLL_SECONDS)
                    return
                except TimeoutError:
                    if time.monotonic() > deadline:
                        raise
        except (RayServeException, ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("not_drained reason=%s", error)


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

    # Filters, because Ray Serve sets the level of its logger anew.
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler" not in record.getMessage())
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(os.cpu_count() or 1, command.max_replicas * command.cpus_per_replica),
            logging_level=logging.WARNING,
            _metrics_export_port=command.metrics_port,
        )
    except Exception as error:  # Ray raises this very class if it is not up after 30 s
        raise StartError(f"Ray did not start ({error}): its logs are in /tmp/ray/session_latest/logs") from error


def _deploy(command: ServeCommand) -> None:
    """Asks Ray to run the application, and does not wait until it does."""
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
    target = ray_serve.RunTarget(build(command), name=APPLICATION, logging_config=quiet)
    ray_serve.run_many([target], wait_for_applications_running=False)


def _is_running() -> bool:
    """Tells whether the application runs.

    Raises:
        StartError: It cannot.
    """
    from ray import serve as ray_serve

    application = ray_serve.status().applications[APPLICATION]
    if application.status == "DEPLOY_FAILED":
        raise StartError(application.message)
    return application.status == "RUNNING"


def _metrics_address() -> str:
    import ray

    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    return address(node["NodeManagerAddress"], node["MetricsExportPort"])
