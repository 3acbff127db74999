"""Where a person finds a run: the command that opens the store's page, if it needs one, and the page's address."""

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from configs.home import home
from trainer.tracking.store import PREFIX

UI = "http://127.0.0.1:5000"
"""Where `make ui` and `mlflow ui` open a store of one machine."""


def run_address(uri: str, run_id: str) -> str:
    """Returns how to look at a run: `make ui, then http://...`, or a server's address alone.

    Args:
        uri: MLflow's store.
        run_id: The run.
    """
    try:
        experiment_id = MlflowClient(tracking_uri=uri).get_run(run_id).info.experiment_id
    except MlflowException:
        return f"run {run_id} in {without_password(uri)}"
    page = f"#/experiments/{experiment_id}/runs/{run_id}"
    if uri.startswith(("http://", "https://")):
        return f"{without_password(uri).rstrip('/')}/{page}"
    return f"{_opening(uri)}, then {UI}/{page}"


def without_password(uri: str) -> str:
    """Returns an address as it may be shown: without the user and password that it may hold."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _opening(uri: str) -> str:
    """Returns the command that opens a store that is no server's."""
    folder = home()
    is_at_home = uri == f"{PREFIX}{folder / 'mlflow.db'}"
    if is_at_home and (folder / "Makefile").exists() and Path(folder, "trainer").is_dir():
        return "make ui"
    return f"mlflow ui --backend-store-uri {without_password(uri)}"
