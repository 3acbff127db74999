"""Opens what a run left: its pack, its settings, and the model of its best epoch, from the run's own checkpoint.

The registered model would not do: an exported graph gives logits, but not what the classifier sees of a clip. Nothing
of the run is changed.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from configs.home import resolve, tracking_uri
from configs.load import read_yaml
from configs.section import UsageError, describe
from configs.train import TrainConfig
from packer.shards.manifest import Manifest, ManifestError, manifest_sha256, read_manifest
from packer.storage.location import Location, at, locate
from trainer.driver.run_folder import CONFIG_FILE, RECORD_FILE, RunRecord, read_record
from trainer.model.cnn_rnn import CnnRnn
from trainer.tracking.compare import name_of_run
from trainer.worker.checkpoint import State, evaluated_weights
from trainer.worker.parts import make_model, open_checkpoints
from trainer.worker.spec import JobSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A run and the model of its best epoch."""

    spec: JobSpec
    manifest: Manifest
    model: CnnRnn
    """On the CPU and in evaluation mode."""
    best_step: int
    """Global step of the model's checkpoint."""
    weights_sha256: str
    """Digest of the model's weights."""
    manifest_sha256: str
    """Digest of the pack's manifest."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.spec.run_folder.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the logits."""
        return self.manifest.class_names

    @property
    def num_frames(self) -> int:
        """Frames that the model reads of a clip."""
        return self.spec.config.view.num_frames_of(self.manifest.clip.num_frames)


def find_folder(name: str, runs: str) -> Path:
    """Returns the folder of a run or of a cross-validation.

    Args:
        name: Its name, or its MLflow id.
        runs: Folder of all runs, as configured.

    Raises:
        UsageError: There is no such run, or its folder is not here.
    """
    folder = resolve(runs) / name
    if read_record(folder) is None:
        folder = resolve(runs) / name_of_run(tracking_uri(), name)
    if read_record(folder) is None:
        raise UsageError(
            f"{folder} does not hold run {name} ({RECORD_FILE} is missing), and the model is taken from the run's "
            "checkpoints: give --runs the folder in which it was trained, or copy that here"
        )
    return folder


def trainings_of(folder: Path) -> list[Path]:
    """Returns the folders of a cross-validation's trainings by name; none if the folder is that of a training."""
    parent = read_record(folder)
    if parent is None or not parent.run_id:
        return []
    records = {path.parent: read_record(path.parent) for path in sorted(folder.parent.glob(f"*/{RECORD_FILE}"))}
    return [path for path, record in records.items() if record and record.parent_run_id == parent.run_id]


def load_run(folder: Path, shards: str = "") -> FinishedRun:
    """Returns a run with the model of its best epoch.

    Args:
        folder: Of the run.
        shards: The pack that it was trained on; empty: where it lay then.

    Raises:
        UsageError: The run has no evaluated epoch yet, its settings cannot be read, or the pack is not complete or not
            the one that it was trained on.
        OSError: The storage fails.
    """
    record = read_record(folder)
    if record is None:
        raise UsageError(f"{folder} holds no run: {RECORD_FILE} is missing")
    config = _read_config(folder)
    place = locate(shards) if shards else at(config.shards)
    manifest = _read_pack(folder.name, record, place)
    spec = JobSpec(config, place, folder, record.run_id, record.tracking_uri, num_workers=1)
    state = _best_state(spec)
    if not record.finished_epochs:
        logger.warning(
            "run %s is not finished: this is its best model so far, of step %d", folder.name, state["global_step"]
        )
    model = make_model(spec, manifest)
    model.load_state_dict(evaluated_weights(state))
    return FinishedRun(
        spec=spec,
        manifest=manifest,
        model=model.channels_last().eval().requires_grad_(False),
        best_step=state["global_step"],
        weights_sha256=_digest(state),
        manifest_sha256=record.manifest_sha256,
    )


def _read_config(folder: Path) -> TrainConfig:
    path = folder / CONFIG_FILE
    try:
        return TrainConfig.model_validate(read_yaml(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: without it the run's model cannot be built") from error
    except ValidationError as error:
        raise UsageError(f"{path} cannot be read: {'; '.join(describe(error).splitlines())}") from error


def _read_pack(name: str, record: RunRecord, shards: Location) -> Manifest:
    try:
        manifest, found = read_manifest(shards), manifest_sha256(shards)
    except ManifestError as error:
        raise UsageError(f"{error}; if the pack of run {name} lies elsewhere now, give --shards") from error
    if found != record.manifest_sha256:
        raise UsageError(
            f"{shards} is not the pack that run {name} was trained on (manifest {record.manifest_sha256[:12]}, now "
            f"{found[:12]}), perhaps because it was relabelled or appended to: give --shards that pack, or train again"
        )
    return manifest


def _best_state(spec: JobSpec) -> State:
    checkpoints = open_checkpoints(spec)
    newest = checkpoints.load_newest()
    if newest is None:
        raise UsageError(
            f"{spec.checkpoint_folder} holds no complete checkpoint: train the run, or copy its checkpoints here"
        )
    best_step = newest["best_step"]
    if best_step is None:
        raise UsageError(f"run {spec.run_folder.name} has not finished an epoch yet: let it train on")
    return newest if best_step == newest["global_step"] else checkpoints.load(best_step)


def _digest(state: State) -> str:
    digest = hashlib.sha256()
    for name, tensor in evaluated_weights(state).items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
