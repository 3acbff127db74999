"""Finds one MLflow run by what a user calls it: its name or its id."""

from mlflow import MlflowClient
from mlflow.entities import Run

from configs.section import UsageError
from trainer.tracking.errors import store_answers
from trainer.tracking.store import check_store


def find_run(client: MlflowClient, name: str) -> Run:
    """Returns the run that has a name or an id.

    Args:
        client: Of MLflow's store.
        name: Name or id.

    Raises:
        UsageError: There is no such run, or several have the name.
        MlflowException: The store does not answer.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    filters = (f"attributes.{field} = '{name}'" for field in ("run_name", "run_id"))
    runs = [run for condition in filters for run in client.search_runs(experiments, condition)]
    if not runs:
        raise UsageError(f"there is no run {name} in {client.tracking_uri}: `mlflow ui` lists them")
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise UsageError(f"{len(runs)} runs are called {name}: give one of the ids {ids}")
    return runs[0]


def name_of_run(uri: str, name: str) -> str:
    """Returns the name of the run that has a name or an id.

    Args:
        uri: MLflow's store.
        name: Name or id.

    Raises:
        UsageError: There is no store, it does not answer, there is no such run, or several have the name.
    """
    check_store(uri)
    with store_answers(uri):
        found: str = find_run(MlflowClient(tracking_uri=uri), name).info.run_name
    return found
