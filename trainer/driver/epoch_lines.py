"""What the user reads while a training runs: one line per epoch, and some within an epoch that takes long."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import TextIO

from configs.train import TrainConfig
from trainer.worker.events import Began, EpochEnded, Event, Stepped

LONG_SECONDS = 30.0
"""Within an epoch, lines come at most this often, and at most one for each tenth of the epoch."""
FEW_CLASSES = 10
"""Up to this many classes, to be among the five most probable ones says little: `top5` is not shown."""
WHOLE_SHARE = 0.99
"""Share of an epoch from which on its seconds count as those of a whole one."""


class EpochLines:
    """Writes the lines of one training.

    Args:
        config: Of the run.
        num_classes: K.
        num_samples: Clips of the train split.
        stream: Where the lines go; best epochs are coloured if it is a terminal and NO_COLOR is not set.
        clock: Seconds from any moment on.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        num_samples: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._num_classes = num_classes
        self._num_samples = num_samples
        self._stream = stream or sys.stdout
        self._seconds: list[float] = []
        self._clock = clock
        self._wrote_at_seconds = clock()
        self._wrote_at_epoch = 0.0

    def show(self, event: Event) -> None:
        """Writes the line of an event, if it has one."""
        if isinstance(event, Began):
            self._write(self._began(event), event.epoch)
        elif isinstance(event, EpochEnded):
            self._write(self._epoch_ended(event), event.figures.epoch)
        elif isinstance(event, Stepped) and self._is_due(event):
            self._write(self._stepped(event), event.epoch)

    def _write(self, line: str, epoch: float) -> None:
        self._wrote_at_seconds, self._wrote_at_epoch = self._clock(), epoch
        print(line, file=self._stream, flush=True)

    def _is_due(self, event: Stepped) -> bool:
        is_long = self._clock() - self._wrote_at_seconds >= LONG_SECONDS
        return is_long and event.epoch - self._wrote_at_epoch >= 0.1

    def _began(self, event: Began) -> str:
        epochs = self._config.epochs
        if event.global_step:
            return f"resumed at step {event.global_step}: {event.epoch:.2f} of {epochs} epochs are done"
        batch = self._config.global_batch
        return f"training: {epochs} epoch{'s' * (epochs != 1)} of {self._num_samples:,} clips, {batch} per step"

    def _stepped(self, event: Stepped) -> str:
        left_seconds = (1 - event.epoch % 1) * self._num_samples / event.clips_per_second
        return (
            f"{self._name(int(event.epoch) + 1)}  {event.epoch % 1:4.0%} done  loss {event.train_loss:.3f}  "
            f"{event.clips_per_second:.3g} clips/s  {duration(left_seconds)} to its end"
        )

    def _epoch_ended(self, event: EpochEnded) -> str:
        figures, select_by = event.figures, self._config.select_by
        others = ["top1"] if select_by != "top1" else []
        others += ["top5"] if self._num_classes > FEW_CLASSES else []
        best = self._coloured("best") if event.is_best else "    "
        cells = [
            self._name(figures.epoch),
            f"loss {figures.train_loss:.3f}",
            f"val {select_by} {figures.val[select_by]:.3f} {best}",
            *(f"{name} {figures.val[name]:.3f}" for name in others),
            f"{event.seconds:.1f} s",
            *self._time_left(event),
        ]
        return "  ".join(cells)

    def _time_left(self, event: EpochEnded) -> list[str]:
        """Returns how long the epochs that are left will take, as one cell; none after the last epoch."""
        if event.share >= WHOLE_SHARE:
            self._seconds.append(event.seconds)
        num_left = self._config.epochs - event.figures.epoch
        if not num_left or not (self._seconds or event.share):
            return []
        of_epoch = statistics.median(self._seconds[-3:]) if self._seconds else event.seconds / event.share
        return [f"{duration(num_left * of_epoch)} left"]

    def _name(self, epoch: int) -> str:
        epochs = str(self._config.epochs)
        return f"epoch {epoch:>{len(epochs)}}/{epochs}"

    def _coloured(self, text: str) -> str:
        is_coloured = self._stream.isatty() and not os.environ.get("NO_COLOR")
        return f"\033[32m{text}\033[0m" if is_coloured else text


def duration(seconds: float) -> str:
    """Returns a length of time in words: 45 s, 3 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
