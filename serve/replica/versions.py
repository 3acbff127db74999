"""Finds the model in the MLflow registry and loads it. Every failure becomes one sentence."""

import logging
import os

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import ValidationError
from torch import nn

from configs.home import tracking_uri
from configs.section import describe
from configs.serve import ModelSource, ServeConfig
from serve.replica.errors import ModelUnavailable
from serve.replica.predictor import Predictor
from trainer.model.contract import METADATA_KEY, ModelContract
from trainer.tracking.errors import is_not_found
from trainer.tracking.registry import Registry
from trainer.tracking.store import is_absent

MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow itself tries for four minutes. That is too long here: /readyz must soon say why there is no model, and the
alias is looked up again anyway."""


def resolve_version(config: ModelSource) -> str:
    """Returns the version of the registered model that the alias points at.

    Raises:
        ModelUnavailable: The registry cannot be reached, or has no such model or alias.
    """
    registry = _registry(config)
    missing = (
        f"the registry has no model {config.registered_model} with the alias {config.alias}: train one by "
        "`python -m trainer`, or set the alias by `python -m trainer promote VERSION`"
    )
    if is_absent(registry.uri):
        raise ModelUnavailable(missing)
    try:
        return str(registry.client.get_model_version_by_alias(registry.name, config.alias).version)
    except MlflowException as error:
        raise (ModelUnavailable(missing) if is_not_found(error) else _silent(error)) from error


def load_model(config: ModelSource, version: str) -> tuple[nn.Module, ModelContract]:
    """Returns a version of the registered model, and its contract; pickles are refused.

    Raises:
        ModelUnavailable: The version cannot be read, or this project's trainer did not write it, or a newer one did.
    """
    registry = _registry(config)
    held = _version(registry, version)
    try:
        return registry.load(f"models:/{registry.name}/{held.version}")
    except KeyError as error:
        raise ModelUnavailable(f"the model has no {METADATA_KEY} metadata: `python -m trainer` writes it") from error
    except ValidationError as error:
        raise ModelUnavailable(f"the model's contract cannot be read: {describe(error)}") from error
    except (MlflowException, OSError, RuntimeError) as error:
        raise _unreadable(registry, held, error) from error


def trained_on(config: ModelSource, version: str) -> str | None:
    """Returns the folder or address of the pack that a version was trained on, or None if its run does not say.

    Raises:
        ModelUnavailable: The version cannot be read.
    """
    registry = _registry(config)
    run_id = _version(registry, version).run_id
    try:
        shards: str | None = registry.client.get_run(run_id).data.params.get("shards") if run_id else None
    except MlflowException as error:
        if is_not_found(error):
            return None
        raise _silent(error) from error
    return shards


def load_predictor(config: ServeConfig, version: str) -> Predictor:
    """Returns a version of the registered model on its device, checked and warm.

    Raises:
        ModelUnavailable: See `load_model`.
        ValueError: The model does not do what its contract says.
    """
    module, contract = load_model(config, version)
    return Predictor(module, contract, "cuda" if config.gpus_per_replica else "cpu", config.cpu_threads)


def _version(registry: Registry, version: str) -> ModelVersion:
    missing = f"the registry has no version {version} of the model {registry.name}"
    if is_absent(registry.uri):
        raise ModelUnavailable(missing)
    try:
        return registry.client.get_model_version(registry.name, version)
    except MlflowException as error:
        raise (ModelUnavailable(missing) if is_not_found(error) else _silent(error)) from error


def _silent(error: MlflowException) -> ModelUnavailable:
    sentence = "the model registry does not answer"
    return ModelUnavailable(sentence, f"{sentence}: {_first_line(error)}")


def _unreadable(registry: Registry, held: ModelVersion, error: Exception) -> ModelUnavailable:
    """Returns the error of a version that the registry holds, though its files cannot be read from here."""
    try:
        place: str | None = registry.client.get_model_version_download_uri(held.name, held.version)
    except MlflowException:
        place = held.source
    place = (place or "").removeprefix("file://")
    found = f"version {held.version} of the model {held.name} is registered, but its files"
    return ModelUnavailable(
        f"{found} cannot be read: see the server's log",
        f'{found} at {place} cannot be read from this machine ({_first_line(error)}): see "A second machine" in '
        "docs/serve.md",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _registry(config: ModelSource) -> Registry:
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells what it looks for; we tell what was not found
    return Registry(config.tracking_uri or tracking_uri(), config.registered_model)
