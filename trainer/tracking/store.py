"""MLflow's SQLite store on one machine: it exists as a whole, or not at all.

Stores of other kinds, a tracking server above all, are left alone. Nothing here reads or writes runs.
"""

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from configs.section import UsageError

PREFIX = "sqlite:///"
"""What the URI of a SQLite store begins with; its path follows."""


def is_absent(uri: str) -> bool:
    """Tells whether an MLflow store is a SQLite file that does not exist; MLflow would create it on any question."""
    return uri.startswith(PREFIX) and not _path(uri).exists()


def without_password(uri: str) -> str:
    """Returns a store's address as it may be shown: without the user and password that it may hold."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def create_store(uri: str) -> None:
    """Creates a SQLite store that does not exist; any other store is left as it is.

    MLflow itself builds the tables in place, for a second or more. A process that opens the store meanwhile fails
    ("table already exists"), and a store whose creation was killed can never be opened again. So the tables are built
    in a temporary file, which then gets the store's name; if several processes do this, the first one's file stays.

    Raises:
        UsageError: The folder cannot be written to, or is full.
    """
    if not is_absent(uri):
        return
    # Here, not above: clients of a server need no SQLAlchemy. MLflow does not document the class, but `mlflow server`
    # builds its tables by it too, and nothing documented builds them under another name.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import DBAPIError

    path = _path(uri)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            # MLflow keeps the second path for ever; a relative one would start from the current folder, which may be a
            # copy that Ray deletes after the job.
            artifacts = path.absolute().parent / "mlruns"
            SqlAlchemyStore(f"{PREFIX}{made}", str(artifacts)).engine.dispose()  # type: ignore[no-untyped-call]
            _publish(made, path)
    except (OSError, DBAPIError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error  # the error itself quotes the SQL
        raise UsageError(
            f"the MLflow store at {uri} cannot be created ({reason}): make room, or name another by MLFLOW_TRACKING_URI"
        ) from error


def check_store(uri: str) -> None:
    """Checks that a store can be read.

    Raises:
        UsageError: It is a SQLite file that does not exist.
    """
    if is_absent(uri):
        raise UsageError(
            f"there is no MLflow store at {uri} yet: `python -m trainer` creates it, MLFLOW_TRACKING_URI names another"
        )


def _path(uri: str) -> Path:
    return Path(uri.removeprefix(PREFIX).partition("?")[0])


def _publish(made: Path, path: Path) -> None:
    """Gives a file its name, unless the name is taken."""
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links. Another process may still come first between these two lines.
        if not path.exists():
            made.rename(path)
