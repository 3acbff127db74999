"""Cross-validation: the same training on several packs, one after another, and the figures of all their test splits.

Each pack splits the same videos in another way: the official splits of a data set, or its folds. The trainings are
children of one MLflow run. They register no model, because it is the recipe that is measured; `python -m trainer` on
any one pack gives the model to serve. A cross-validation that was stopped can be resumed.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.home import resolve
from configs.section import UsageError
from configs.train import CvConfig, TrainConfig
from packer.proportion import LEVEL
from packer.shards.manifest import manifest_sha256, read_manifest
from packer.storage.location import at, locate
from trainer.driver.ending import Stopped
from trainer.driver.job import train
from trainer.driver.run_folder import RunRecord, find_record, locked, new_name, new_record, read_record
from trainer.driver.run_life import live_run
from trainer.evaluation.metrics import FIGURES, NUM_RESAMPLES, confusion_figures, intervals
from trainer.tracking.run_log import RunLog, read_confusion

logger = logging.getLogger(__name__)


def cross_validate(config: CvConfig) -> None:
    """Trains on each pack that has not been trained on yet, and prints and logs the figures of all of them.

    Args:
        config: Its folds are checked by `preflight.check`.

    Raises:
        UsageError: The packs do not go together, or a training cannot be done as configured.
        ManifestError: A pack is not complete.
        RunFailedError: A training failed.
        Stopped: The user stopped it.
    """
    config = config.model_copy(update={"runs": str(resolve(config.runs)), "run": config.run or new_name()})
    folds = _folds(config)
    digest = _check(folds)
    folder = Path(config.runs) / str(config.run)
    with locked(folder) as folder_id:
        record = find_record(folder, config, digest) or new_record(config, digest)
        try:
            with live_run(record, config, folder, folder_id) as opened:
                opened.save(folder)
                _train(folds, opened.run_id)
                _report(config, folds, opened)
        except (Stopped, KeyboardInterrupt):
            logger.warning("cross-validation stopped run=%s; with --run %s it goes on", config.run, config.run)
            raise


def _folds(config: CvConfig) -> list[TrainConfig]:
    """Returns the configuration of each pack's training."""
    folds = [fold.model_copy(update={"shards": str(locate(fold.shards))}) for fold in config.folds()]
    if len(folds) < 2:
        raise UsageError(f"shards ({config.shards}) names one pack: give several, as in --shards shards-1,shards-2")
    return folds


def _check(folds: list[TrainConfig]) -> str:
    """Refuses packs that do not go together, before the first training; returns a digest of them all."""
    manifests = {fold.shards: read_manifest(at(fold.shards)) for fold in folds}
    digests = [manifest_sha256(at(fold.shards)) for fold in folds]
    first = folds[0].shards
    for fold, digest in zip(folds, digests, strict=True):
        manifest = manifests[fold.shards]
        if not manifest.splits.get("test") or not manifest.splits["test"].num_samples:
            raise UsageError(f"{fold.shards} has no sample in its test split: pack again with another --split")
        if manifest.class_names != manifests[first].class_names:
            raise UsageError(f"{fold.shards} has other classes than {first}: give packs of the same videos")
        if digests.count(digest) > 1:
            raise UsageError(f"{fold.shards} is the same pack as another one: give each split or fold once")
    return hashlib.sha256("\0".join(digests).encode()).hexdigest()


def _train(folds: list[TrainConfig], parent_run_id: str) -> None:
    for fold in folds:
        done = read_record(_folder(fold))
        if done and done.finished_epochs >= fold.epochs:
            logger.info("training done before run=%s", fold.run)
        else:
            train(fold, parent_run_id)


def _report(config: CvConfig, folds: list[TrainConfig], parent: RunRecord) -> None:
    """Prints each test split's figures with their intervals, their mean and range; logs them to the parent run."""
    log = RunLog(parent.tracking_uri, parent.run_id)
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    print(f"{'test split of':24}" + "".join(f"{name:26}" for name in FIGURES))
    for number, fold in enumerate(folds, start=1):
        confusion = _test(fold)
        figures, bounds = confusion_figures(confusion), intervals(confusion)
        cells = [f"{figures[name]:.4f} ({bounds[name][0]:.4f}..{bounds[name][1]:.4f})" for name in FIGURES]
        print(f"{Path(fold.shards).name:24}" + "".join(f"{cell:26}" for cell in cells))
        for name in FIGURES:
            values[name].append(figures[name])
            low, high = bounds[name]
            logged = {name: figures[name], f"{name}_low": low, f"{name}_high": high}
            log.metrics({f"split_{number}/test_{key}": value for key, value in logged.items()}, config.epochs)
    print(f"{'mean':24}" + "".join(f"{np.mean(found):<26.4f}" for found in values.values()))
    print(f"{'range':24}" + "".join(f"{f'{min(found):.4f}..{max(found):.4f}':26}" for found in values.values()))
    print(f"in brackets: {LEVEL:.0%} intervals over {NUM_RESAMPLES} resamples of a split's test videos")
    for name, found in values.items():
        summary = {"mean": float(np.mean(found)), "min": min(found), "max": max(found)}
        log.metrics({f"test_{name}_{key}": value for key, value in summary.items()}, config.epochs)
    log.close()


def _test(fold: TrainConfig) -> NDArray[np.int64]:
    record = read_record(_folder(fold))
    assert record, "the training is finished"
    return read_confusion(record.tracking_uri, record.run_id, "test")


def _folder(fold: TrainConfig) -> Path:
    return Path(fold.runs) / str(fold.run)
