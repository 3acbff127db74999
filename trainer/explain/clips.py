"""The clips that a user can ask about: samples of the run's pack, and any video file.

A file is decoded by the packer's own rule and in a process that can be killed, as a server does it, and then treated as
a sample is in evaluation. A file that was packed is recognised by its digest, so that its label is known.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from configs.home import resolve
from configs.pack import DecodeLimits
from configs.section import UsageError
from packer.decoders.pool import DecodePool
from packer.shards.manifest import read_samples
from packer.storage.files import file_sha256
from packer.video.container import VideoError
from packer.video.jpeg import decode_frames
from trainer.explain.finished_run import FinishedRun
from trainer.explain.passes import read_clips
from trainer.views.eval_view import eval_view
from trainer.views.frames import eval_frames

MAX_FILE_NAME = 120
_COLUMNS = ("key", "source", "source_sha256", "start_seconds", "class_index")
_NUM_NAMED = 3


@dataclass(frozen=True)
class AskedClip:
    """A clip, and what is known about it."""

    source: str
    """Path below the data folder, as the pack has it, or path of the file."""
    frames: NDArray[np.uint8]
    """`(T, S, S, 3) uint8 RGB`, as the model sees it."""
    split: str = ""
    """Of the pack; empty for a file that the pack lacks."""
    sample: int = -1
    """Number in the split's index; -1 for a file that the pack lacks."""
    label: int | None = None
    """Class index; None: not known."""

    @property
    def file_name(self) -> str:
        """A name for files about the clip, without an ending: its source in letters that every system takes.

        The digest at its end keeps clips apart whose names differ in other letters only.
        """
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", self.source).strip("-.")[-MAX_FILE_NAME:]
        return f"{plain}-{hashlib.sha256(self.source.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class _Found:
    split: str
    sample: int
    row: dict[str, Any]


def find_clip(run: FinishedRun, name: str) -> AskedClip:
    """Returns a clip by what the user calls it.

    Args:
        run: Whose pack and model count.
        name: Source or key of a sample, the end of a source, or the path of a video file.

    Raises:
        UsageError: There is no such clip, several fit, or it cannot be read.
    """
    if exact := _search(run, lambda table: pc.or_(pc.equal(table["source"], name), pc.equal(table["key"], name))):
        return _of_sample(run, exact[0])
    path = resolve(name)
    if path.is_file():
        digest = file_sha256(path)
        packed = _search(run, lambda table: pc.and_(pc.equal(table["source_sha256"], digest), _is_whole(table)))
        return _of_sample(run, packed[0]) if packed else _of_file(run, path)
    ending = _search(run, lambda table: pc.ends_with(table["source"], f"/{name}"))
    if len(ending) == 1:
        return _of_sample(run, ending[0])
    if ending:
        sources = [found.row["source"] for found in ending]
        more = ", ..." * (len(sources) > _NUM_NAMED)
        raise UsageError(
            f"{len(sources)} clips of {run.spec.shards} are called {name}: give one of "
            f"{', '.join(sources[:_NUM_NAMED])}{more}"
        )
    raise UsageError(
        f"{name} is neither a clip of {run.spec.shards}, whose index (samples.parquet) lists them, nor a file: {path} "
        "does not exist"
    )


def clips_of(run: FinishedRun, split: str, samples: list[int]) -> list[AskedClip]:
    """Returns samples of a split in the given order, without those that cannot be read."""
    rows = read_samples(run.spec.shards, split, columns=_COLUMNS).take(samples).to_pylist()
    clips = read_clips(run, split, samples)
    return [
        AskedClip(row["source"], clips[sample], split, sample, row["class_index"])
        for sample, row in zip(samples, rows, strict=True)
        if sample in clips
    ]


def _search(run: FinishedRun, is_wanted: Callable[[pa.Table], pa.ChunkedArray]) -> list[_Found]:
    """Returns the samples of all splits for which a condition holds; only their rows become Python objects."""
    found = []
    for split in run.manifest.splits:
        table = read_samples(run.spec.shards, split, columns=_COLUMNS)
        samples = np.flatnonzero(is_wanted(table).to_numpy())
        rows = table.take(samples).to_pylist()
        found += [_Found(split, int(sample), row) for sample, row in zip(samples, rows, strict=True)]
    return found


def _is_whole(table: pa.Table) -> pa.ChunkedArray | pa.Scalar:
    """Returns which samples are of whole videos; packs from before there were segments have no others."""
    return pc.is_null(table["start_seconds"]) if "start_seconds" in table.column_names else pa.scalar(True)


def _of_sample(run: FinishedRun, found: _Found) -> AskedClip:
    clips = clips_of(run, found.split, [found.sample])
    if not clips:
        raise UsageError(
            f"{found.row['source']} cannot be read from {run.spec.shards}: look with `python -m packer verify`"
        )
    return clips[0]


def _of_file(run: FinishedRun, path: Path) -> AskedClip:
    try:
        with DecodePool(1, DecodeLimits()) as pool:
            jpegs = pool.submit(str(path), run.manifest.clip).result().jpegs
    except VideoError as error:
        raise UsageError(f"{path} gives no clip: {error}") from error
    numbers = eval_frames(len(jpegs), run.num_frames).numbers
    frames = torch.from_numpy(decode_frames([jpegs[number] for number in numbers]))
    view = eval_view(frames, run.spec.config.view)
    return AskedClip(str(path), np.ascontiguousarray(view.numpy()))
