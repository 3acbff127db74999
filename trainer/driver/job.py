"""What the driver does before it trains: refuses what cannot succeed, while Ray starts and MLflow loads."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray

from configs.home import resolve
from configs.train import TrainConfig
from packer.shards.manifest import manifest_sha256, read_manifest
from packer.storage.location import at, locate
from trainer.driver.cluster import check_cluster, start_ray
from trainer.driver.preflight import model_problems, refuse, tracking_problems
from trainer.driver.run_folder import find_record, locked, new_name, new_record
from trainer.model.pretrained import load_backbone_weights
from trainer.worker.spec import JobSpec


def train(config: TrainConfig, parent_run_id: str | None = None) -> None:
    """Trains a run to its last epoch and registers its best model.

    Args:
        config: What to train, and on what; checked by `preflight.check`.
        parent_run_id: The MLflow run of the cross-validation that this training is part of; then no model is
            registered.

    Raises:
        UsageError: The configuration does not fit the data, the storage or the cluster.
        RunFailedError: The run was begun and failed.
        Stopped: The user stopped it.
    """
    config = _absolute(config)
    shards, folder = at(config.shards), Path(config.runs) / str(config.run)
    manifest = read_manifest(shards)
    digest = manifest_sha256(shards)
    refuse(model_problems(config, manifest, folder))
    with locked(folder) as folder_id:
        record = find_record(folder, config, digest) or new_record(config, digest, parent_run_id)
        refuse(tracking_problems(record.tracking_uri))
        weights = None if record.run_id else load_backbone_weights(config.model)
        try:
            num_workers = _start(config, folder, record.tracking_uri)
            holder = secrets.token_hex(4)
            spec = JobSpec(config, shards, folder, record.run_id, record.tracking_uri, num_workers, holder)
            check_cluster(spec, manifest)
            from trainer.driver.fit import fit  # here, not above: it imports MLflow

            fit(spec, manifest, record, folder_id, weights)
        finally:
            ray.shutdown()


def _start(config: TrainConfig, folder: Path, uri: str) -> int:
    """Starts Ray, marks abandoned runs meanwhile, and returns the number of training workers."""

    def tidy() -> None:
        from trainer.driver.run_life import end_abandoned  # here, not above: it imports MLflow while Ray starts

        end_abandoned(folder, uri, config.experiment)

    with ThreadPoolExecutor(1, thread_name_prefix="store") as executor:
        tidied = executor.submit(tidy)
        num_workers = start_ray(config)
    tidied.result()
    return num_workers


def _absolute(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with a name for the run and absolute paths: workers run in a folder of Ray's."""
    return config.model_copy(
        update={
            "shards": str(locate(config.shards)),
            "runs": str(resolve(config.runs)),
            "cache": str(resolve(config.cache)) if config.cache else None,
            "run": config.run or new_name(),
        }
    )
