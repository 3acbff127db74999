"""`python -m trainer`: trains on packed shards, on a running Ray cluster or on one of its own."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.explain import ExplainConfig, ReviewConfig
from configs.home import resolve, tracking_uri
from configs.load import fail, parse
from configs.section import UsageError
from configs.train import AuditConfig, CvConfig, PromoteConfig, TrainConfig, UiConfig
from trainer.driver.ending import EXIT_FAILED, EXIT_STOPPED, RunFailedError, Stopped

PROG = "python -m trainer"
ENV_PREFIX = "CLIPSTREAM_TRAIN_"
DESCRIPTION = """Train a video classifier on the shards that `python -m packer` wrote.

The training runs on the Ray cluster that RAY_ADDRESS names, as in a Ray job, or on a local one that it starts. MLflow
tracks the run. The best epoch's model is registered as a new version, and the alias `champion` moves to it if it is
better than the champion so far. To resume a run that was stopped, give the same command with its --run.

other commands, each with a --help of its own:
  python -m trainer cv                    cross-validate: repeat the training on several packs
  python -m trainer ui                    show runs and models in the browser, by MLflow's page
  python -m trainer promote VERSION       make a version the champion
  python -m trainer compare RUN_A RUN_B   show two runs side by side
  python -m trainer explain RUN           show why clips were answered wrongly: where the model looked, what is alike
  python -m trainer review RUN            list the clips whose label may be wrong, as a table to correct
  python -m trainer audit RUN             prove that a run with --audit used each sample once per epoch"""
CV_DESCRIPTION = """Repeat a training on several packs, one for each split or fold of the same videos.

The trainings run one after another, each as `python -m trainer` would do it, but they register no model. The figures of
each test split with bootstrap intervals, their mean and their range are printed, and logged to one MLflow run whose
children are the trainings. To resume a cross-validation that was stopped, give the same command with its --run."""
EXPLAIN_DESCRIPTION = """Show why a finished run's model answered as it did, with a page (PNG) for each clip.

  python -m trainer explain RUN                       the 12 worst mistakes of the test split
  python -m trainer explain RUN --clip walk/a.mp4     one clip of the pack
  python -m trainer explain RUN --clip ~/new.mp4      any video file

A page shows the frames as the model sees them, coloured where they speak for the predicted class (orange) or for the
class that it is compared with (blue), the weight of each frame, and the train clips that the model finds most alike.
Pages are written to explain/ in the run's folder and in its MLflow run. It needs captum: pip install
'clipstream[explain]'."""
REVIEW_DESCRIPTION = """List the clips whose label may be wrong: a model that never saw them in training doubts it.

A run's val and test splits are covered, not its train split, whose labels the model has learnt. The trainings of a
cross-validation over folds together cover every clip. The table has the columns path, label, predicted, probability,
probability_of_label, suspicion and split, the most suspicious clip first; a picture of these clips lies beside it.
Correct the column label and give the table to the packer, then train again:

  python -m packer relabel shards --labels review.csv"""
COMPARE_USAGE = f"""usage: {PROG} compare RUN_A RUN_B

Show two runs side by side: the settings that differ, the val and test figures of the epoch that each run kept, and how
likely it is that chance alone makes such a difference.

  RUN_A, RUN_B  names of the runs, or their MLflow ids: `{PROG} ui` shows both"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 failed, 2 wrong command, 130 stopped by the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    commands: dict[str, Callable[[list[str]], int]] = {
        "cv": _cross_validate,
        "ui": _show_ui,
        "promote": _promote,
        "compare": _compare,
        "explain": _explain,
        "review": _review,
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


def _show_ui(arguments: list[str]) -> int:
    config = parse(
        UiConfig,
        arguments,
        prog=f"{PROG} ui",
        description="Print the address of MLflow's page. For a store on this machine, serve the page until Ctrl-C.",
        env_prefix=ENV_PREFIX,
    )
    _prepare_imports()
    from trainer.tracking.ui import show  # here, not above: it imports MLflow

    show(tracking_uri(), config.port)
    return 0


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


def _explain(arguments: list[str]) -> int:
    config = parse(
        ExplainConfig, arguments, prog=f"{PROG} explain", description=EXPLAIN_DESCRIPTION, env_prefix=ENV_PREFIX
    )
    _prepare_imports()
    from trainer.explain.answers import explain  # here, not above: it imports torch

    for shown in explain(config):
        print(shown, flush=True)
    return 0


def _review(arguments: list[str]) -> int:
    config = parse(
        ReviewConfig, arguments, prog=f"{PROG} review", description=REVIEW_DESCRIPTION, env_prefix=ENV_PREFIX
    )
    _prepare_imports()
    from trainer.explain.review import review  # here, not above: it imports torch

    print(review(config))
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
