"""What is said when a training worker fails. Ray Train's controller imports it, so it is light: no torch, no MLflow."""

import logging
from typing import Any

import ray.train

logger = logging.getLogger(__name__)


class FailureReport(ray.train.UserCallback):
    """Says in the job's log which worker failed and why; Ray Train would start the workers again without a word."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Logs the last line of each failed worker's error."""
        for rank, error in worker_exceptions.items():
            logger.warning("worker failed rank=%d reason=%s", rank, last_line(error))


def last_line(error: BaseException) -> str:
    """Returns the last line of an error that carries a worker's stack: the sentence without the stack above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
