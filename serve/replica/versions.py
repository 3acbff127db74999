"""Finds the model in the MLflow registry and loads it. Every failure becomes one sentence for clients."""

import os

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
        raise _unavailable(error, missing, "the model registry does not answer") from error


def load_model(config: ModelSource, version: str) -> tuple[nn.Module, ModelContract]:
    """Returns a version of the registered model, and its contract; pickles are refused.

    Raises:
        ModelUnavailable: The version cannot be read, or this project's trainer did not write it, or a newer one did.
    """
    registry = _registry(config)
    missing = f"the registry has no version {version} of the model {config.registered_model}"
    unreadable = "the model's files cannot be read: see the server's log"
    if is_absent(registry.uri):
        raise ModelUnavailable(missing)
    try:
        return registry.load(f"models:/{config.registered_model}/{version}")
    except KeyError as error:
        raise ModelUnavailable(f"the model has no {METADATA_KEY} metadata: `python -m trainer` writes it") from error
    except ValidationError as error:
        raise ModelUnavailable(f"the model's contract cannot be read: {describe(error)}") from error
    except MlflowException as error:
        raise _unavailable(error, missing, unreadable) from error
    except (OSError, RuntimeError) as error:
        raise ModelUnavailable(unreadable) from error


def load_predictor(config: ServeConfig, version: str) -> Predictor:
    """Returns a version of the registered model on its device, checked and warm.

    Raises:
        ModelUnavailable: See `load_model`.
        ValueError: The model does not do what its contract says.
    """
    module, contract = load_model(config, version)
    return Predictor(module, contract, "cuda" if config.gpus_per_replica else "cpu", config.cpu_threads)


def _unavailable(error: MlflowException, missing: str, otherwise: str) -> ModelUnavailable:
    return ModelUnavailable(missing if is_not_found(error) else otherwise)


def _registry(config: ModelSource) -> Registry:
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    return Registry(config.tracking_uri or tracking_uri(), config.registered_model)
