"""What rank 0 tells the driver while it trains: a file in the run's folder, one event per line, as JSON.

The file needs nothing but the storage that the checkpoints need too. Ray would bring what the workers print to the
driver, but as bare text. The driver creates the file, follows it while the training runs, and deletes it. An event that
cannot be written is lost: the training neither fails nor waits for it.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.worker.epoch import EpochFigures


@dataclass(frozen=True)
class Began:
    """The workers begin to train, for the first time or after a restart."""

    global_step: int
    """Steps that were finished before."""
    epoch: float
    """Epochs that were finished before, as a fraction."""


@dataclass(frozen=True)
class Stepped:
    """Steps are finished within an epoch."""

    global_step: int
    epoch: float
    """Epochs that are finished, as a fraction."""
    train_loss: float
    """Mean over the newest steps."""
    clips_per_second: float


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is trained and evaluated."""

    figures: EpochFigures
    is_best: bool
    """Whether it is the best epoch so far."""
    seconds: float
    """Time since the epoch began or was resumed, with its evaluation."""
    share: float
    """Share of the epoch's steps that were taken in this time."""


@dataclass(frozen=True)
class EpochsDone:
    """Every epoch is done and stored; the best one is being tested."""


@dataclass(frozen=True)
class Halted:
    """The workers have seen the wish to stop, and take no further step."""

    global_step: int
    is_saved: bool
    """Whether a checkpoint of this very step was written."""


Event = Began | Stepped | EpochEnded | EpochsDone | Halted
_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Began, Stepped, EpochEnded, EpochsDone, Halted)}


def tell(path: Path, event: Event) -> None:
    """Adds an event to a file that the driver has created; does nothing if the file is gone or cannot be written."""
    line = json.dumps({"event": type(event).__name__, **asdict(event)}).encode() + b"\n"
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


class EventReader:
    """Reads the events of a file that grows.

    Args:
        path: The file; while it does not exist there are no events.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read_bytes = 0

    def read(self) -> list[Event]:
        """Returns the events that were added since the last call; none if the storage fails."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._num_read_bytes)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._num_read_bytes += len(whole + newline)
        return [_parse(line) for line in whole.split(b"\n") if line]


def _parse(line: bytes) -> Event:
    fields = json.loads(line)
    kind = _KINDS[fields.pop("event")]
    if kind is EpochEnded:
        fields["figures"] = EpochFigures(**fields["figures"])
    return kind(**fields)
