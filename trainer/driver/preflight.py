"""Checks before the workers start: a run that cannot succeed is refused in seconds, not in its first hour.

Each check runs as early as possible: `check` before torch and Ray are imported, `model_problems` before Ray starts,
`spread_problems` and `shared_memory_problems` once the cluster is known. Each problem is one sentence with the way out,
and all problems that one check finds are reported together.
"""

import os
import shutil
import ssl
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from configs.home import resolve, tracking_uri
from configs.section import UsageError
from configs.train import TrainConfig
from packer.shards.manifest import SAMPLES, Manifest, ManifestError, read_manifest
from packer.storage.commit import current
from packer.storage.files import file_sha256
from packer.storage.location import Location, is_url, locate

TRACKING_TIMEOUT_SECONDS = 2.0
SHARED_MEMORY = Path("/dev/shm")
_NUM_LOADERS = 2
"""While the val split's loader works, the train split's waits with its batches ready."""
_NUM_PREFETCHED = 2
"""Batches that each loader process makes ahead: the default of torch's DataLoader."""


def refuse(problems: Iterable[str]) -> None:
    """Raises UsageError with one line per problem, if there are any."""
    if text := "\n".join(problems):
        raise UsageError(text)


def check(config: TrainConfig) -> None:
    """Checks what can be checked without torch and Ray: the pack, the cache, the batch, and MLflow's store.

    Raises:
        UsageError: The run cannot succeed; the text has one line per problem.
    """
    problems = list(share_problems(config.num_workers or 1, config.global_batch))
    try:
        shards = locate(config.shards)
        manifest = read_manifest(shards)
        problems += [*_pack_problems(config, manifest, shards), *_cache_problems(config, manifest)]
    except (ManifestError, UsageError) as error:
        problems.append(str(error))
    refuse([*problems, *tracking_problems(tracking_uri())])


def share_problems(num_workers: int, global_batch: int) -> Iterator[str]:
    """Yields a problem if there are more workers than clips in a global batch."""
    if num_workers > global_batch:
        yield (
            f"num_workers ({num_workers}) must be at most global_batch ({global_batch}), one clip each: give "
            f"--num-workers {global_batch} or --global-batch {num_workers}"
        )


def model_problems(config: TrainConfig, manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yields the reasons why the model cannot be compiled or its checkpoints do not fit on the disk.

    Args:
        config: Of the run, with absolute paths.
        manifest: What its shards hold.
        folder: The run's folder, which need not exist yet.

    Raises:
        UsageError: There is no such model.
    """
    import torch

    if config.compile:
        yield from _compiler_problems()
    from trainer.model.cnn_rnn import CnnRnn
    from trainer.worker.checkpoint import NUM_KEPT

    with torch.device("meta"):
        num_frames = config.view.num_frames_of(manifest.clip.num_frames)
        model = CnnRnn(config.model, len(manifest.class_names), num_frames)
    # Copies: weights, AdamW's two moments, an average. Checkpoints: the newest two, the best, the one being written.
    num_copies = 4 if config.optimizer.ema_decay else 3
    num_bytes = (NUM_KEPT + 2) * num_copies * sum(one.numel() * one.element_size() for one in model.parameters())
    free = shutil.disk_usage(_existing(folder)).free
    if free < num_bytes:
        yield (
            f"runs ({config.runs}) has {_gigabytes(free)} free, the checkpoints of this model take "
            f"{_gigabytes(num_bytes)}: make room, or give --runs a folder on a larger disk"
        )


def _compiler_problems() -> Iterator[str]:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    header = Path(sysconfig.get_path("include"), "Python.h")
    try:
        get_cpp_compiler()
        missing = "" if header.exists() else f"Python's own headers, but {header} does not exist"
    except InvalidCxxCompiler:
        missing = "a C++ compiler, but neither g++ nor the program that CXX names is one"
    if missing:
        yield f"compile needs {missing}: install it, or leave --compile out"


def spread_problems(config: TrainConfig, store: str) -> Iterator[str]:
    """Yields the paths that workers on other nodes may not reach, unless the configuration says that they do.

    Args:
        config: With absolute paths.
        store: MLflow's tracking URI.
    """
    if config.shared_filesystem:
        return
    shared = "or --shared-filesystem if every node sees the folder under this path"
    if not is_url(config.shards):
        yield f"shards ({config.shards}) may not be on the cluster's other nodes: give an address (s3://...), {shared}"
    yield f"runs ({config.runs}) may not be on the cluster's other nodes: give a folder on shared storage, {shared}"
    if store.startswith("sqlite:"):
        yield (
            f"the MLflow store at {store} may not be on the cluster's other nodes: set MLFLOW_TRACKING_URI to an "
            f"`mlflow server`, {shared}"
        )


def shared_memory_problems(
    global_batch: int, clip_bytes: int, num_workers: int, num_loader_workers: int
) -> Iterator[str]:
    """Yields a problem if the batches of this machine's loader processes do not fit into its shared memory.

    Args:
        global_batch: Clips per step, over all workers.
        clip_bytes: Size of a clip as the model reads it.
        num_workers: Training workers on this machine; they are assumed to be all of them.
        num_loader_workers: Loader processes of each.
    """
    if not num_loader_workers or not SHARED_MEMORY.exists():
        return
    batch_bytes = -(-global_batch // num_workers) * clip_bytes
    needed = num_workers * _NUM_LOADERS * (num_loader_workers * _NUM_PREFETCHED + 1) * batch_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        yield (
            f"{SHARED_MEMORY} has {_gigabytes(free)} free, the batches of {num_workers} workers with loader_workers "
            f"({num_loader_workers}) each take {_gigabytes(needed)}: lower --loader-workers or --global-batch, or give "
            "the container more (docker run --shm-size)"
        )


def _pack_problems(config: TrainConfig, manifest: Manifest, shards: Location) -> Iterator[str]:
    for split in ("train", "val"):
        if not manifest.splits.get(split) or not manifest.splits[split].num_samples:
            yield f"{shards} has no sample in its {split} split: pack again with another --split"
    if len(manifest.class_names) < 2:
        yield f"{shards} holds one class ({manifest.class_names[0]}): a classifier needs at least two"
    stored_px = manifest.clip.short_side_px
    if stored_px and stored_px < config.view.size_px:
        yield (
            f"view.size_px ({config.view.size_px}) is more than the {stored_px} px that {shards} holds: give "
            f"--view.size-px {stored_px} --view.short-side-px {stored_px}, or pack again with --clip.short-side-px "
            f"{config.view.short_side_px}"
        )
    num_packed = manifest.clip.num_frames
    num_read = config.view.num_frames_of(num_packed)
    if num_read > num_packed:
        yield (
            f"view.num_frames ({num_read}) must be at most {num_packed}, the frames of a clip in {shards}: give "
            f"--view.num-frames {num_packed}, or pack again with more --clip.num-frames"
        )
    if num_read == 1 and (config.model.temporal_shift or config.model.differences):
        yield (
            f"the model reads 1 frame of each clip in {shards}, but model.temporal_shift and model.differences need 2: "
            "leave them off, or give more frames (--view.num-frames, and the packer's --clip.num-frames)"
        )
    try:
        is_bound = file_sha256(current(shards, SAMPLES)) == manifest.samples_sha256
    except OSError as error:
        yield f"{shards / SAMPLES} cannot be read ({error.strerror}): run the packer again, which rebuilds the index"
    else:
        if not is_bound:
            yield (
                f"{shards / SAMPLES} is not the index of this pack (its sha256 differs from the manifest's): run the "
                "packer again, which rebuilds the index, or copy the whole pack again"
            )


def _cache_problems(config: TrainConfig, manifest: Manifest) -> Iterator[str]:
    if config.cache is None:
        return
    cache = resolve(config.cache)
    if not is_url(config.shards):
        yield f"cache ({cache}) is for shards at an address, not for {locate(config.shards)}: leave --cache out"
    if not _is_writable(cache):
        yield f"cache ({cache}) cannot be written: give --cache another folder, or leave it out"
    split = manifest.splits.get("train")
    if split is None or not split.shards:
        return
    num_mixed = config.shuffle_block * len(split.shards) // max(1, split.num_samples) + 2
    sizes = sorted((shard.num_bytes for shard in split.shards), reverse=True)
    if config.cache_bytes < (needed := sum(sizes[:num_mixed])):
        yield (
            f"cache_bytes ({config.cache_bytes}) must be at least {needed}, the {num_mixed} largest shards, which are "
            "read at the same time: raise --cache-bytes, or leave --cache out"
        )


def tracking_problems(uri: str) -> Iterator[str]:
    """Yields a problem if MLflow's store is a server that does not answer, or a file that cannot be written."""
    if uri.startswith("sqlite:////"):
        if not _is_writable(Path(uri.removeprefix("sqlite:///")).parent):
            yield f"the MLflow store at {uri} cannot be written: set MLFLOW_TRACKING_URI to another place"
        return
    parts = urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")  # without a password
    if parts.scheme in ("http", "https") and (reason := _no_answer(address)):
        yield (
            f"the MLflow server at {address} does not answer ({reason}): start it, or unset MLFLOW_TRACKING_URI to "
            "track in a local mlflow.db"
        )


def _no_answer(address: str) -> str | None:
    """Returns why a server does not answer, or None if it answers anything; MLflow itself would try for minutes."""
    try:
        urlopen(f"{address}/health", timeout=TRACKING_TIMEOUT_SECONDS).close()
    except HTTPError as error:
        error.close()
        return str(error) if error.code >= 500 else None
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        # The server answers; MLflow has its own settings for which certificates to trust.
        return None if isinstance(reason, ssl.SSLError) else str(reason) or type(reason).__name__
    return None


def _is_writable(folder: Path) -> bool:
    existing = _existing(folder)
    return existing.is_dir() and os.access(existing, os.W_OK)


def _existing(path: Path) -> Path:
    """Returns the path if it exists, otherwise its nearest parent that does."""
    return next(each for each in (path, *path.parents) if each.exists())


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
