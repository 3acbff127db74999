"""`python -m trainer`: trains on packed shards, on the Ray cluster that is there or on one of its own."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.load import Section, UsageError, fail, parse
from configs.train import REGISTERED_MODEL, TrainConfig, tracking_uri

PROG = "python -m trainer"
ENV_PREFIX = "CLIPSTREAM_TRAIN_"
DESCRIPTION = """Train a video classifier on the shards that `python -m packer` wrote.

It runs on the Ray cluster that RAY_ADDRESS names, as in a job, or on a local one that it starts. The run is tracked in
MLflow, the best epoch's model is registered, and the alias `champion` moves to it if it is better than the one before.
`python -m trainer promote VERSION` moves the alias by hand."""


class PromoteConfig(Section):
    """What `python -m trainer promote` can be told."""

    registered_model: str = REGISTERED_MODEL
    """Name in the MLflow registry."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 failed, 2 a wrong command, 130 stopped by the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        if arguments[:1] == ["promote"]:
            return _promote(arguments[1:])
        config = parse(TrainConfig, arguments, prog=PROG, description=DESCRIPTION, env_prefix=ENV_PREFIX)
        logging.info("trainer interpreter=%s package=%s", sys.executable, Path(__file__).parent)
        # Imported when they are needed: PyArrow, torch and Ray take time, which --help and a refusal should not.
        from trainer.preflight import check

        check(config)
        _prepare_imports()
        from trainer.job import train

        return train(config)
    except UsageError as error:
        return fail(PROG, error)
    except KeyboardInterrupt:  # while things start; a run that began is ended by `train`
        print(f"{PROG}: interrupted", file=sys.stderr)
        return 130


def _prepare_imports() -> None:
    """Sets what libraries read from the environment while they are imported."""
    os.environ.setdefault("WDS_SECURE", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _promote(arguments: list[str]) -> int:
    version = arguments[0] if arguments and not arguments[0].startswith("-") else None
    config = parse(
        PromoteConfig,
        arguments[1:] if version else arguments,
        prog=f"{PROG} promote VERSION",
        description="Move the alias `champion` of a registered model to VERSION, forward or back.",
        env_prefix=ENV_PREFIX,
    )
    if version is None:
        raise UsageError("promote needs a version: python -m trainer promote VERSION")
    from trainer.registry import Registry

    print(Registry(tracking_uri(), config.registered_model).promote(version))
    return 0


if __name__ == "__main__":
    sys.exit(main())
