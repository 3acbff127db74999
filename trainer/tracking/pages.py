"""The experiment as MLflow's page shows it, and the addresses of its pages.

MLflow's page has two faces, GenAI and model training, and remembers in the browser which one was chosen last; the first
one, which it begins with, shows no runs and no registered models. The experiment's tag and the parameter in each
address choose model training. A view that is stored with the experiment shows accuracy beside each run's name.
"""

import json
from collections.abc import Sequence
from urllib.parse import urlencode

from mlflow import MlflowClient
from mlflow.entities import Experiment, RunInfo
from mlflow.exceptions import MlflowException

from configs.home import home, tracking_uri
from trainer.evaluation.metrics import BEST
from trainer.tracking.store import without_password

KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment, and its value for model training. MLflow's releases before 3.17 choose the page by it."""
VIEW = "clipstream"
"""Name of the stored view."""
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_COLUMNS = [f"metrics.`{BEST}{split}_top1`" for split in ("val", "test")]
_FACE = "workflowType=machine_learning"
_LOCAL_PAGE = "http://127.0.0.1:5000"


def experiment_tags() -> dict[str, str]:
    """Returns the tags by which MLflow's page shows an experiment as model training, with accuracy beside each run."""
    return {KIND_TAG: KIND, _VIEW_TAG: json.dumps({"selectedColumns": _COLUMNS})}


def mark_experiment(client: MlflowClient, experiment: Experiment) -> None:
    """Gives an experiment those of its tags that it lacks; what a user has set stays."""
    for name, value in experiment_tags().items():
        if name not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, name, value)


def home_page(uri: str) -> str:
    """Returns the address of the list of experiments, see `runs_page`."""
    return f"{_host(uri)}/#/experiments?{_FACE}"


def runs_page(uri: str, experiment_id: str) -> str:
    """Returns the address of an experiment's table of runs.

    Args:
        uri: MLflow's store. A store without a page of its own is shown by `python -m trainer ui`, on this machine.
        experiment_id: The experiment.
    """
    return f"{_host(uri)}/#/experiments/{experiment_id}/runs?{_FACE}&viewStateShareKey={VIEW}"


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """Returns the address of a run's page, see `runs_page`."""
    return f"{_host(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{_FACE}"


def where_to_look(uri: str, run_id: str) -> str:
    """Returns how to see a run: a server's address, or the command that opens the store's page and then its address."""
    try:
        experiment_id = MlflowClient(tracking_uri=uri).get_run(run_id).info.experiment_id
    except MlflowException:  # the run is over, so this is no reason to fail
        return f"run {run_id} in {without_password(uri)}"
    page = run_page(uri, experiment_id, run_id)
    return page if _is_server(uri) else f"{_opening(uri)}, then {page}"


def comparison_page(uri: str, runs: Sequence[RunInfo]) -> str:
    """Returns the address at which runs are compared, see `runs_page`."""
    lists = {"runs": [run.run_id for run in runs], "experiments": sorted({run.experiment_id for run in runs})}
    # Encoded: a terminal's link would end at a quotation mark.
    query = urlencode({name: json.dumps(values, separators=(",", ":")) for name, values in lists.items()})
    return f"{_host(uri)}/#/compare-runs?{query}&{_FACE}"


def version_page(uri: str, name: str, version: str) -> str:
    """Returns the address of a registered version's page, see `runs_page`."""
    return f"{_host(uri)}/#/models/{name}/versions/{version}?{_FACE}"


def _host(uri: str) -> str:
    return without_password(uri).rstrip("/") if _is_server(uri) else _LOCAL_PAGE


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _opening(uri: str) -> str:
    """Returns the command that opens a store that is no server's, from the folder in which a user is."""
    command = "make ui" if (home() / "Makefile").exists() else "python -m trainer ui"
    return command if uri == tracking_uri() else f"MLFLOW_TRACKING_URI={without_password(uri)} {command}"
