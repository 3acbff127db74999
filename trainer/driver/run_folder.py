"""The folder of a run on shared storage: its name, what it is bound to, and whether it may be resumed.

MLflow is imported by the two functions that need it: it takes seconds, in which Ray can start.
"""

import hashlib
import logging
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import yaml
from pydantic import ValidationError

import configs
import packer
import trainer
from configs.home import resolve, tracking_uri
from configs.section import Section, UsageError, flatten
from configs.train import TrainConfig
from packer.storage.files import write_atomically
from packer.storage.lock import hold_lock

logger = logging.getLogger(__name__)

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
FOLDER_ID_BYTES = 32
# What a run's checkpoints, order and gradients depend on: a resumed run must not change it.
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


class RunRecord(Section):
    """What the driver keeps with a run's checkpoints."""

    run_id: str
    """The MLflow run."""
    tracking_uri: str
    manifest_sha256: str
    bound: dict[str, object]
    """Fields that a resumed run must not change, by dotted name."""
    parent_run_id: str | None = None
    """The MLflow run of the cross-validation that this one is part of."""
    finished_epochs: int = 0
    """Epochs of the training that was brought to its end; 0 while there is none."""

    def save(self, folder: Path) -> None:
        """Writes the record, whole or not at all."""
        with write_atomically(folder / RECORD_FILE) as file:
            file.write(self.model_dump_json(indent=2).encode())


def read_record(folder: Path) -> RunRecord | None:
    """Returns the record of a run, or None where there is none.

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


def begin_record(
    config: TrainConfig, manifest_sha256: str, folder_id: str, parent_run_id: str | None = None
) -> RunRecord:
    """Returns the record of a new run, after its MLflow run is opened.

    Args:
        config: What is trained.
        manifest_sha256: Digest of the data.
        folder_id: What `locked` gave for the run's folder.
        parent_run_id: The MLflow run of the cross-validation that the run is part of.

    Raises:
        UsageError: The MLflow store does not answer.
    """
    from trainer.tracking.runs import open_run

    uri = tracking_uri()
    artifacts = resolve("mlruns") if uri.startswith("sqlite:") else None
    run_id = open_run(uri, config, artifacts, parent_run_id, folder_id)
    bound = bound_fields(config)
    return RunRecord(
        run_id=run_id, tracking_uri=uri, manifest_sha256=manifest_sha256, bound=bound, parent_run_id=parent_run_id
    )


def find_record(folder: Path, config: TrainConfig, manifest_sha256: str) -> RunRecord | None:
    """Returns the record of a run that is to be resumed, or None for a new run.

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
    # What a record lacks came later than the run, whose value is then the default.
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
    """Writes the effective configuration, which `--config` reads again."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Holds a run's folder for this process; a killed process lets go of it.

    Yields:
        The folder's id, which its first holder drew: by it the folder's MLflow runs are known, also those that no
        record names, since their driver was killed between opening the run and writing the record.

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


def end_abandoned(held: Path, tracking_uri: str, experiment: str) -> None:
    """Marks as KILLED the runs of a folder that are still marked as running though no process trains them.

    A driver that was killed by SIGKILL, or whose machine went away, could not do it.

    Args:
        held: Folder of the run that this process holds and does not train yet; those beside it are looked at too.
        tracking_uri: MLflow's store.
        experiment: Where the runs are.
    """
    from trainer.tracking.runs import end_run, running_runs

    for name, run_id, folder_id in running_runs(tracking_uri, experiment):
        folder = held.parent / name
        try:
            # The id shows that the run is one of this very folder, not of another machine's of the same path.
            if folder_id and (folder / LOCK_FILE).read_text() == folder_id:
                with nullcontext() if folder == held else locked(folder):
                    end_run(tracking_uri, run_id, "KILLED")
                logger.warning(
                    "run marked as killed run=%s mlflow_run=%s: its process ended without a word", name, run_id
                )
        except (OSError, UsageError):
            continue  # no run of this folder, or one that is being trained


def code_version() -> str:
    """Returns the git commit of the code, with `-dirty` where files were changed, or a digest of the sources."""
    folders = [Path(str(package.__file__)).parent for package in (configs, packer, trainer)]
    git = ["git", "-C", str(folders[0].parent)]
    if (folders[0].parent / ".git").exists():
        try:
            commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
            status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            logger.info("code version taken from the sources reason=%s", error)
        else:
            return commit.strip() + ("-dirty" if status.strip() else "")
    return f"sources-{_sources_sha256(folders)[:16]}"


def _sources_sha256(folders: list[Path]) -> str:
    """Returns a digest of the Python sources below some folders, which names a version of the code without git."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
