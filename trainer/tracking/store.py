"""MLflow's SQLite store on one machine: there as a whole, or not at all."""

import os
import tempfile
from pathlib import Path

from configs.section import UsageError

PREFIX = "sqlite:///"


def is_absent(uri: str) -> bool:
    """Whether an MLflow store is a SQLite file that is not there: MLflow, asked for anything in it, would create it."""
    return uri.startswith(PREFIX) and not _path(uri).exists()


def create_store(uri: str) -> None:
    """Creates a SQLite store that is not there; any other store is left as it is.

    MLflow builds the tables in the file itself, for a second or more. Who opens the store meanwhile fails on them
    ("table already exists"), and what a killed process leaves can never be opened again. So they are built in a file
    of their own, which then gets the store's name; of several processes the first one's is taken.

    Raises:
        UsageError: The folder cannot be written to, or is full.
    """
    if not is_absent(uri):
        return
    # Here, as MLflow does it: a server's clients need no SQLAlchemy.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import DBAPIError

    path = _path(uri)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            SqlAlchemyStore(f"{PREFIX}{made}", "./mlruns").engine.dispose()  # type: ignore[no-untyped-call]
            _publish(made, path)
    except (OSError, DBAPIError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error  # without the SQL
        raise UsageError(
            f"the MLflow store at {uri} cannot be created ({reason}): make room, or name another by MLFLOW_TRACKING_URI"
        ) from error


def _path(uri: str) -> Path:
    return Path(uri.removeprefix(PREFIX).partition("?")[0])


def _publish(made: Path, path: Path) -> None:
    """Gives a file its name, unless there is one of that name."""
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links; between these two lines another process could still be first.
        if not path.exists():
            made.rename(path)


def check_store(uri: str) -> None:
    """Checks that there is a store to read from.

    Raises:
        UsageError: It is a SQLite file that is not there.
    """
    if is_absent(uri):
        raise UsageError(
            f"there is no MLflow store at {uri} yet: `python -m trainer` creates it, MLFLOW_TRACKING_URI names another"
        )
