"""One rank's training of one run, from the newest checkpoint to the last epoch; it knows nothing of Ray.

A worker starts from the newest complete checkpoint on the run's storage, so a restart after a failure and a resumed run
are the same thing. All ranks decide together: each step needs a small sum over the ranks anyway, and this sum also
carries rank 0's wish to write a checkpoint, the driver's wish to stop, and the number of unreadable samples.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import torch

from packer.shards.manifest import read_manifest
from trainer.evaluation.contact_sheet import draw_batch
from trainer.evaluation.metrics import BEST, Evaluation
from trainer.evaluation.sources import sample_sources
from trainer.learning.evaluate import EvaluationStopped, evaluate
from trainer.learning.learner import learning_rate
from trainer.learning.ranks import Ranks, distribute, share_buffers
from trainer.schedule.rows import dropout_seed
from trainer.stream.batch import Batch
from trainer.stream.device_decoder import DecoderError
from trainer.stream.loader import start_forkserver
from trainer.stream.prefetch import on_device
from trainer.views.test_time import AveragedModel
from trainer.worker.agreement import Agreement
from trainer.worker.audit import AuditWriter, next_attempt
from trainer.worker.checkpoint import State, SupersededError, evaluated_weights, write_together
from trainer.worker.cores import num_loader_workers
from trainer.worker.curves import Curves
from trainer.worker.epoch import EpochSums
from trainer.worker.events import Began, EpochEnded, EpochsDone, Event, Halted, tell
from trainer.worker.machine import Machine
from trainer.worker.outcome import Outcome
from trainer.worker.parts import (
    eval_loader,
    make_learner,
    make_model,
    open_checkpoints,
    open_index,
    open_log,
    train_loader,
)
from trainer.worker.progress import Progress
from trainer.worker.spec import JobSpec

if TYPE_CHECKING:
    from trainer.tracking.run_log import Point

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
LAST_CLOSE_SECONDS = 300.0
"""How long a finished run waits for a tracking server that is down: nothing delivers its last points later."""
NUM_STORAGE_TRIES = 120
"""At an epoch's end, one every `checkpoint.RETRY_SECONDS`: ten minutes."""


class TrainingError(RuntimeError):
    """An error that would only happen again after a restart; every rank raises it at the same step."""


class Training:
    """One rank's training of one run."""

    def __init__(self, spec: JobSpec, ranks: Ranks, device: torch.device) -> None:
        self.spec = spec
        self.config = spec.config
        self.ranks = ranks
        self.checkpoints = open_checkpoints(spec)
        if num_loader_workers(self.config.loader_workers, ranks.num_local):
            start_forkserver()  # it imports torch while this process makes the model
        self.manifest = read_manifest(spec.shards)
        self.class_names = self.manifest.class_names
        self.index = open_index(spec, "train")
        self.model = make_model(spec, self.manifest).to(device).channels_last()
        self.learner = make_learner(self.config, self.model, self.index.labels, ranks)
        average = self.learner.average
        self.evaluated_model = average.model if average else self.model
        self.progress = Progress()
        self.sums = EpochSums()
        self.began_seconds, self.began_step = 0.0, 0
        undelivered = self._resume()
        self._begin_phase()
        self.log = open_log(spec, undelivered) if ranks.rank == 0 else None
        self.audit = self._begin_audit() if self.config.audit else None
        self.machine = Machine(device)
        self.val_loader = eval_loader(spec, "val", ranks)
        self.last_saved_seconds = -math.inf
        self.curves = Curves(ranks, self.log, self.machine, self.config.log_every_steps, spec.events_file)

    def run(self) -> Outcome:
        """Trains, evaluates after every epoch, and tests the best epoch's model at the end.

        Raises:
            TrainingError: The gradient is not finite, too many samples cannot be read, the device decodes none, or
                another command has taken the run over.
            OSError: The storage took no checkpoint at the end of an epoch.
        """
        if self.log:
            self.log.artifact("environment.yaml", self.machine.describe(self.ranks.world_size))
        patience_seconds = CLOSE_SECONDS
        test, test_averaged = None, {}
        try:
            stopped = self._train_until_stopped()
            if not stopped:
                test = self._test()
                test_averaged = self._test_averaged() if test and self.config.evaluation.is_averaged else {}
            patience_seconds = CLOSE_SECONDS if stopped else LAST_CLOSE_SECONDS
        except SupersededError as error:
            patience_seconds = 0.0  # the other command's workers repeat these steps and log them
            raise TrainingError(str(error)) from error
        except (FloatingPointError, DecoderError) as error:
            raise TrainingError(str(error)) from error
        finally:
            if self.log:
                self.log.close(patience_seconds)
        evaluations = {"val": self.progress.best_evaluation, "test": test}
        return Outcome(
            stopped=stopped,
            best_step=self.progress.best_step,
            val=self.progress.best_figures,
            test=test.figures() if test else {},
            evaluations={split: evaluation for split, evaluation in evaluations.items() if evaluation},
            test_averaged=test_averaged,
            history=tuple(self.progress.history),
        )

    def _tell(self, event: Event) -> None:
        if self.ranks.rank == 0:
            tell(self.spec.events_file, event)

    def _train_until_stopped(self) -> bool:
        """Returns whether the driver asked to stop before the last step, or before the last epoch was evaluated."""
        self.began_seconds, self.began_step = time.monotonic(), self.progress.global_step
        if self.progress.is_evaluation_due:
            self._end_epoch()
        try:
            stopped = self._train()
        except EvaluationStopped:
            stopped = True
        if stopped:
            is_saved = self._save(flushes=False)
            self._tell(Halted(self.progress.global_step, is_saved))
        return stopped

    def _train(self) -> bool:
        """Returns whether the driver asked to stop before the last step."""
        progress, device = self.progress, self.learner.device
        schedule, loader = train_loader(self.config, self.index, progress.position, self.ranks, device)
        highest, warmup_fraction = self.config.learning_rate, self.config.optimizer.warmup_fraction
        self._tell(Began(progress.global_step, progress.position / schedule.num_samples))
        waiting_since = time.monotonic()
        for batch in on_device(loader, device) if not self._lost_patience else ():
            self.curves.wait(time.monotonic() - waiting_since)
            start, end = schedule.start + batch.step * schedule.global_batch, schedule.end_of(batch.step)
            agreement = self._agree(batch)
            rate = learning_rate(highest, warmup_fraction, start, schedule.num_positions)
            # Dropout is then a function of the step alone, so a resumed run repeats it.
            torch.manual_seed(dropout_seed(self.config.seed, progress.global_step, self.ranks.rank))
            norm = self.learner.step(batch, partial(self._checked_weight_sum, agreement, end), rate)
            progress.end_step(end, agreement.num_bad)
            self._record_step(batch, progress.position / schedule.num_samples, rate, norm)
            if start // schedule.num_samples < progress.position // schedule.num_samples:
                progress.is_evaluation_due = True
            if agreement.stop:
                return True
            if progress.is_evaluation_due:
                self._end_epoch(self._is_stopped)
            elif agreement.save:
                self._save()
            if self._lost_patience:
                break
            waiting_since = time.monotonic()
        return False

    def _is_stopped(self) -> bool:
        """Returns, on every rank, whether the driver asks to stop."""
        return bool(self.ranks.sum([float(self._sees_stop_file())])[0])

    def _sees_stop_file(self) -> bool:
        return self.ranks.rank == 0 and os.path.exists(self.spec.stop_file)  # noqa: PTH110  # False if the storage fails

    def _begin_phase(self) -> None:
        """Freezes the backbone's stages for the current epoch; called again at each epoch's end that may change it."""
        self.model.freeze(self.config.model.num_frozen_stages(self._epoch, self.model.num_stages))
        self.learner.model = distribute(self.model, self.ranks)

    @property
    def _epoch(self) -> int:
        return self.progress.position // self.index.num_samples

    @property
    def _lost_patience(self) -> bool:
        return 0 < self.config.patience_epochs <= self.progress.num_epochs_since_best

    def _agree(self, batch: Batch) -> Agreement:
        """Begins to agree on a step with the other ranks."""
        for error in batch.errors:
            logger.warning("sample skipped reason=%s", error)
        return Agreement(
            self.ranks,
            weight_sum=self.learner.weight_sum(batch),
            num_bad=len(batch.errors),
            save=time.monotonic() - self.last_saved_seconds > self.config.checkpoint_interval_seconds,
            stop=self._sees_stop_file(),
            superseded=self.ranks.rank == 0 and self.checkpoints.is_superseded(),
        )

    def _checked_weight_sum(self, agreement: Agreement, end: int) -> float:
        """Returns a step's weight sum.

        Raises:
            TrainingError: Up to position `end`, too many samples could not be read.
        """
        num_bad = self.progress.num_bad + agreement.num_bad
        num_epochs = math.ceil(end / self.index.num_samples)
        if num_bad > self.config.max_bad_fraction * self.index.num_samples * num_epochs:
            raise TrainingError(
                f"{num_bad} samples could not be read, more than max_bad_fraction "
                f"({self.config.max_bad_fraction:g}) of the split: check the shards with `python -m packer verify`"
            )
        return agreement.weight_sum

    def _record_step(self, batch: Batch, epoch: float, rate: float, norm: float) -> None:
        global_step = self.progress.global_step
        if self.log and global_step == 1:
            sources = sample_sources(self.spec.shards, "train", [row.index for row in batch.rows])
            self.log.artifact("data/train_clips.png", draw_batch(batch, self.class_names, sources))
        self.sums.add(self.learner.last_loss, int((batch.weights > 0).sum()), self.learner.last_num_right)
        self.curves.step(global_step, epoch, batch, self.learner, rate, norm)
        if self.audit:
            self.audit.step(global_step, batch.rows, batch.weights.tolist())

    def _end_epoch(self, stops: Callable[[], bool] = lambda: False) -> None:
        """Evaluates an epoch whose steps are done, and stores it.

        Raises:
            EvaluationStopped: `stops` said so; the evaluation is still due.
        """
        evaluation = self._evaluate(self.val_loader, stops=stops)
        sums, progress = self.sums.over(self.ranks), self.progress
        is_best = progress.end_epoch(evaluation, self.config.select_by, self._epoch, sums)
        self.sums = EpochSums()
        if self.log:
            if is_best:
                self.log.evaluation("val", evaluation, self.class_names)
            named = {f"val_{name}": value for name, value in evaluation.figures().items()}
            counts = {"epoch": self._epoch, "num_bad_samples": progress.num_bad}
            self.log.metrics({**counts, **named}, progress.global_step)
        self._save(NUM_STORAGE_TRIES)
        seconds, num_steps = time.monotonic() - self.began_seconds, progress.global_step - self.began_step
        share = num_steps / sums.num_steps if sums.num_steps else 0.0
        self._tell(EpochEnded(progress.history[-1], is_best, seconds, share))
        self.began_seconds, self.began_step = time.monotonic(), progress.global_step
        if self.model.frozen:
            self._begin_phase()
        self.curves.restart()

    def _test(self) -> Evaluation | None:
        """Returns what the best epoch's model does on the test split; None if there is no such split."""
        best_step, summary = self.progress.best_step, self.manifest.splits.get("test")
        if self.log and best_step is not None:  # apart from the curves, which go on after the best epoch
            best_epoch = self._epoch - self.progress.num_epochs_since_best
            best = {f"{BEST}epoch": best_epoch, f"{BEST}val_top1": self.progress.best_figures["top1"]}
            self.log.metrics(best, self.progress.global_step)
        if best_step is None or summary is None or not summary.num_samples:
            return None
        self._tell(EpochsDone())
        self.evaluated_model.load_state_dict(evaluated_weights(self.checkpoints.load(best_step)))
        evaluation = self._evaluate(eval_loader(self.spec, "test", self.ranks))
        if self.log:
            figures = evaluation.figures()
            self.log.evaluation("test", evaluation, self.class_names)
            named = {f"test_{name}": value for name, value in figures.items()}
            self.log.metrics({f"{BEST}test_top1": figures["top1"], **named}, self.progress.global_step)
        return evaluation

    def _test_averaged(self) -> dict[str, float]:
        num_read = self.config.view.num_frames_of(self.index.num_frames)
        model = AveragedModel(self.evaluated_model, num_read, self.config.evaluation.flip)
        figures = self._evaluate(eval_loader(self.spec, "test", self.ranks, averaged=True), model).figures()
        if self.log:
            self.log.metrics({f"test_tta_{name}": value for name, value in figures.items()}, self.progress.global_step)
        return figures

    def _evaluate(
        self,
        loader: Iterable[Batch],
        model: AveragedModel | None = None,
        stops: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        share_buffers(self.evaluated_model, self.ranks)
        self.evaluated_model.eval()
        device, dtype = self.learner.device, self.learner.autocast_dtype
        return evaluate(model or self.evaluated_model, loader, len(self.class_names), self.ranks, device, dtype, stops)

    def _save(self, num_tries: int = 1, *, flushes: bool = True) -> bool:
        """Writes a checkpoint and returns whether the storage took it.

        In mid-epoch the training goes on: to end it would lose the very work that a checkpoint is meant to keep. At an
        epoch's end it waits, because the model that was just evaluated is stored nowhere else.

        Args:
            num_tries: More than one at an epoch's end.
            flushes: Whether to wait a while for points on their way to MLflow; otherwise the checkpoint holds them.

        Raises:
            OSError: At an epoch's end, the storage failed at every try.
        """
        share_buffers(self.model, self.ranks)
        if self.evaluated_model is not self.model:
            share_buffers(self.evaluated_model, self.ranks)
        if self.log and flushes:
            self.log.flush()
        state = self._state()
        write_checkpoint = partial(self.checkpoints.save, state, self.progress.global_step, self.progress.best_step)
        writes = [self.audit.sync if self.audit else None, write_checkpoint if self.log else None]
        is_saved = write_together(self.ranks, writes, num_tries)
        if not is_saved and num_tries > 1:
            raise OSError(f"{self.spec.run_folder} took no checkpoint in {num_tries} tries at the end of an epoch")
        self.last_saved_seconds = time.monotonic()
        return is_saved

    def _state(self) -> State:
        """Returns what a checkpoint holds; every rank calls it."""
        return {
            "model": self.model.state_dict(),
            "average": self.learner.average.state_dict() if self.learner.average else None,
            "optimizer": self.learner.optimizer.state_dict(),
            **self.progress.state(),
            "epoch_sums": asdict(self.sums.over(self.ranks)),
            "undelivered": self.log.undelivered() if self.log else [],
        }

    def _begin_audit(self) -> AuditWriter:
        folder, ranks = self.spec.audit_folder, self.ranks
        attempt = int(ranks.sum([next_attempt(folder) if ranks.rank == 0 else 0])[0])
        return AuditWriter(
            *(folder, attempt, ranks.rank, ranks.world_size),
            resumed_step=self.progress.global_step,
            num_samples=self.index.num_samples,
        )

    def _resume(self) -> "list[Point]":
        """Loads the newest checkpoint, and returns the points of curves that had not arrived when it was written."""
        newest = self.checkpoints.load_newest() if self.ranks.rank == 0 else None
        # Rank 0 decides: another node may see the storage a moment later.
        step = int(self.ranks.sum([newest["global_step"] if newest else 0])[0])
        if not step:
            return []
        state = newest or self.checkpoints.load(step)
        self.model.load_state_dict(state["model"])
        if self.learner.average:
            # A run that had no average so far: it begins with the weights.
            self.learner.average.load_state_dict(state.get("average") or {"model": state["model"], "num_updates": 0})
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress.from_state(state, len(self.class_names))
        if self.ranks.rank == 0:
            self.sums = EpochSums(**state.get("epoch_sums", {}))
        undelivered: list[Point] = state.get("undelivered", [])
        return undelivered
