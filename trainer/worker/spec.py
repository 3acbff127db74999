"""What the driver tells every worker of a run: plain data, of which `trainer.worker.parts` builds what trains."""

from dataclasses import dataclass
from pathlib import Path

from configs.train import TrainConfig
from packer.storage.location import Location

AUDIT_FOLDER = "audit"
"""Within the run's folder."""
EVENTS_FILES = "events-*.jsonl"
"""Pattern of the names of `JobSpec.events_file`."""


@dataclass(frozen=True)
class JobSpec:
    """One run. All paths are absolute, because workers run in a folder of Ray's."""

    config: TrainConfig
    shards: Location
    run_folder: Path
    run_id: str
    """Of the MLflow run."""
    tracking_uri: str
    num_workers: int
    """Training workers; in an elastic run the most that there may be."""
    holder: str = ""
    """Name of this start of the command. Its workers hold the run's checkpoints under this name."""

    @property
    def checkpoint_folder(self) -> Path:
        """Holds the run's checkpoints."""
        return self.run_folder / "checkpoints"

    @property
    def audit_folder(self) -> Path:
        """Here the workers write down which samples each step used."""
        return self.run_folder / AUDIT_FOLDER

    @property
    def stop_file(self) -> Path:
        """The driver creates this file to ask the workers to write a checkpoint and return."""
        return self.run_folder / "STOP"

    @property
    def events_file(self) -> Path:
        """Here rank 0 tells this start of the command how the training goes."""
        return self.run_folder / f"events-{self.holder}.jsonl"

    @property
    def weights_file(self) -> Path:
        """The backbone's first weights, put there by the driver; absent if they are random."""
        return self.run_folder / "backbone.pt"
