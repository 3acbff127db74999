"""The MLflow registry: exports a trained model, registers it, loads it, and moves the champion's alias.

A model is exported by torch.export (pt2, no pickle) with a dynamic batch dimension, and compared with the model it came
from before it is registered. It carries its `ModelContract`, so that a server needs nothing else. How good a model is
on a split is measured elsewhere: see `trainer.learning.evaluate`.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from configs.section import UsageError
from configs.train import CHAMPION
from trainer.evaluation.model_card import as_description
from trainer.model.contract import METADATA_KEY, ModelContract
from trainer.tracking.errors import is_not_found, store_answers
from trainer.tracking.store import check_store

logger = logging.getLogger(__name__)

CHECKED_BATCH_SIZES = (1, 3)
"""Batches on which an exported model is compared with the model it came from."""
LOGIT_TOLERANCE = 1e-3
"""How far their logits, of the order of 1 to 10, may differ: the exported graph adds float32 in another order."""
Evaluate = Callable[[nn.Module, ModelContract], float]
"""Returns a model's figure on the present val split, by the metric of the present run."""


class RegistryError(RuntimeError):
    """The registry did not take a model; the model is still in the run's checkpoints."""


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turns what MLflow raises inside the block into a sentence.

    Raises:
        RegistryError: MLflow refused, or did not answer.
    """
    try:
        yield
    except MlflowException as error:
        raise RegistryError(
            f"the MLflow registry at {uri} did not take the model ({error.message}): once it answers, the same "
            "command goes on from the last checkpoint and registers it"
        ) from error


@dataclass(frozen=True)
class Promotion:
    """What became of the champion's alias when a version was registered."""

    moved: bool
    """Whether the new version is the champion now."""
    former: ModelVersion | None
    """The champion before; None: there was none."""
    former_value: float | None = None
    """Its figure on the present val split; None: it cannot be compared."""
    obstacle: str = ""
    """Why it cannot be compared, such as "it has other classes"."""
    is_measured_anew: bool = False
    """Whether `former_value` was measured just now, because the champion knew another val split or metric."""


@dataclass(frozen=True)
class Registry:
    """One registered model of one registry."""

    uri: str
    name: str

    @property
    def client(self) -> MlflowClient:
        """MLflow's client of this registry."""
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def export(self, model: nn.Module, run_id: str, contract: ModelContract) -> str:
        """Logs a model to its run in pt2 form, checks that it gives the original's logits, and returns its URI.

        The run's status stays as it is.

        Args:
            model: On the CPU and in evaluation mode, `(B, T, 3, S, S) uint8` to `(B, K) float32`.
            run_id: The run that trained it.
            contract: Goes into the model's metadata.

        Raises:
            RuntimeError: The exported model gives other logits.
        """
        shape = (contract.num_frames, 3, contract.view.size_px, contract.view.size_px)
        # Two clips: an example of one would fix the batch size of the exported graph to one.
        example = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
        signature = ModelSignature(
            # No name: MLflow turns named inputs into a dict, which its own scoring of PyTorch models refuses.
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(contract.class_names)), "logits")]),
        )
        mlflow.set_tracking_uri(self.uri)
        # Otherwise the model and its files would lie in MLflow's experiment "Default", and not beside their run.
        mlflow.set_experiment(experiment_id=self.client.get_run(run_id).info.experiment_id)
        with warnings.catch_warnings():
            # torch.export warns about nn.LSTM's private list of its weights; the exported graph has them all the same.
            warnings.filterwarnings("ignore", message=r"The tensor attributes self\.rnn\._flat_weights")
            logged = mlflow.pytorch.log_model(
                model,
                name="model",
                run_id=run_id,  # instead of an active run: MLflow would mark it as finished when the block ends
                signature=signature,
                input_example=example,
                serialization_format="pt2",
                # MLflow's check sends lists to a pyfunc; ours, below, compares tensors.
                validate_serving_input=False,
                pip_requirements=[f"torch=={version('torch')}"],
                metadata={METADATA_KEY: contract.model_dump(mode="json")},
            )
        uri: str = logged.model_uri
        _check(model, self.load(uri)[0], shape)
        return uri

    def load(self, uri: str) -> tuple[nn.Module, ModelContract]:
        """Returns an exported model and its contract; pickles are refused.

        Raises:
            MlflowException: There is no such model, it is pickled, or the store does not answer.
            KeyError: It has no contract.
            ValidationError: Its contract cannot be read.
        """
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        # MLflow's own temporary folder would stay: 45 MB for every version that is served.
        with tempfile.TemporaryDirectory() as temporary:
            folder = mlflow.artifacts.download_artifacts(uri, dst_path=temporary)
            metadata = Model.load(folder).metadata or {}
            module: nn.Module = mlflow.pytorch.load_model(folder)
        return module, ModelContract.model_validate(metadata[METADATA_KEY])

    def register(self, model_uri: str, run_id: str, contract: ModelContract) -> str:
        """Registers an exported model and returns its version."""
        mlflow.set_tracking_uri(self.uri)  # MLflow looks the model up there, whatever store its client has
        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = self.client.create_model_version(
            self.name,
            source=model_uri,
            run_id=run_id,
            # A server takes a logged model as a source only if its id is given too.
            model_id=model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None,
            tags={"val_metric": f"{contract.select_by}={contract.val_metric:.4f}", "code": contract.code_version},
        )
        return str(created.version)

    def describe(self, version: str, card: str) -> None:
        """Makes a model card the description of a version, cut to what the registry takes."""
        try:
            self.client.update_model_version(self.name, version, as_description(card))
        except MlflowException as error:
            logger.warning("version not described model=%s version=%s reason=%s", self.name, version, error)

    def champion(self) -> ModelVersion | None:
        """Returns the version that carries the champion's alias, or None."""
        try:
            return self.client.get_model_version_by_alias(self.name, CHAMPION)
        except MlflowException as error:
            if not is_not_found(error):
                raise
            return None

    def promote_if_better(self, version: str, contract: ModelContract, evaluate: Evaluate) -> Promotion:
        """Moves the champion's alias to a version if it is strictly better, and returns what was done.

        A champion that was measured on another val split, or by another metric, is first evaluated on the present one.
        A champion with other classes or another clip contract, or whose files lie on another machine, cannot be
        compared: then the alias stays.

        Args:
            version: The new version.
            contract: Its contract.
            evaluate: Measures the champion, if that is needed.
        """
        champion = self.champion()
        if champion is None:
            self.client.set_registered_model_alias(self.name, CHAMPION, version)
            return Promotion(True, None)
        try:
            model, held = self.load(f"models:/{self.name}/{champion.version}")
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and not is_not_found(error):
                raise
            return Promotion(False, champion, obstacle=f"its files cannot be read from this machine ({error})")
        if (held.class_names, held.clip) != (contract.class_names, contract.clip):
            return Promotion(False, champion, obstacle="it has other classes or another clip contract")
        same_measure = (held.val_sha256, held.select_by) == (contract.val_sha256, contract.select_by)
        value = held.val_metric if same_measure else evaluate(model, held)
        better = contract.val_metric > value
        if better:
            self.client.set_registered_model_alias(self.name, CHAMPION, version)
        return Promotion(better, champion, value, is_measured_anew=not same_measure)

    def promote(self, version: str) -> str:
        """Moves the champion's alias to a version and returns a sentence that names the version before.

        Raises:
            UsageError: There is no such version or no store, or the store does not answer.
        """
        check_store(self.uri)
        with store_answers(self.uri, "registry"):
            champion = self.champion()
            try:
                self.client.get_model_version(self.name, version)
            except MlflowException as error:
                if not is_not_found(error):
                    raise
                raise UsageError(
                    f"{self.name} has no version {version} in {self.uri}: `python -m trainer ui` shows them all"
                ) from error
            self.client.set_registered_model_alias(self.name, CHAMPION, version)
        before = f"version {champion.version}" if champion else "none"
        return f"{self.name}@{CHAMPION} is now version {version} (before: {before})"


def _check(model: nn.Module, exported: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in CHECKED_BATCH_SIZES:
        clips = torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            wanted: Tensor = model(clips)
            got: Tensor = exported(clips)
        difference = float((wanted - got).abs().max())
        if got.shape != wanted.shape or not difference <= LOGIT_TOLERANCE:
            raise RuntimeError(
                f"the exported model's logits differ by {difference:g} at batch {size}, more than {LOGIT_TOLERANCE:g}: "
                "it was not registered"
            )
