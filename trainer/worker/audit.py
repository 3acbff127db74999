"""What each step of a run was trained on, written while it trains; and the proof that no sample was lost or doubled.

Each rank of each attempt (a start of the workers) has a file in `<run>/audit`. Its first line names the step from which
the attempt goes on; each further line lists, by epoch, the samples that one finished step used. Samples are numbered
like the rows of the train split in samples.parquet. Lines are handed to the system at once, and are on the storage
before the checkpoint that contains their steps, so a kill loses at most lines of steps that will be repeated. An
attempt supersedes what earlier attempts wrote for the steps after the one it goes on from.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.section import UsageError
from trainer.schedule.rows import Row

_NUM_NAMED = 5

Line = dict[str, Any]


class AuditWriter:
    """Writes the lines of one rank in one attempt.

    Args:
        folder: The run's audit folder.
        attempt: Number of the attempt.
        rank: This process's number.
        world_size: Number of processes.
        resumed_step: Global step that the attempt goes on from.
        num_samples: Samples of the train split.
    """

    def __init__(
        self, folder: Path, attempt: int, rank: int, world_size: int, *, resumed_step: int, num_samples: int
    ) -> None:
        self._path = folder / f"attempt-{attempt:04d}-rank-{rank:04d}.jsonl"
        self._descriptor: int | None = None
        self._unwritten = b""
        self._put(attempt=attempt, world_size=world_size, resumed_step=resumed_step, num_samples=num_samples)

    def step(self, global_step: int, rows: Sequence[Row], weights: Sequence[float]) -> None:
        """Adds a finished step. If the storage fails, the line is written with the next step's.

        Args:
            global_step: The step's number in the run.
            rows: This rank's rows.
            weights: Of these rows; 0 for padding and for unreadable samples.
        """
        samples: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            if row.weight:
                samples[row.epoch].append(row.index)
        num_unreadable = sum(bool(row.weight) and not weight for row, weight in zip(rows, weights, strict=True))
        self._put(step=global_step, samples=samples, num_unreadable=num_unreadable)
        try:
            self._write()
        except OSError:
            return

    def sync(self) -> None:
        """Brings all lines to the storage.

        Raises:
            OSError: The storage refused; the lines are kept for the next time.
        """
        os.fsync(self._write())

    def _put(self, **line: object) -> None:
        self._unwritten += json.dumps(line, separators=(",", ":")).encode() + b"\n"

    def _write(self) -> int:
        if self._descriptor is None:
            self._path.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._descriptor, self._unwritten) :]
        return self._descriptor


@dataclass(frozen=True)
class Replay:
    """What a run's audit shows."""

    num_attempts: int
    num_steps: int
    num_recomputed: int
    """Finished steps that a later attempt repeated."""
    num_samples: int
    """Samples of the train split."""
    num_epochs: int
    """Epochs that are complete."""
    num_unreadable: int
    """Samples that had their turn but could not be read, over all epochs."""
    problems: tuple[str, ...]
    """What contradicts "each sample once per epoch"; empty if nothing does."""

    def __str__(self) -> str:
        """Returns the sentences that the user reads."""
        what = f"{self.num_epochs} complete epochs of {self.num_samples} samples"
        steps = f"{self.num_steps} steps in {self.num_attempts} attempts, {self.num_recomputed} repeated"
        proof = "\n".join(self.problems) or "every sample was used once per epoch, none twice, none lost"
        return f"{what}; {steps}; {self.num_unreadable} samples could not be read\n{proof}"


def next_attempt(folder: Path) -> int:
    """Returns the number of the attempt that starts now."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("attempt-*")), default=0) + 1


def replay(folder: Path) -> Replay:
    """Returns what a run's audit shows; a step counts as the newest attempt took it.

    Args:
        folder: The run's audit folder.

    Raises:
        UsageError: There is no audit.
    """
    attempts: dict[int, list[list[Line]]] = defaultdict(list)
    for path in sorted(folder.glob("attempt-*.jsonl")):
        # A kill in the middle of a write leaves an incomplete last line.
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        if lines:
            attempts[lines[0]["attempt"]].append(lines)
    if not attempts:
        raise UsageError(f"{folder} holds no audit: train the run with --audit")
    steps: dict[int, list[Line]] = {}
    num_recomputed = 0
    for _, ranks in sorted(attempts.items()):
        header = ranks[0][0]
        num_recomputed += sum(step > header["resumed_step"] for step in steps)
        steps = {step: lines for step, lines in steps.items() if step <= header["resumed_step"]}
        steps |= _complete_steps(ranks, header["world_size"])
    counts = _counts(steps, header["num_samples"])
    return Replay(
        num_attempts=len(attempts),
        num_steps=len(steps),
        num_recomputed=num_recomputed,
        num_samples=header["num_samples"],
        num_epochs=sum(int(count.min()) > 0 for count in counts.values()),
        num_unreadable=sum(line["num_unreadable"] for lines in steps.values() for line in lines),
        problems=(*_missing_steps(steps), *_wrong_counts(counts)),
    )


def _complete_steps(ranks: list[list[Line]], world_size: int) -> dict[int, list[Line]]:
    """Returns the lines of the steps that every rank finished."""
    steps: dict[int, list[Line]] = defaultdict(list)
    for _, *lines in ranks:
        for line in lines:
            steps[line["step"]].append(line)
    return {step: lines for step, lines in steps.items() if len(lines) == world_size}


def _counts(steps: dict[int, list[Line]], num_samples: int) -> dict[int, "np.ndarray[Any, np.dtype[np.int64]]"]:
    used: dict[int, Counter[int]] = defaultdict(Counter)
    for lines in steps.values():
        for line in lines:
            for epoch, samples in line["samples"].items():
                used[int(epoch)].update(samples)
    return {epoch: np.array([times[sample] for sample in range(num_samples)]) for epoch, times in sorted(used.items())}


def _missing_steps(steps: dict[int, list[Line]]) -> list[str]:
    missing = sorted(set(range(1, max(steps, default=0) + 1)) - steps.keys())
    return [f"{len(missing)} steps are missing: {_named(missing)}"] if missing else []


def _wrong_counts(counts: dict[int, "np.ndarray[Any, np.dtype[np.int64]]"]) -> list[str]:
    problems = []
    for epoch, times in counts.items():
        for what, wrong in (("more than once", times > 1), ("never", times == 0)):
            # The newest epoch may be unfinished.
            if wrong.any() and (what != "never" or epoch < max(counts)):
                samples = np.flatnonzero(wrong).tolist()
                problems.append(f"epoch {epoch} used {len(samples)} samples {what}: {_named(samples)}")
    return problems


def _named(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:_NUM_NAMED])) + (", ..." if len(numbers) > _NUM_NAMED else "")
