"""Where relative paths start, where MLflow's store is, and where child processes find the code."""

import os
import sys
from pathlib import Path

from configs.section import UsageError

HOME_VARIABLE = "CLIPSTREAM_HOME"


def home() -> Path:
    """Returns the absolute folder that relative paths start from: CLIPSTREAM_HOME, or the current folder.

    Raises:
        UsageError: The folder is inside a copy that Ray uploaded, which Ray deletes after the job.
    """
    folder = Path(os.environ.get(HOME_VARIABLE) or Path.cwd()).absolute()
    if "_ray_pkg_" in str(folder):
        raise UsageError(
            f"{folder} is Ray's temporary copy of the working directory and is deleted after the job: start the "
            f"cluster by `make cluster`, or set {HOME_VARIABLE} where `ray start` runs, to the project's folder"
        )
    return folder


def resolve(path: str | Path) -> Path:
    """Returns `path` as an absolute path; a relative one starts from `home()`."""
    expanded = Path(path).expanduser()
    return expanded if expanded.is_absolute() else home() / expanded


def code_path() -> str:
    """Returns the PYTHONPATH with which another process imports the same code as this one."""
    return os.pathsep.join(path for path in sys.path if path)


def tracking_uri() -> str:
    """Returns MLFLOW_TRACKING_URI, or the SQLite store in the home folder that `python -m trainer ui` shows."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
