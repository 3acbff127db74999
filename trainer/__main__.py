"""`python -m trainer`: trains on packed shards, on a running Ray cluster or on one of its own."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.home import resolve, tracking_uri
from configs.load import fail, parse
from configs.section import UsageError
from configs.train import AuditConfig, CvConfig, PromoteConfig, TrainConfig
from trainer.driver.ending import EXIT_FAILED, EXIT_STOPPED, RunFailedError, Stopped

PROG = "python -m trainer"
ENV_PREFIX = "CLIPSTREAM_TRAIN_"
DESCRIPTION = """Train a video classifier on the shards that `python -m packer` wrote.

The training runs on the Ray cluster that RAY_ADDRESS names, as in a Ray job, or on a local one that it starts. MLflow
tracks the run. The best epoch's model is registered as a new version, and the alias `champion` moves to it if it is
better than the champion so far. To resume a run that was stopped, give the same command with its --run.

other commands, each with a --help of its own:
  python -m trainer cv                    cross-validate: repeat the training on several packs
  python -m trainer promote VERSION       make a version the champion
  python -m trainer compare RUN_A RUN_B   show two runs side by side
  python -m trainer audit RUN             prove that a run with --audit used each sample once per epoch"""
CV_DESCRIPTION = """Repeat a training on several packs, one for each split or fold of the same videos.

The trainings run one after another, each as `python -m trainer` would do it, but they register no model. The figures of
each test split with bootstrap intervals, their mean and their range are printed, and logged to one MLflow run whose
children are the trainings. To resume a cross-validation that was stopped, give the same command with its --run."""
COMPARE_USAGE = f"""usage: {PROG} compare RUN_A RUN_B

Show two runs side by side: settings that differ, figures, and whether the difference could be chance. A run is given by
its name or by its MLflow id."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 failed, 2 wrong command, 130 stopped by the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    commands: dict[str, Callable[[list[str]], int]] = {
        "cv": _cross_validate,
        "promote": _promote,
        "compare": _compare,
        "audit": _audit,
    }
    command = commands.get(arguments[0]) if arguments else None
    try:
        return command(arguments[1:]) if command else _train(arguments)
    except UsageError as error:
        return fail(PROG, error, TrainConfig)
    except RunFailedError:  # the log has the reason
        return EXIT_FAILED
    except Stopped:
        return EXIT_STOPPED
    except KeyboardInterrupt:  # before `catch_stop_signals`
        print(f"{PROG}: interrupted", file=sys.stderr)
        return EXIT_STOPPED


def _train(arguments: list[str]) -> int:
    config = parse(TrainConfig, arguments, prog=PROG, description=DESCRIPTION, env_prefix=ENV_PREFIX)
    _check([config])
    _prepare_imports()
    from trainer.driver.job import train  # here, not above: it imports torch and Ray

    train(config)
    return 0


def _cross_validate(arguments: list[str]) -> int:
    config = parse(CvConfig, arguments, prog=f"{PROG} cv", description=CV_DESCRIPTION, env_prefix=ENV_PREFIX)
    _check(config.folds())
    _prepare_imports()
    from trainer.driver.cross_validation import cross_validate  # here, not above: it imports torch and Ray

    cross_validate(config)
    return 0


def _check(configs: list[TrainConfig]) -> None:
    logging.info("trainer interpreter=%s package=%s", sys.executable, Path(__file__).parent)
    from trainer.driver.preflight import check  # here, not above: it imports PyArrow

    for config in configs:
        check(config)


def _prepare_imports() -> None:
    """Sets the environment variables that libraries read while they are imported."""
    os.environ.setdefault("WDS_SECURE", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _promote(arguments: list[str]) -> int:
    config = parse(
        PromoteConfig,
        arguments,
        prog=f"{PROG} promote",
        description="Move the alias `champion` of a registered model to a version, newer or older.",
        env_prefix=ENV_PREFIX,
    )
    from trainer.tracking.registry import Registry  # here, not above: it imports MLflow

    print(Registry(tracking_uri(), config.registered_model).promote(config.version))
    return 0


def _compare(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print(COMPARE_USAGE)
        return 0
    if len(arguments) != 2 or any(argument.startswith("-") for argument in arguments):
        raise UsageError("compare needs two runs by name or id: python -m trainer compare RUN_A RUN_B")
    _prepare_imports()
    from trainer.tracking.compare import compare  # here, not above: it imports MLflow

    print(compare(tracking_uri(), arguments))
    return 0


def _audit(arguments: list[str]) -> int:
    config = parse(
        AuditConfig,
        arguments,
        prog=f"{PROG} audit",
        description="Prove that a run used each sample once per epoch. The exit code is 1 if it did not.",
        env_prefix=ENV_PREFIX,
    )
    from trainer.worker.audit import replay  # here, not above: it imports numpy
    from trainer.worker.spec import AUDIT_FOLDER

    shown = replay(resolve(config.runs) / config.run / AUDIT_FOLDER)
    print(shown)
    return 1 if shown.problems else 0


if __name__ == "__main__":
    code = main()
    gc.freeze()  # otherwise Python looks for cycles in all of torch and MLflow at its end: 1.5 s
    sys.exit(code)
