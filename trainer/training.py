"""One rank's training of one run, from the newest checkpoint to the last epoch; it knows nothing of Ray.

A worker starts from the newest whole checkpoint on the run's storage, so a restart after a failure and a resumed run
are the same thing. All ranks decide together: the small sum that every step needs anyway also carries rank 0's wish to
write a checkpoint, the driver's wish to stop, and the number of unreadable samples.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from packer.manifest import read_manifest
from trainer.checkpoint import State
from trainer.loop import Ranks, evaluate, learning_rate, share_buffers
from trainer.metrics import Evaluation
from trainer.spec import JobSpec
from trainer.stream import Batch
from trainer.tracking import RunLog

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_SECONDS = 10.0


class TrainingError(RuntimeError):
    """What a restart would only meet again; every rank raises it at the same step."""


@dataclass
class Window:
    """Sums since the last point of the training curves."""

    started: float = field(default_factory=time.monotonic)
    waited_seconds: float = 0.0
    num_clips: int = 0
    num_steps: int = 0
    loss_sum: float = 0.0
    """This rank's part of the steps' losses."""


class Training:
    """One rank's training of one run."""

    def __init__(self, spec: JobSpec, ranks: Ranks, device: torch.device) -> None:
        self.spec = spec
        self.config = spec.config
        self.ranks = ranks
        self.manifest = read_manifest(spec.shards)
        self.class_names = self.manifest.class_names
        self.index = spec.open_index("train")
        self.model = spec.make_model(self.manifest).to(device).to(memory_format=torch.channels_last)
        self.learner = spec.make_learner(self.model, self.index, len(self.class_names), ranks)
        self.position = 0
        self.global_step = 0
        self.num_bad = 0
        self.best_step: int | None = None
        self.best_figures: dict[str, float] = {}
        self._resume()
        self.log = RunLog(spec.tracking_uri, spec.run_id) if ranks.rank == 0 else None
        self.val_loader = spec.eval_loader("val", ranks)
        self.last_saved_seconds = -math.inf
        self.last_progress_seconds = -math.inf
        self.window = Window()

    def run(self) -> dict[str, Any]:
        """Trains, evaluating after every epoch, and tests the best epoch's model at the end.

        Returns:
            `{"stopped": bool, "best_step": int | None, "val": figures of the best epoch, "test": figures}`.

        Raises:
            TrainingError: The gradient is not finite, or too many samples cannot be read.
        """
        try:
            stopped = self._train()
            test = {} if stopped else self._test()
        except FloatingPointError as error:
            raise TrainingError(str(error)) from error
        finally:
            if self.log:
                self.log.close()
        return {"stopped": stopped, "best_step": self.best_step, "val": self.best_figures, "test": test}

    def _train(self) -> bool:
        """Returns whether the driver asked to stop before the last step."""
        schedule, loader = self.spec.train_loader(self.index, self.position, self.ranks)
        waiting_since = time.monotonic()
        for batch in loader:
            self.window.waited_seconds += time.monotonic() - waiting_since
            start = schedule.start + batch.step * schedule.global_batch
            mass, num_bad, save, stop = self._agree(batch)
            self._check_bad(num_bad, schedule.end_of(batch.step))
            rate = learning_rate(self.config.optimizer, start, schedule.num_positions)
            # Dropout is then a function of the step alone, so a resumed run repeats it.
            torch.manual_seed(hash((self.config.seed, self.global_step, self.ranks.rank)))
            norm = self.learner.step(batch, mass, rate)
            self.global_step += 1
            self.position = schedule.end_of(batch.step)
            self._note_step(len(batch.labels), norm, rate)
            if start // schedule.num_samples < self.position // schedule.num_samples:
                self._end_epoch()
            elif save or stop:
                self._save()
            if stop:
                return True
            waiting_since = time.monotonic()
        return False

    def _agree(self, batch: Batch) -> tuple[float, int, bool, bool]:
        """Returns a step's mass and unreadable samples over all ranks, and whether to save or to stop after it."""
        for error in batch.errors:
            logger.warning("sample skipped reason=%s", error)
        leads = self.ranks.rank == 0
        due = time.monotonic() - self.last_saved_seconds > self.config.checkpoint_interval_seconds
        stop = leads and self.spec.stop_file.exists()
        mass = self.learner.loss.mass(batch.labels, batch.weights)
        totals = self.ranks.sum([mass, len(batch.errors), float(leads and due), float(stop)])
        return totals[0], int(totals[1]), totals[2] > 0, totals[3] > 0

    def _check_bad(self, num_bad: int, position: int) -> None:
        self.num_bad += num_bad
        num_epochs = math.ceil(position / self.index.num_samples)
        if self.num_bad > self.config.max_bad_fraction * self.index.num_samples * num_epochs:
            raise TrainingError(
                f"{self.num_bad} samples could not be read, more than max_bad_fraction "
                f"({self.config.max_bad_fraction:g}) of the split: check the shards with `python -m packer verify`"
            )

    def _note_step(self, num_clips: int, norm: float, rate: float) -> None:
        self.window.num_clips += num_clips
        self.window.num_steps += 1
        self.window.loss_sum += self.learner.last_loss
        if self.global_step % self.config.log_every_steps:
            return
        num_clips_of_all, loss_sum = self.ranks.sum([self.window.num_clips, self.window.loss_sum])
        seconds = time.monotonic() - self.window.started
        figures = {
            "train_loss": loss_sum / self.window.num_steps,
            "learning_rate": rate,
            "grad_norm": norm,
            "clips_per_second": num_clips_of_all / seconds,
            "data_wait_share": self.window.waited_seconds / seconds,
        }
        self.window = Window()
        if self.log is None:
            return
        self.log.metrics(figures, self.global_step)
        if time.monotonic() - self.last_progress_seconds > PROGRESS_INTERVAL_SECONDS:
            self.last_progress_seconds = time.monotonic()
            _say("train", step=self.global_step, epoch=self.position / self.index.num_samples, **figures)

    def _end_epoch(self) -> None:
        epoch = self.position // self.index.num_samples
        evaluation = self._evaluate(self.val_loader)
        figures = evaluation.figures()
        if self._rank_of(figures) > self._rank_of(self.best_figures):
            self.best_step, self.best_figures = self.global_step, figures
            if self.log:
                self.log.evaluation("val", evaluation, self.class_names)
        if self.log:
            named = {f"val_{name}": value for name, value in figures.items()}
            _say("evaluated", epoch=epoch, of=self.config.epochs, **named)
            self.log.metrics({"epoch": epoch, "num_bad_samples": self.num_bad, **named}, self.global_step)
        self._save()
        self.window = Window()

    def _rank_of(self, figures: dict[str, float]) -> tuple[float, float]:
        """Returns what the best epoch is chosen by: the configured figure, and among equals the lower loss."""
        return figures.get(self.config.select_by, -math.inf), -figures.get("loss", math.inf)

    def _test(self) -> dict[str, float]:
        if self.best_step is None or "test" not in self.manifest.splits or not self.manifest.splits["test"].num_samples:
            return {}
        self.model.load_state_dict(self.spec.checkpoints.load(self.best_step)["model"])
        evaluation = self._evaluate(self.spec.eval_loader("test", self.ranks))
        figures = evaluation.figures()
        if self.log:
            self.log.evaluation("test", evaluation, self.class_names)
            self.log.metrics({f"test_{name}": value for name, value in figures.items()}, self.global_step)
            _say("test", best_step=self.best_step, **figures)
        return figures

    def _evaluate(self, loader: "DataLoader[Batch]") -> Evaluation:
        share_buffers(self.model, self.ranks)
        self.model.eval()
        learner = self.learner
        return evaluate(self.model, loader, len(self.class_names), self.ranks, learner.device, learner.autocast_dtype)

    def _save(self) -> None:
        share_buffers(self.model, self.ranks)
        if self.log:
            # The curves must have arrived: a resumed run goes on from here and logs only what comes after.
            self.log.flush()
            self.spec.checkpoints.save(self._state(), self.global_step, self.best_step)
        self.last_saved_seconds = time.monotonic()

    def _state(self) -> State:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "position": self.position,
            "global_step": self.global_step,
            "num_bad": self.num_bad,
            "best_step": self.best_step,
            "best_figures": self.best_figures,
        }

    def _resume(self) -> None:
        store = self.spec.checkpoints
        newest = store.load_newest() if self.ranks.rank == 0 else None
        # Rank 0 decides: another node may see the storage a moment later.
        step = int(self.ranks.sum([newest["global_step"] if newest else 0])[0])
        if not step:
            return
        state = newest or store.load(step)
        self.model.load_state_dict(state["model"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.position, self.global_step, self.num_bad = state["position"], state["global_step"], state["num_bad"]
        self.best_step, self.best_figures = state["best_step"], state["best_figures"]
        logger.info("resumed step=%d position=%d", self.global_step, self.position)


def _say(event: str, **figures: float) -> None:
    shown = [
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in figures.items()
    ]
    logger.info("%s %s", event, " ".join(shown))
