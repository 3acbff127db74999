"""The driver of a training until Ray stands: what can be refused before, and what else is done meanwhile."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import ray

from configs.home import resolve, tracking_uri
from configs.train import TrainConfig
from packer.shards.manifest import manifest_sha256, read_manifest
from packer.storage.location import at, locate
from trainer.driver.cluster import check_cluster, start_ray
from trainer.driver.preflight import model_problems, refuse, tracking_problems
from trainer.driver.run_folder import begin_record, end_abandoned, find_record, locked, new_name
from trainer.model.pretrained import load_backbone_weights
from trainer.worker.spec import JobSpec


def train(config: TrainConfig, parent_run_id: str | None = None) -> int:
    """Trains, registers the best model, and returns the command's exit code.

    Args:
        config: What to train, and on what; checked by `preflight.check`.
        parent_run_id: The MLflow run of the cross-validation that this training is part of; it registers no model.

    Raises:
        UsageError: The configuration does not fit the data, the storage or the cluster.
    """
    config = _absolute(config)
    shards, folder = at(config.shards), Path(config.runs) / str(config.run)
    manifest = read_manifest(shards)
    digest = manifest_sha256(shards)
    refuse(model_problems(config, manifest, folder))
    with locked(folder) as folder_id:
        record = find_record(folder, config, digest)
        uri = record.tracking_uri if record else tracking_uri()
        refuse(tracking_problems(uri))
        weights = None if record else load_backbone_weights(config.model)
        try:
            # Ray's processes start meanwhile: MLflow's import and the opening of its store take seconds of CPU.
            with ThreadPoolExecutor(1, thread_name_prefix="store") as executor:
                tidied = executor.submit(end_abandoned, folder, uri, config.experiment)
                num_workers = start_ray(config)
            tidied.result()
            spec = JobSpec(config, shards, folder, "", uri, num_workers, holder=secrets.token_hex(4))
            check_cluster(spec, manifest)
            from trainer.driver.fit import fit  # here, not above: it imports MLflow

            begin = partial(begin_record, config, digest, folder_id, parent_run_id)
            return fit(spec, manifest, record, begin, weights)
        finally:
            ray.shutdown()


def _absolute(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with absolute paths and a name: workers run in a folder of Ray's."""
    return config.model_copy(
        update={
            "shards": str(locate(config.shards)),
            "runs": str(resolve(config.runs)),
            "cache": str(resolve(config.cache)) if config.cache else None,
            "run": config.run or new_name(),
        }
    )
