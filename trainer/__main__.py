"""`python -m trainer`: trains on packed shards, on the Ray cluster that is there or on one of its own."""

import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.home import resolve, tracking_uri
from configs.load import fail, parse
from configs.section import UsageError
from configs.train import AuditConfig, CvConfig, PromoteConfig, TrainConfig

PROG = "python -m trainer"
ENV_PREFIX = "CLIPSTREAM_TRAIN_"
DESCRIPTION = """Train a video classifier on the shards that `python -m packer` wrote.

It runs on the Ray cluster that RAY_ADDRESS names, as in a job, or on a local one that it starts. The run is tracked in
MLflow, the best epoch's model is registered, and the alias `champion` moves to it if it is better than the one before.
`python -m trainer promote VERSION` moves the alias by hand, `python -m trainer compare RUN_A RUN_B` shows two runs side
by side, `python -m trainer cv` cross-validates, `python -m trainer audit RUN` proves from what a run with --audit wrote
down that each sample was used once per epoch."""
CV_DESCRIPTION = """Repeat a training on several packs, one for each split or fold of the same videos.

The trainings run one after another, each as `python -m trainer` would do it, but register no model. Printed and logged
are each test split's figures with bootstrap intervals, their mean and their range, in one MLflow run whose children the
trainings are. With the same --run, what was stopped goes on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 failed, 2 a wrong command, 130 stopped by the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        if arguments[:1] == ["promote"]:
            return _promote(arguments[1:])
        if arguments[:1] == ["compare"]:
            return _compare(arguments[1:])
        if arguments[:1] == ["audit"]:
            return _audit(arguments[1:])
        config = _parse(arguments)
        logging.info("trainer interpreter=%s package=%s", sys.executable, Path(__file__).parent)
        # Imported when they are needed: PyArrow, torch and Ray take time, which --help and a refusal should not.
        from trainer.driver.preflight import check

        for each in config.folds() if isinstance(config, CvConfig) else [config]:
            check(each)
        _prepare_imports()
        if isinstance(config, CvConfig):
            from trainer.driver.cross_validation import cross_validate

            return cross_validate(config)
        from trainer.driver.job import train

        return train(config)
    except UsageError as error:
        return fail(PROG, error)
    except KeyboardInterrupt:  # while things start; a run that began is ended by `train`
        print(f"{PROG}: interrupted", file=sys.stderr)
        return 130


def _parse(arguments: list[str]) -> TrainConfig:
    if arguments[:1] == ["cv"]:
        return parse(CvConfig, arguments[1:], prog=f"{PROG} cv", description=CV_DESCRIPTION, env_prefix=ENV_PREFIX)
    return parse(TrainConfig, arguments, prog=PROG, description=DESCRIPTION, env_prefix=ENV_PREFIX)


def _prepare_imports() -> None:
    """Sets what libraries read from the environment while they are imported."""
    os.environ.setdefault("WDS_SECURE", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
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
    from trainer.tracking.registry import Registry

    print(Registry(tracking_uri(), config.registered_model).promote(version))
    return 0


def _compare(arguments: list[str]) -> int:
    if len(arguments) != 2 or any(argument.startswith("-") for argument in arguments):
        raise UsageError("compare needs two runs by name or id: python -m trainer compare RUN_A RUN_B")
    _prepare_imports()
    from trainer.tracking.compare import compare

    print(compare(tracking_uri(), arguments))
    return 0


def _audit(arguments: list[str]) -> int:
    config = parse(
        AuditConfig,
        arguments,
        prog=f"{PROG} audit",
        description="Prove that a run used each sample once per epoch; exit code 1 if it did not.",
        env_prefix=ENV_PREFIX,
    )
    from trainer.worker.audit import AUDIT_FOLDER, replay

    shown = replay(resolve(config.runs) / config.run / AUDIT_FOLDER)
    print(shown)
    return 1 if shown.problems else 0


if __name__ == "__main__":
    code = main()
    gc.freeze()  # else the interpreter's end looks for cycles in all that torch and MLflow imported: 1.5 s
    sys.exit(code)
