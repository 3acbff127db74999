"""The command `python -m serve`: a local Ray with the application on it, on a loopback address, until it is stopped.

`python -m serve score` needs no Ray; its work is in score.py.

It starts no dashboard and no gRPC server and leaves no process behind. Ray's own ports, its metrics among them, are on
loopback as well; only the replicas' listen on every address whatever one says, behind a token of this run.
"""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from configs.load import config_option, fail, find_config, parse, read_yaml
from configs.score import ScoreConfig
from configs.section import UsageError
from configs.serve import ServeCommand
from serve.gateway.auth import LOOPBACK_NAMES, read_keys
from serve.gateway.page import find_samples
from serve.local_ray import drain, start, stop

PROG = "python -m serve"
DESCRIPTION = """Serves the registered model over HTTP: POST a video to /v1/predict, or open the address in a browser.

`python -m serve score videos/` scores a folder instead, without a server."""
SCORE_DESCRIPTION = """Classifies every video of a folder with the registered model, as the server would: one row each.

python -m serve score videos/ --out predictions.parquet   the same command goes on with a stopped scoring

A row holds the video's path in the folder (source), the most probable class (predicted) and its probability, that of
every class (p_<class>), and, for a file that gives no clip, why (reason, message). The first folder of a path is taken
for its true class (true_class) where the model has a class of that name: then the accuracy is printed too.
Exit codes: 0 scored, 1 failed or more rejected than --max-rejected-fraction, 2 a wrong command, 130 Ctrl-C."""
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:1]) == ["score"]:
        return _score(argv[1:])
    try:
        command = parse(
            ServeCommand,
            argv,
            prog=PROG,
            description=DESCRIPTION,
            env_prefix="CLIPSTREAM_SERVE_",
            yaml_values=_deploy_config_values(config_option(argv)),
        )
        if command.host in LOOPBACK_NAMES:
            command = command.model_copy(update={"allow_unauthenticated": True})
        read_keys(command)
        find_samples(command.samples)
        _check_port(command.host, command.port)
    except UsageError as error:
        return fail(PROG, error)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return _serve(command)


def _score(argv: Sequence[str]) -> int:
    prog = f"{PROG} score"
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        if not argv:
            argv = ["--help"]
        config = parse(ScoreConfig, argv, prog=prog, description=SCORE_DESCRIPTION, env_prefix="CLIPSTREAM_SCORE_")
        from serve.scoring.score import format_report, score  # here, for a fast --help

        result = score(config)
    except UsageError as error:
        return fail(prog, error)
    except OSError as error:
        print(f"{prog}: {error}: once that is mended, the same command continues it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: stopped; the same command continues it", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(format_report(result, config))
    if result.rejected_fraction > config.max_rejected_fraction:
        print(
            f"{prog}: {result.rejected_fraction:.1%} of the videos were rejected, more than max_rejected_fraction "
            f"({config.max_rejected_fraction:.1%}); the file is complete",
            file=sys.stderr,
        )
        return 1
    return 0


def _deploy_config_values(name: str | None) -> dict[str, Any]:
    """Returns the fields that a Ray Serve deploy config holds for `ServeCommand`."""
    if name is None:
        return {}
    values = read_yaml(find_config(name))
    try:
        args = values["applications"][0].get("args") or {}
        http_options = values.get("http_options") or {}
        return {**args, **{field: http_options[field] for field in ("host", "port") if field in http_options}}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{name} is not a Ray Serve deploy config: it needs applications[0].args") from error


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port") from error


def _serve(command: ServeCommand) -> int:
    signal.signal(signal.SIGTERM, _raise_exit)
    try:
        start(command)
        signal.signal(signal.SIGTERM, _raise_exit)  # Ray has put its own handler there
        logger = logging.getLogger("serve")
        logger.info(
            "listening url=http://%s:%d metrics=http://%s/metrics model=%s",
            command.host,
            command.port,
            _metrics_address(),
            command.registered_model,
        )
        try:
            threading.Event().wait()
        finally:
            drain(command.deadline_seconds)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        stop()
    return 0


def _metrics_address() -> str:
    import ray

    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


def _raise_exit(number: int, frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
