"""Reports failed training workers. Ray Train's controller imports this module, so it imports no torch and no MLflow."""

import logging
from typing import Any

import ray.train

logger = logging.getLogger(__name__)


class FailureReport(ray.train.UserCallback):
    """Logs which worker failed and why; Ray Train restarts the workers without telling the user."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Logs the last line of each failed worker's error."""
        for rank, error in worker_exceptions.items():
            logger.warning("worker failed rank=%d reason=%s", rank, last_line(error))


def last_line(error: BaseException) -> str:
    """Returns the last line of an error whose text contains a worker's stack: the message itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
