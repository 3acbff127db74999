"""The folder of a run on shared storage: its name, what the run is bound to, and whether it may be resumed."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from pydantic import ValidationError

from configs.home import tracking_uri
from configs.section import Section, UsageError, flatten
from configs.train import TrainConfig
from packer.storage.files import write_atomically
from packer.storage.lock import hold_lock

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
FOLDER_ID_BYTES = 32
BOUND_FIELDS = (
    "global_batch",
    "seed",
    "shuffle_block",
    "sampling",
    "view",
    "model",
    "optimizer.backbone_factor",
    "registered_model",
    "experiment",
)
"""What a run's checkpoints, order of samples and gradients depend on: a resumed run must not change it."""


class RunRecord(Section):
    """What the driver keeps beside a run's checkpoints."""

    run_id: str
    """The MLflow run; empty until it is opened."""
    tracking_uri: str
    manifest_sha256: str
    bound: dict[str, object]
    """Fields that a resumed run must not change, by dotted name."""
    parent_run_id: str | None = None
    """The MLflow run of the cross-validation that this one is part of."""
    finished_epochs: int = 0
    """Epochs of the run when it was last FINISHED; 0 if it never was."""

    def save(self, folder: Path) -> None:
        """Writes the record, completely or not at all."""
        with write_atomically(folder / RECORD_FILE) as file:
            file.write(self.model_dump_json(indent=2).encode())


def read_record(folder: Path) -> RunRecord | None:
    """Returns the record of a run, or None if there is none.

    Raises:
        UsageError: It is damaged.
    """
    path = folder / RECORD_FILE
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UsageError(f"{path} cannot be read: give --run another name to start anew") from error


def new_name() -> str:
    """Returns a name for a run that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def bound_fields(config: TrainConfig) -> dict[str, object]:
    """Returns the fields that a resumed run must not change, by dotted name."""
    fields = flatten(config.model_dump(mode="json")).items()
    return {name: value for name, value in fields if {name, name.partition(".")[0]} & set(BOUND_FIELDS)}


def new_record(config: TrainConfig, manifest_sha256: str, parent_run_id: str | None = None) -> RunRecord:
    """Returns the record of a new run, whose MLflow run is not open yet.

    Args:
        config: What is trained.
        manifest_sha256: Digest of the data.
        parent_run_id: The MLflow run of the cross-validation that the run is part of.
    """
    return RunRecord(
        run_id="",
        tracking_uri=tracking_uri(),
        manifest_sha256=manifest_sha256,
        bound=bound_fields(config),
        parent_run_id=parent_run_id,
    )


def find_record(folder: Path, config: TrainConfig, manifest_sha256: str) -> RunRecord | None:
    """Returns the record of the run that the configuration resumes, or None for a new run.

    Raises:
        UsageError: The run is finished, or was started with other data or settings.
    """
    record = read_record(folder)
    if record is None:
        return None
    if record.finished_epochs >= config.epochs:
        raise UsageError(
            f"run {config.run} has finished its {record.finished_epochs} epochs: give more --epochs to train on, or "
            "another --run to start anew"
        )
    if record.manifest_sha256 != manifest_sha256:
        raise UsageError(
            f"run {config.run} was started on other shards (manifest {record.manifest_sha256[:12]}, now "
            f"{manifest_sha256[:12]}): give --shards the folder it was started on, or another --run"
        )
    # A field that the record lacks is newer than the run, which used what is now the default.
    before, now = bound_fields(TrainConfig()) | record.bound, bound_fields(config)
    changed = [
        f"{name} ({before.get(name)} before, {now.get(name)} now)"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"run {config.run} was started with other settings: {', '.join(changed)}; give them as before, by "
            f"--config {folder / CONFIG_FILE}, or another --run"
        )
    return record


def save_config(folder: Path, config: TrainConfig) -> None:
    """Writes the effective configuration as a file that `--config` reads, completely or not at all."""
    with write_atomically(folder / CONFIG_FILE) as file:
        file.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Holds a run's folder for this process; if the process is killed, the folder is free again.

    Yields:
        The folder's id, a random number that its first holder wrote. Its MLflow runs have the id as a tag. So a run is
        found even if its driver was killed after opening it and before writing the record.

    Raises:
        UsageError: Another process trains this run, or the folder cannot be written.
    """
    busy = f"run {folder.name} is being trained by another process: wait, or give another --run"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = stack.enter_context(hold_lock(folder / LOCK_FILE, busy))
        except OSError as error:
            raise UsageError(f"{folder} cannot be written ({error.strerror}): give --runs another folder") from error
        folder_id = os.pread(descriptor, FOLDER_ID_BYTES, 0)
        if len(folder_id) < FOLDER_ID_BYTES:
            folder_id = secrets.token_hex(FOLDER_ID_BYTES // 2).encode()
            os.pwrite(descriptor, folder_id, 0)
            os.fsync(descriptor)
        yield folder_id.decode()
