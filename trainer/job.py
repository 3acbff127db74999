"""The driver of a training: checks, Ray, the MLflow run's beginning and end, and the registration of what was trained.

A stop by Ctrl-C or by `ray job stop` marks the run KILLED at once, before anything else: Ray gives a job three seconds.
The workers are then asked to write one more checkpoint; if there is no time for it, the one before counts.
"""

import contextlib
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result
from torch import nn

from configs.load import UsageError, resolve
from configs.train import ModelContract, TrainConfig
from packer.manifest import Manifest, manifest_sha256, read_manifest, read_samples
from trainer.loop import Ranks, evaluate
from trainer.model import load_backbone_weights
from trainer.registry import Registry, tracking_uri
from trainer.run import RunRecord, bound_fields, code_version, find_record, locked, new_name, save_config
from trainer.spec import JobSpec
from trainer.tracking import describe_run, end_run, open_run, reopen_run
from trainer.worker import train_worker

logger = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 60.0
EXIT_FAILED = 1
EXIT_STOPPED = 130


class Stopped(BaseException):
    """The user asked to stop. Not an Exception, so that no library on the way takes it for an error of its own."""


@dataclass
class Fit:
    """Ray Train's `fit` in a thread: the main thread stays free for signals, which Ray would else handle itself."""

    trainer: TorchTrainer
    outcome: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Returns whether the training ended within `seconds`; None waits for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            # Ray's annotation names its older Result, which has no return_value.
            self.outcome = cast(Result, self.trainer.fit()).return_value or {}
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error


def train(config: TrainConfig) -> int:
    """Trains, registers the best model, and returns the command's exit code.

    Raises:
        UsageError: The configuration does not fit the data, the storage or the cluster.
    """
    config = _absolute(config)
    shards, folder = Path(config.shards), Path(config.runs) / str(config.run)
    manifest = read_manifest(shards)
    digest = manifest_sha256(shards)
    _check_splits(manifest, shards)
    with locked(folder):
        record = find_record(folder, config, digest)
        if record is None:
            weights = load_backbone_weights(config.model)
            num_workers = _start_ray(config)
            record = _begin(config, folder, manifest, digest, weights)
        else:
            num_workers = _start_ray(config)
            reopen_run(record.tracking_uri, record.run_id)
            logger.info("run resumed run=%s mlflow_run=%s", config.run, record.run_id)
        spec = JobSpec(config, shards, folder, record.run_id, record.tracking_uri, num_workers)
        spec.stop_file.unlink(missing_ok=True)
        try:
            return _train_and_register(spec, record, manifest)
        finally:
            ray.shutdown()


def judge(spec: JobSpec, model: nn.Module, contract: ModelContract) -> float:
    """Returns an exported model's figure, by the run's own metric, on the run's val split."""
    view = spec.config.model_copy(update={"view": contract.view})
    loader = JobSpec(view, spec.shards, spec.run_folder, spec.run_id, spec.tracking_uri, 1).eval_loader("val", Ranks())
    evaluation = evaluate(model, loader, len(contract.class_names), Ranks(), torch.device("cpu"))
    return evaluation.figures()[spec.config.select_by]


def _train_and_register(spec: JobSpec, record: RunRecord, manifest: Manifest) -> int:
    fit: Fit | None = None
    try:
        with _stop_signals():
            fit = Fit(_make_trainer(spec))
            fit.wait()
            if fit.error:
                raise fit.error
            version = _register(spec, manifest, fit.outcome)
    except Stopped:
        end_run(spec.tracking_uri, spec.run_id, "KILLED")
        logger.warning(
            "run stopped run=%s; a checkpoint is being written; the same command goes on from it", spec.config.run
        )
        spec.stop_file.touch()
        if fit is not None and not fit.wait(STOP_GRACE_SECONDS):
            logger.warning("workers did not stop within seconds=%g", STOP_GRACE_SECONDS)
        return EXIT_STOPPED
    except TrainingFailedError as error:
        end_run(spec.tracking_uri, spec.run_id, "FAILED")
        logger.error("run failed run=%s reason=%s", spec.config.run, _cause(error))
        return EXIT_FAILED
    except BaseException:
        end_run(spec.tracking_uri, spec.run_id, "FAILED")
        raise
    end_run(spec.tracking_uri, spec.run_id, "FINISHED")
    record.model_copy(update={"finished_epochs": spec.config.epochs}).save(spec.run_folder)
    _summarise(spec, fit.outcome, version)
    return 0


def _register(spec: JobSpec, manifest: Manifest, outcome: dict[str, Any]) -> str:
    state = spec.checkpoints.load(outcome["best_step"])
    model = spec.make_model(manifest)
    model.load_state_dict(state["model"])
    contract = ModelContract(
        class_names=manifest.class_names,
        clip=manifest.clip,
        view=spec.config.view,
        manifest_sha256=manifest_sha256(spec.shards),
        val_sha256=val_sha256(spec.shards, manifest),
        select_by=spec.config.select_by,
        val_metric=outcome["val"][spec.config.select_by],
        code_version=code_version(),
    )
    registry = Registry(spec.tracking_uri, spec.config.registered_model)
    uri = registry.export(model.eval(), spec.run_id, contract)
    version = registry.register(uri, spec.run_id, contract)
    logger.info("registered model=%s version=%s", registry.name, version)
    registry.crown(version, contract, lambda model, held: judge(spec, model, held))
    return version


def val_sha256(shards: Path, manifest: Manifest) -> str:
    """Returns a digest of the val split's samples and classes: equal digests make figures comparable."""
    table = read_samples(shards, "val", columns=["key", "class_index", "source_sha256"])
    digest = hashlib.sha256("\0".join(manifest.class_names).encode())
    for row in sorted(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _absolute(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with absolute paths and a name: workers run in a folder of Ray's."""
    return config.model_copy(
        update={
            "shards": str(resolve(config.shards)),
            "runs": str(resolve(config.runs)),
            "run": config.run or new_name(),
        }
    )


def _check_splits(manifest: Manifest, shards: Path) -> None:
    for split in ("train", "val"):
        if not manifest.splits.get(split) or not manifest.splits[split].num_samples:
            raise UsageError(f"{shards} has no sample in its {split} split: pack again with another --split")
    if len(manifest.class_names) < 2:
        raise UsageError(f"{shards} holds one class ({manifest.class_names[0]}): a classifier needs at least two")


def _begin(
    config: TrainConfig, folder: Path, manifest: Manifest, digest: str, weights: dict[str, torch.Tensor] | None
) -> RunRecord:
    """Returns the record of a new run, after its MLflow run, configuration and first weights are in place."""
    uri = tracking_uri()
    artifacts = resolve("mlruns") if uri.startswith("sqlite:") else None
    run_id = open_run(uri, config, artifacts)
    describe_run(uri, run_id, config, manifest, digest, code_version())
    save_config(folder, config)
    record = RunRecord(run_id=run_id, tracking_uri=uri, manifest_sha256=digest, bound=bound_fields(config))
    spec = JobSpec(config, Path(config.shards), folder, run_id, uri, num_workers=1)
    if weights is not None:
        torch.save(weights, spec.weights_file)
    record.save(folder)
    logger.info("run started run=%s mlflow_run=%s tracking=%s", config.run, run_id, uri)
    return record


def _start_ray(config: TrainConfig) -> int:
    """Connects to the running cluster, or starts a local one, and returns the number of training workers."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    _connect(os.environ.get("RAY_ADDRESS") or "auto")
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_gpus = int(resources.get("GPU", 0))
    num_workers = config.num_workers or max(1, num_gpus)
    room, kind = (num_gpus, "GPU") if num_gpus else (int(resources.get("CPU", 0)), "CPU")
    if num_workers > room:
        raise UsageError(f"num_workers ({num_workers}) must be at most {room}, the cluster's {kind}s: one each")
    if num_workers > config.global_batch:
        raise UsageError(f"num_workers ({num_workers}) must be at most global_batch ({config.global_batch})")
    logger.info(
        "cluster ready address=%s num_workers=%d kind=%s", ray.get_runtime_context().gcs_address, num_workers, kind
    )
    return num_workers


def _connect(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except ConnectionError as error:
        if address != "auto":
            raise UsageError(
                f"no Ray cluster answers at RAY_ADDRESS ({address}): start it, or unset RAY_ADDRESS for a local one"
            ) from error
        _connect("local")


def _make_trainer(spec: JobSpec) -> TorchTrainer:
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's annotation denies the return value that its Result carries
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(num_workers=spec.num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="ray", storage_path=str(spec.run_folder), failure_config=FailureConfig(spec.config.max_failures)
        ),
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Stopped` in the main thread; the second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    yield


def _cause(error: TrainingFailedError) -> str:
    """Returns the last line of what a worker said: the sentence of its error, without the stack above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _summarise(spec: JobSpec, outcome: dict[str, Any], version: str) -> None:
    shown = {f"val_{name}": value for name, value in outcome["val"].items()}
    shown |= {f"test_{name}": value for name, value in outcome["test"].items()}
    logger.info(
        "run finished run=%s %s", spec.config.run, " ".join(f"{name}={value:.4f}" for name, value in shown.items())
    )
    print(f"run {spec.config.run}: registered {spec.config.registered_model} version {version}; look: mlflow ui")
