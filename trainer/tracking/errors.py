"""What MLflow's errors mean, decided in one place: something does not exist, or the store does not answer.

The caller writes the sentence about something that does not exist, because it knows what was asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from configs.section import UsageError

NOT_FOUND_CODES = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""MLflow's codes for a run, model, version or alias that does not exist.

The second is what its stores answer for an alias that does not exist, and for a version that is no number.
"""


def is_not_found(error: MlflowException) -> bool:
    """Tells whether an error of MLflow means that what was asked for does not exist."""
    return error.error_code in NOT_FOUND_CODES


@contextmanager
def store_answers(uri: str, name: str = "store") -> Iterator[None]:
    """Turns what MLflow raises inside the block into a sentence.

    Args:
        uri: MLflow's store.
        name: What the sentence calls it.

    Raises:
        UsageError: The store refused, or did not answer.
    """
    try:
        yield
    except MlflowException as error:
        raise UsageError(f"the MLflow {name} at {uri} does not answer: {error.message}") from error
