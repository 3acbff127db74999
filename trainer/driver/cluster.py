"""The Ray cluster of a training: a running one or one of its own, and whether it can do what is asked."""

import logging
import os
import socket
import sys

import ray

from configs.section import UsageError
from configs.train import TrainConfig
from packer.shards.manifest import Manifest
from trainer.driver.ending import RunFailedError
from trainer.driver.failure import last_line
from trainer.driver.preflight import refuse, share_problems, shared_memory_problems, spread_problems
from trainer.worker.cores import num_loader_workers
from trainer.worker.spec import JobSpec

logger = logging.getLogger(__name__)


def start_ray(config: TrainConfig) -> int:
    """Joins the cluster that RAY_ADDRESS names, or starts a local one, and returns the number of training workers.

    Raises:
        UsageError: No cluster answers there, or it has no room for the workers.
        RunFailedError: The local one did not start.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # By default Ray Train looks at its workers every 2 s only, so it would notice late that they failed or are done.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if config.min_workers:
        # A node that is lost is not known to be lost at once. By default Ray Train waits 60 s for room on it before it
        # tries with fewer workers; it tries any number of times.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    else:
        # It tells elastic runs that a machine is about to leave; in others it only logs an error about itself.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        _start_local_ray()
    else:
        _join(address)
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_gpus = int(resources.get("GPU", 0))
    num_workers = config.num_workers or max(1, num_gpus)
    room, kind = (num_gpus, "GPU") if num_gpus else (int(resources.get("CPU", 0)), "CPU")
    needed, name = (config.min_workers, "min_workers") if config.min_workers else (num_workers, "num_workers")
    if needed > room:
        raise UsageError(f"{name} ({needed}) must be at most {room}, the cluster's {kind}s: each worker needs one")
    refuse(share_problems(num_workers, config.global_batch))
    if config.model.batch_norm == "sync" and not num_gpus:
        raise UsageError("model.batch_norm (sync) needs GPUs and the cluster has none: give train or frozen")
    logger.info(
        "cluster ready address=%s num_workers=%d kind=%s", ray.get_runtime_context().gcs_address, num_workers, kind
    )
    return num_workers


def _join(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise UsageError(
            f"no Ray cluster answers at RAY_ADDRESS ({address}), or it expects another token: start one by `make "
            "cluster` and source .ray/env, or unset RAY_ADDRESS to train on a local one"
        ) from error


def _start_local_ray() -> None:
    """Starts Ray on this machine for this run only; it does not touch the machine's other Ray clusters.

    Ray Train's processes ask the API server whether their driver lives. If they are not told its address, they look for
    any Ray on the machine and give up if there are several.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Otherwise Ray waits for one process per core; Ray Train's workers, whose environment differs, use none of them.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    logger.info("start a local Ray; this takes 10 to 30 seconds")
    try:
        ray.init(address="local", dashboard_port=port, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises this very class if it is not up after 30 s
        logger.error("Ray did not start reason=%s", last_line(error))
        raise RunFailedError("Ray did not start: look at what else keeps this machine busy, and try again") from error


def check_cluster(spec: JobSpec, manifest: Manifest) -> None:
    """Checks the nodes on which workers may run.

    Raises:
        UsageError: Other nodes do not see the run's paths, or this node's shared memory is too small.
    """
    kind = "GPU" if has_gpus() else "CPU"
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = {node["NodeID"] for node in alive if node["Resources"].get(kind)}
    here = ray.get_runtime_context().get_node_id()
    problems = list(spread_problems(spec.config, spec.tracking_uri)) if nodes - {here} else []
    if here in nodes:
        config = spec.config
        num_here = -(-spec.num_workers // len(nodes))
        clip_bytes = config.view.num_frames_of(manifest.clip.num_frames) * 3 * config.view.size_px**2
        num_loaders = num_loader_workers(config.loader_workers, num_here)
        problems += shared_memory_problems(config.global_batch, clip_bytes, num_here, num_loaders)
    refuse(problems)


def worker_range(min_workers: int | None, num_workers: int) -> int | tuple[int, int]:
    """Returns the workers as Ray Train wants them: a number, or the fewest and the most of an elastic run."""
    return (min_workers, max(min_workers, num_workers)) if min_workers else num_workers


def has_gpus() -> bool:
    """Returns whether the cluster has GPUs; workers then use them."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)  # type: ignore[no-untyped-call]
