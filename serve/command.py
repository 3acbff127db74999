"""The commands `python -m serve`, the application on a local Ray until it is stopped, and `python -m serve score`.

By default the server listens on a loopback address. Scoring a folder needs no Ray; see serve/scoring.
"""

import logging
import socket
import sys
from collections.abc import Sequence
from typing import Any

from configs.load import config_option, fail, find_config, parse, read_yaml
from configs.score import ScoreConfig
from configs.section import UsageError
from configs.serve import ServeCommand
from serve.gateway.auth import LOOPBACK_NAMES, read_keys
from serve.gateway.page import find_samples
from serve.local_ray import address
from serve.server_life import serve_until_stopped

PROG = "python -m serve"
DESCRIPTION = """Serves the registered model over HTTP: POST a video to /v1/predict, or open the address in a browser.

If there is no model yet, the server says so and waits for one. Ctrl-C or SIGTERM stops it: requests inside get their
answers first; a second one cuts them off.

`python -m serve score videos/` scores a folder instead, without a server.

Exit codes: 0 stopped by SIGTERM, 130 by Ctrl-C, 1 the server could not start, 2 a wrong command."""
SCORE_DESCRIPTION = """Classifies every video of a folder with the registered model, as the server would: one row each.

python -m serve score videos/ --out predictions.csv   after a stop, the same command continues it

--out may end in .parquet, .csv or .jsonl. A row holds the video's path in the folder (source), the most probable class
(predicted) and its probability, and the probability of every class (p_<class>). If a file gives no clip, its row says
why (reason, message). If the first folder of the path has the name of a class, that class is taken as the true one
(true_class), and the accuracy is printed too: apart for videos that the model was trained on, because it says nothing
about them. seen_in tells in which split of the model's pack a video lies.

Exit codes: 0 scored, 1 failed or more rejected than --max-rejected-fraction, 2 a wrong command, 130 Ctrl-C."""
EXIT_INTERRUPTED = 130


def run(argv: Sequence[str]) -> int:
    """Runs the command with these arguments and returns its exit code."""
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
        return fail(PROG, error, ServeCommand)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return serve_until_stopped(command)


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
        return fail(prog, error, ScoreConfig)
    except OSError as error:
        print(f"{prog}: {error}: fix this, then give the same command to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: stopped; give the same command to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(format_report(result))
    if result.rejected_fraction > config.max_rejected_fraction:
        print(
            f"{prog}: {result.rejected_fraction:.1%} of the videos were rejected, more than --max-rejected-fraction "
            f"({config.max_rejected_fraction:.1%}); the file is complete",
            file=sys.stderr,
        )
        return 1
    return 0


def _deploy_config_values(name: str | None) -> dict[str, Any]:
    """Returns the fields that a Ray Serve deploy config holds for `ServeCommand`."""
    if name is None:
        return {}
    path = find_config(name)
    values = read_yaml(path)
    try:
        args = values["applications"][0].get("args") or {}
        http_options = values.get("http_options") or {}
        return {**args, **{field: http_options[field] for field in ("host", "port") if field in http_options}}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a Ray Serve deploy config: it needs applications[0].args") from error


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {address(host, port)} ({error.strerror}): choose another --port or --host"
            ) from error
