"""Checkpoints on shared storage: written completely or not at all, and found by looking at the storage itself.

A checkpoint is a folder `step-<global step>` with `state.pt` and `COMPLETE.json`, which lists the file's size and
sha256. It counts only if both match. So after a kill, a full disk or an incomplete copy at any moment, the checkpoint
before it is the newest. Only tensors and plain values are stored: `torch.load(weights_only=True)` reads them.

If a driver is killed, its workers live on for some seconds, perhaps beside the workers of the same run started again.
So each driver has a folder of its own among the checkpoints, its hold, and every change of a checkpoint is one rename
into or out of the hold. A driver that starts removes the holds of all others, whose changes then fail, whatever they
were doing.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.section import UsageError
from packer.storage.files import file_sha256, sync_folder
from trainer.learning.ranks import Ranks

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"
COMPLETE_FILE = "COMPLETE.json"
HOLD = ".writing"
NUM_KEPT = 2
RETRY_SECONDS = 5.0

State = dict[str, Any]


class SupersededError(RuntimeError):
    """Another holder took the checkpoints over."""

    def __str__(self) -> str:
        """Returns the sentence that the user reads."""
        return "another command has taken the run over and trains it now"


class CheckpointStore:
    """The checkpoints of one run, in `<folder>/step-<global step>`.

    Args:
        folder: Holds them.
        holder: Name of the driver on whose behalf they are changed, different for each start of the command.
    """

    def __init__(self, folder: Path, holder: str = "") -> None:
        self.folder = folder
        self._hold = folder / f"{HOLD}{holder}"

    def take(self) -> None:
        """Makes this holder the only one that can change the checkpoints; keeps the checkpoints that are there.

        Raises:
            OSError: The storage refused.
        """
        self._hold.mkdir(parents=True, exist_ok=True)
        for other in self._other_holds():
            other.rename(self._hold / other.name)
            shutil.rmtree(self._hold / other.name, ignore_errors=True)  # its process may be writing into it

    def is_superseded(self) -> bool:
        """Returns whether another holder took the checkpoints over; False if the storage fails."""
        return not os.path.exists(self._hold) and bool(self._other_holds())  # noqa: PTH110  # it raises nothing

    def save(self, state: State, global_step: int, best_step: int | None) -> Path:
        """Writes a checkpoint and returns its folder; deletes all others but the one before it and the best.

        Args:
            state: Tensors, numbers, strings, lists and dicts.
            global_step: Optimizer steps that the run has taken.
            best_step: Global step of the best epoch's checkpoint, which is kept too.

        Raises:
            OSError: The storage refused; the checkpoints before this one are untouched.
            SupersededError: Another holder took the checkpoints over.
        """
        target = self.folder / _name(global_step)
        writing = self._clear_hold() / "new"
        writing.mkdir()
        with (writing / STATE_FILE).open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's own, raised while it handles the OSError of the write
                raise OSError(f"{target} could not be written: {error.__context__ or error}") from error
            file.flush()
            os.fsync(file.fileno())
        complete = {STATE_FILE: _describe(writing / STATE_FILE)}
        with (writing / COMPLETE_FILE).open("w", encoding="utf-8") as file:
            json.dump(complete, file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():  # the same step again, after a restart from an earlier checkpoint
            self._delete(target)
        writing.rename(target)
        sync_folder(self.folder)
        self._delete_old(global_step, best_step)
        return target

    def steps(self) -> list[int]:
        """Returns the global steps that a checkpoint folder exists for, newest first, complete or not."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((int(name.partition("-")[2]) for name in names if name.startswith("step-")), reverse=True)

    def load_newest(self) -> State | None:
        """Returns the state of the newest complete checkpoint, or None; the log names broken ones.

        Raises:
            OSError: None can be read because the storage fails. The caller must not begin anew: that would lose them.
        """
        failure: OSError | None = None
        for step in self.steps():
            try:
                state = self._load_if_complete(step)
            except OSError as error:
                logger.warning("checkpoint not read path=%s reason=%s", self.folder / _name(step), error)
                failure = error
            else:
                if state is not None:
                    return state
        if failure:
            raise failure
        return None

    def load(self, global_step: int) -> State:
        """Returns the state of one checkpoint.

        Raises:
            UsageError: It is not there, or it is broken.
            OSError: The storage fails.
        """
        state = self._load_if_complete(global_step)
        if state is None:
            raise UsageError(f"{self.folder / _name(global_step)} is not a complete checkpoint: start the run anew")
        return state

    def _load_if_complete(self, step: int) -> State | None:
        path = self.folder / _name(step)
        try:
            complete = json.loads((path / COMPLETE_FILE).read_text(encoding="utf-8"))
            found = {name: _describe(path / name) for name in complete}
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError) as error:
            logger.warning("checkpoint ignored path=%s reason=%s", path, error)
            return None
        if not complete or found != complete:
            logger.warning("checkpoint ignored path=%s reason=its files have changed since they were written", path)
            return None
        state: State = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        return state

    def _delete_old(self, newest_step: int, best_step: int | None) -> None:
        # Later steps than the newest are broken: otherwise the run would have gone on from them.
        kept = [step for step in self.steps() if step <= newest_step][:NUM_KEPT]
        for step in self.steps():
            if step not in kept and step != best_step:
                self._delete(self.folder / _name(step))

    def _delete(self, path: Path) -> None:
        aside = self._hold / path.name
        path.rename(aside)
        shutil.rmtree(aside)

    def _clear_hold(self) -> Path:
        """Returns the holder's folder, empty: without what a kill left there; makes it if the storage was emptied."""
        if not self._hold.exists():
            if self._other_holds():
                raise SupersededError
            self._hold.mkdir(parents=True)
        for left in self._hold.iterdir():
            shutil.rmtree(left)
        return self._hold

    def _other_holds(self) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if path.name.startswith(HOLD) and path != self._hold]
        except OSError:
            return []


def write_together(ranks: Ranks, writes: Sequence[Callable[[], object] | None], num_tries: int) -> bool:
    """Returns whether the storage took what every rank had to write; the same on every rank.

    Args:
        ranks: The processes that write; if one of them fails, all wait for it.
        writes: Done in this order, each after all ranks have done the one before; None if this rank has nothing to
            write.
        num_tries: Most tries, one every `RETRY_SECONDS`.

    Raises:
        SupersededError: Another holder took the checkpoints over; on every rank.
    """
    for num_left in reversed(range(num_tries)):
        if all(_write(ranks, write) for write in writes):
            return True
        if num_left:
            time.sleep(RETRY_SECONDS)
    return False


def _write(ranks: Ranks, write: Callable[[], object] | None) -> bool:
    failed = superseded = False
    try:
        if write:
            write()
    except OSError as error:
        logger.warning("checkpoint not written, will be tried again reason=%s", error)
        failed = True
    except SupersededError:
        superseded = True
    num_failed, num_superseded = ranks.sum([float(failed), float(superseded)])
    if num_superseded:
        raise SupersededError
    return not num_failed


def evaluated_weights(state: State) -> dict[str, torch.Tensor]:
    """Returns the weights that are evaluated and registered: their moving average if the run keeps one."""
    weights: dict[str, torch.Tensor] = (state.get("average") or state)["model"]
    return weights


def _name(step: int) -> str:
    return f"step-{step:010d}"


def _describe(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
