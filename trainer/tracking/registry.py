"""The MLflow registry: exporting a trained model, registering it, and moving the champion's alias.

A model is exported by torch.export (pt2, no pickle) with a dynamic batch dimension and checked against the model it
came from before it is registered. It carries its `ModelContract`, so that a server needs nothing else.
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
from trainer.model.contract import METADATA_KEY, ModelContract
from trainer.tracking.store import check_store

logger = logging.getLogger(__name__)

CHECKED_BATCH_SIZES = (1, 3)
# Float32 sums in another order than eager's; logits are of the order of 1 to 10.
LOGIT_TOLERANCE = 1e-3
# What MLflow's own tables hold; PostgreSQL refuses more.
MAX_DESCRIPTION_CHARACTERS = 5000
_NOT_FOUND = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
Judge = Callable[[nn.Module, ModelContract], float]


class RegistryError(RuntimeError):
    """A registry that did not take a model, in one sentence; the model is still in the run's checkpoints."""


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turns what MLflow raises inside the block into a sentence.

    Raises:
        RegistryError: MLflow refused or did not answer.
    """
    try:
        yield
    except MlflowException as error:
        raise RegistryError(
            f"the MLflow registry at {uri} did not take the model ({error.message}): once it does, the same command "
            "goes on from the last checkpoint and registers it"
        ) from error


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
        """Logs a model to its run in pt2 form and returns its URI, once it was seen to answer like the original.

        Args:
            model: On the CPU and in evaluation mode, `(B, T, 3, S, S) uint8` to `(B, K) float32`.
            run_id: The run that trained it.
            contract: What goes with it.

        Raises:
            RuntimeError: The exported model answers differently.
        """
        shape = (contract.num_frames, 3, contract.view.size_px, contract.view.size_px)
        # Two clips: an example of one would fix the batch size of the exported graph to one.
        example = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
        signature = ModelSignature(
            # Without a name: of named inputs MLflow makes a dict, which its own scoring of PyTorch models refuses.
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(contract.class_names)), "logits")]),
        )
        mlflow.set_tracking_uri(self.uri)
        with mlflow.start_run(run_id=run_id, log_system_metrics=False), warnings.catch_warnings():
            # nn.LSTM's list of its own weights; the exported graph holds them.
            warnings.filterwarnings("ignore", message=r"The tensor attributes self\.rnn\._flat_weights")
            logged = mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example,
                serialization_format="pt2",
                # That check wants a pyfunc of lists; ours is below, on tensors.
                validate_serving_input=False,
                pip_requirements=[f"torch=={version('torch')}"],
                metadata={METADATA_KEY: contract.model_dump(mode="json")},
            )
        uri: str = logged.model_uri
        _check(model, self.load(uri)[0], shape)
        return uri

    def load(self, uri: str) -> tuple[nn.Module, ModelContract]:
        """Returns an exported model and its contract; pickles are refused."""
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        with tempfile.TemporaryDirectory() as made:  # MLflow's own would stay, 45 MB for every version that is served
            folder = mlflow.artifacts.download_artifacts(uri, dst_path=made)
            metadata = Model.load(folder).metadata or {}
            module: nn.Module = mlflow.pytorch.load_model(folder)
        return module, ModelContract.model_validate(metadata[METADATA_KEY])

    def register(self, model_uri: str, run_id: str, contract: ModelContract) -> str:
        """Registers an exported model and returns its version."""
        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = self.client.create_model_version(
            self.name,
            source=model_uri,
            run_id=run_id,
            # A server takes a logged model as a source only where its id is named too.
            model_id=model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None,
            tags={"val_metric": f"{contract.select_by}={contract.val_metric:.4f}", "code": contract.code_version},
        )
        return str(created.version)

    def describe(self, version: str, card: str) -> None:
        """Shows a model card with a version, cut where the registry takes no more."""
        if len(card) > MAX_DESCRIPTION_CHARACTERS:
            ending = "\n\nThe rest is in model_card.md among the run's artifacts.\n"
            card = card[: MAX_DESCRIPTION_CHARACTERS - len(ending)].rpartition("\n")[0] + ending
        try:
            self.client.update_model_version(self.name, version, card)
        except MlflowException as error:
            logger.warning("version not described model=%s version=%s reason=%s", self.name, version, error)

    def champion(self) -> ModelVersion | None:
        """Returns the version that carries the champion's alias, or None."""
        try:
            return self.client.get_model_version_by_alias(self.name, CHAMPION)
        except MlflowException as error:
            if error.error_code in _NOT_FOUND:
                return None
            raise

    def crown(self, version: str, contract: ModelContract, judge: Judge) -> bool:
        """Moves the champion's alias to a version if it is strictly better, and says in the log what was done and why.

        A champion that was measured on another val split, or by another metric, is measured on the present one first.
        One with other classes or another clip contract cannot be compared: then nothing moves.

        Args:
            version: The new version.
            contract: Its contract.
            judge: Returns the figure of a model on the present val split.

        Returns:
            Whether the alias moved.
        """
        champion = self.champion()
        if champion is None:
            self.client.set_registered_model_alias(self.name, CHAMPION, version)
            logger.info("champion set model=%s version=%s reason=there was none", self.name, version)
            return True
        model, held = self.load(f"models:/{self.name}/{champion.version}")
        if (held.class_names, held.clip) != (contract.class_names, contract.clip):
            logger.warning(
                "champion kept model=%s version=%s reason=version %s has other classes or another clip contract; to "
                "put it in place: python -m trainer promote %s --registered-model %s",
                *(self.name, champion.version, version, version, self.name),
            )
            return False
        same_measure = (held.val_sha256, held.select_by) == (contract.val_sha256, contract.select_by)
        value = held.val_metric if same_measure else judge(model, held)
        better = contract.val_metric > value
        if better:
            self.client.set_registered_model_alias(self.name, CHAMPION, version)
        logger.info(
            "champion %s model=%s version=%s %s=%.4f former_version=%s former_%s=%.4f",
            *("moved" if better else "kept", self.name, version if better else champion.version),
            *(contract.select_by, contract.val_metric, champion.version, contract.select_by, value),
        )
        return better

    def promote(self, version: str) -> str:
        """Moves the champion's alias to a version and returns the sentence that says so.

        Raises:
            UsageError: There is no such version, or no store.
        """
        check_store(self.uri)
        try:
            champion = self.champion()
            self.client.get_model_version(self.name, version)
        except MlflowException as error:
            if error.error_code not in _NOT_FOUND:
                raise UsageError(f"the MLflow registry at {self.uri} does not answer: {error.message}") from error
            raise UsageError(f"{self.name} has no version {version} in {self.uri}: look with `mlflow ui`") from error
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
