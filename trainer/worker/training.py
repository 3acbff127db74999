"""One rank's training of one run, from the newest checkpoint to the last epoch; it knows nothing of Ray.

A worker starts from the newest whole checkpoint on the run's storage, so a restart after a failure and a resumed run
are the same thing. All ranks decide together: the small sum that every step needs anyway also carries rank 0's wish to
write a checkpoint, the driver's wish to stop, and the number of unreadable samples.
"""

import logging
import math
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from packer.shards.manifest import read_manifest
from trainer.evaluation.contact_sheet import draw_batch
from trainer.evaluation.metrics import Evaluation
from trainer.learning.evaluate import evaluate
from trainer.learning.learner import learning_rate
from trainer.learning.ranks import Ranks, distribute, share_buffers
from trainer.stream.batch import Batch
from trainer.stream.device_decoder import DecoderError
from trainer.stream.prefetch import on_device
from trainer.views.test_time import AveragedModel
from trainer.worker.agreement import Agreement
from trainer.worker.audit import AuditWriter, next_attempt
from trainer.worker.checkpoint import State, SupersededError, judged_weights, write_together
from trainer.worker.curves import Curves, say
from trainer.worker.machine import Machine
from trainer.worker.spec import JobSpec

if TYPE_CHECKING:
    from trainer.tracking.run_log import Point

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
LAST_CLOSE_SECONDS = 300.0
"""How long a finished run waits for a tracking server that is down; nothing brings its last points there later."""
NUM_STORAGE_TRIES = 120
"""At an epoch's end, every `checkpoint.RETRY_SECONDS`: ten minutes."""


class TrainingError(RuntimeError):
    """What a restart would only meet again; every rank raises it at the same step."""


class Training:
    """One rank's training of one run."""

    def __init__(self, spec: JobSpec, ranks: Ranks, device: torch.device) -> None:
        self.spec = spec
        self.config = spec.config
        self.ranks = ranks
        spec.start_loaders(ranks.num_local)
        self.manifest = read_manifest(spec.shards)
        self.class_names = self.manifest.class_names
        self.index = spec.open_index("train")
        self.model = spec.make_model(self.manifest).to(device).channels_last()
        self.learner = spec.make_learner(self.model, self.index, len(self.class_names), ranks)
        average = self.learner.average
        self.judged = average.model if average else self.model
        self.position = self.global_step = self.num_bad = 0
        self.best_step: int | None = None
        self.best_figures: dict[str, float] = {}
        self.num_epochs_since_best = 0
        self.evaluations: dict[str, Evaluation] = {}
        """By split: val of the best epoch, and test once there is nothing left to train."""
        undelivered = self._resume()
        self._begin_phase()
        self.log = spec.open_log(undelivered) if ranks.rank == 0 else None
        self.audit = self._begin_audit() if self.config.audit else None
        self.machine = Machine(device)
        self.val_loader = spec.eval_loader("val", ranks)
        self.last_saved_seconds = -math.inf
        self.curves = Curves(ranks, self.log, self.machine, self.config.log_every_steps)

    def run(self) -> dict[str, Any]:
        """Trains, evaluating after every epoch, and tests the best epoch's model at the end.

        Returns:
            `{"stopped": bool, "best_step": int | None, "val": figures of the best epoch, "test": figures,
            "evaluations": {split: Evaluation}}`.

        Raises:
            TrainingError: The gradient is not finite, too many samples cannot be read, the device decodes none, or
                another command has taken the run over.
        """
        if self.log:
            self.log.artifact("environment.yaml", self.machine.describe(self.ranks.world_size))
        patience_seconds = CLOSE_SECONDS
        try:
            stopped = self._train()
            test = {} if stopped else self._test()
            patience_seconds = CLOSE_SECONDS if stopped else LAST_CLOSE_SECONDS
        except SupersededError as error:
            patience_seconds = 0.0  # the other command's workers take these steps again, and log them
            raise TrainingError(str(error)) from error
        except (FloatingPointError, DecoderError) as error:
            raise TrainingError(str(error)) from error
        finally:
            if self.log:
                self.log.close(patience_seconds)
        return {
            "stopped": stopped,
            "best_step": self.best_step,
            "val": self.best_figures,
            "test": test,
            "evaluations": self.evaluations,
        }

    def _train(self) -> bool:
        """Returns whether the driver asked to stop before the last step."""
        schedule, loader = self.spec.train_loader(self.index, self.position, self.ranks, self.learner.device)
        highest, warmup_fraction = self.config.learning_rate, self.config.optimizer.warmup_fraction
        waiting_since = time.monotonic()
        for batch in on_device(loader, self.learner.device) if not self._lost_patience else ():
            self.curves.wait(time.monotonic() - waiting_since)
            start, end = schedule.start + batch.step * schedule.global_batch, schedule.end_of(batch.step)
            agreement = self._agree(batch)
            rate = learning_rate(highest, warmup_fraction, start, schedule.num_positions)
            # Dropout is then a function of the step alone, so a resumed run repeats it.
            torch.manual_seed(hash((self.config.seed, self.global_step, self.ranks.rank)))
            norm = self.learner.step(batch, partial(self._checked_mass, agreement, end), rate)
            self.global_step += 1
            self.num_bad += agreement.num_bad
            self.position = end
            if self.log and self.global_step == 1:
                self.log.artifact("data/train_clips.png", draw_batch(batch, self.class_names))
            self.curves.step(self.global_step, self.position / schedule.num_samples, batch, self.learner, rate, norm)
            if self.audit:
                self.audit.step(self.global_step, batch.rows, batch.weights.tolist())
            if start // schedule.num_samples < self.position // schedule.num_samples:
                self._end_epoch()
            elif agreement.save or agreement.stop:
                self._save()
            if agreement.stop:
                return True
            if self._lost_patience:
                break
            waiting_since = time.monotonic()
        if self.log and self.position < schedule.num_positions:
            epoch = self.position // self.index.num_samples
            say("stopped early", epoch=epoch, patience_epochs=self.config.patience_epochs)
        return False

    def _begin_phase(self) -> None:
        """Freezes the backbone's stages as the position has it; to be called anew where that may change."""
        epoch = self.position // self.index.num_samples
        self.model.freeze(self.config.model.num_frozen_stages(epoch, self.model.num_stages))
        self.learner.model = distribute(self.model, self.ranks)

    @property
    def _lost_patience(self) -> bool:
        return 0 < self.config.patience_epochs <= self.num_epochs_since_best

    def _agree(self, batch: Batch) -> Agreement:
        """Begins to agree on a step with the other ranks."""
        for error in batch.errors:
            logger.warning("sample skipped reason=%s", error)
        due = time.monotonic() - self.last_saved_seconds > self.config.checkpoint_interval_seconds
        mass, num_bad = self.learner.mass(batch), len(batch.errors)
        return Agreement(self.ranks, self.spec, mass=mass, num_bad=num_bad, save_due=due)

    def _checked_mass(self, agreement: Agreement, end: int) -> float:
        """Returns a step's mass, unless it or the steps before it, up to position `end`, had too many bad samples."""
        num_bad = self.num_bad + agreement.num_bad
        num_epochs = math.ceil(end / self.index.num_samples)
        if num_bad > self.config.max_bad_fraction * self.index.num_samples * num_epochs:
            raise TrainingError(
                f"{num_bad} samples could not be read, more than max_bad_fraction "
                f"({self.config.max_bad_fraction:g}) of the split: check the shards with `python -m packer verify`"
            )
        return agreement.mass

    def _end_epoch(self) -> None:
        epoch = self.position // self.index.num_samples
        evaluation = self._evaluate(self.val_loader)
        figures = evaluation.figures()
        if self._rank_of(figures) > self._rank_of(self.best_figures):
            self.best_step, self.best_figures, self.num_epochs_since_best = self.global_step, figures, 0
            self.evaluations["val"] = evaluation
            if self.log:
                self.log.evaluation("val", evaluation, self.class_names)
        else:
            self.num_epochs_since_best += 1
        if self.log:
            named = {f"val_{name}": value for name, value in figures.items()}
            say("evaluated", epoch=epoch, of=self.config.epochs, **named)
            self.log.metrics({"epoch": epoch, "num_bad_samples": self.num_bad, **named}, self.global_step)
        self._save(NUM_STORAGE_TRIES)
        if self.model.frozen:
            self._begin_phase()
        self.curves.restart()

    def _rank_of(self, figures: dict[str, float]) -> tuple[float, float]:
        """Returns what the best epoch is chosen by: the configured figure, and among equals the lower loss."""
        return figures.get(self.config.select_by, -math.inf), -figures.get("loss", math.inf)

    def _test(self) -> dict[str, float]:
        if self.best_step is None or "test" not in self.manifest.splits or not self.manifest.splits["test"].num_samples:
            return {}
        self.judged.load_state_dict(judged_weights(self.spec.checkpoints.load(self.best_step)))
        evaluation = self.evaluations["test"] = self._evaluate(self.spec.eval_loader("test", self.ranks))
        figures = evaluation.figures()
        if self.log:
            self.log.evaluation("test", evaluation, self.class_names)
            self.log.metrics({f"test_{name}": value for name, value in figures.items()}, self.global_step)
            say("test", best_step=self.best_step, **figures)
        if self.config.evaluation.is_averaged:
            self._test_averaged()
        return figures

    def _test_averaged(self) -> None:
        num_read = self.config.view.num_frames_of(self.index.num_frames)
        model = AveragedModel(self.judged, num_read, self.config.evaluation.flip)
        figures = self._evaluate(self.spec.eval_loader("test", self.ranks, averaged=True), model).figures()
        if self.log:
            self.log.metrics({f"test_tta_{name}": value for name, value in figures.items()}, self.global_step)
            say("test with averaged views", **figures)

    def _evaluate(self, loader: Iterable[Batch], model: AveragedModel | None = None) -> Evaluation:
        share_buffers(self.judged, self.ranks)
        self.judged.eval()
        device, dtype = self.learner.device, self.learner.autocast_dtype
        return evaluate(model or self.judged, loader, len(self.class_names), self.ranks, device, dtype)

    def _save(self, num_tries: int = 1) -> None:
        """Writes a checkpoint; where the storage fails, tries again for a while, or at the next interval.

        In mid-epoch the training goes on: to end it would lose the very work that a checkpoint is to keep. At an
        epoch's end it waits, since the model that was just judged is kept nowhere else.

        Raises:
            OSError: The storage failed at every try at an epoch's end.
        """
        share_buffers(self.model, self.ranks)
        if self.judged is not self.model:
            share_buffers(self.judged, self.ranks)
        if self.log:
            self.log.flush()
        writes = [self.audit.sync if self.audit else None, self._write_checkpoint if self.log else None]
        if not write_together(self.ranks, writes, num_tries) and num_tries > 1:
            raise OSError(f"{self.spec.run_folder} took no checkpoint in {num_tries} tries at the end of an epoch")
        self.last_saved_seconds = time.monotonic()

    def _write_checkpoint(self) -> None:
        self.spec.checkpoints.save(self._state(), self.global_step, self.best_step)

    def _state(self) -> State:
        best = self.evaluations.get("val")
        return {
            "model": self.model.state_dict(),
            "average": self.learner.average.state_dict() if self.learner.average else None,
            "optimizer": self.learner.optimizer.state_dict(),
            "position": self.position,
            "global_step": self.global_step,
            "num_bad": self.num_bad,
            "best_step": self.best_step,
            "best_figures": self.best_figures,
            "num_epochs_since_best": self.num_epochs_since_best,
            "best_predictions": best.packed() if best else None,
            "undelivered": self.log.undelivered() if self.log else [],
        }

    def _begin_audit(self) -> AuditWriter:
        folder, ranks = self.spec.audit_folder, self.ranks
        attempt = int(ranks.sum([next_attempt(folder) if ranks.rank == 0 else 0])[0])
        return AuditWriter(
            *(folder, attempt, ranks.rank, ranks.world_size),
            resumed_step=self.global_step,
            num_samples=self.index.num_samples,
        )

    def _resume(self) -> "list[Point]":
        """Goes on from the newest checkpoint, and returns the points of curves that had not arrived then."""
        store = self.spec.checkpoints
        newest = store.load_newest() if self.ranks.rank == 0 else None
        # Rank 0 decides: another node may see the storage a moment later.
        step = int(self.ranks.sum([newest["global_step"] if newest else 0])[0])
        if not step:
            return []
        state = newest or store.load(step)
        self.model.load_state_dict(state["model"])
        if self.learner.average:
            # A run that had none so far: the average begins with the weights.
            self.learner.average.load_state_dict(state.get("average") or {"model": state["model"], "num_updates": 0})
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.position, self.global_step, self.num_bad = state["position"], state["global_step"], state["num_bad"]
        self.best_step, self.best_figures = state["best_step"], state["best_figures"]
        self.num_epochs_since_best = state.get("num_epochs_since_best", 0)
        if state.get("best_predictions") is not None:
            self.evaluations["val"] = Evaluation.unpack(state["best_predictions"], len(self.class_names))
        logger.info("resumed step=%d position=%d", self.global_step, self.position)
        undelivered: list[Point] = state.get("undelivered", [])
        return undelivered
