"""The table that a folder is scored into: parts beside the file while it is made, one Parquet file in the end.

A part's name is the digest of what decides its rows, so that a stopped scoring goes on where it was, and rows of
another model or of other videos are never taken. The file's metadata hold its digest, by which it is known as complete.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from configs.section import UsageError
from packer.storage.files import local_copy, write_atomically
from packer.storage.location import Location, at
from packer.storage.target_lock import RECORDS, locked
from packer.video.catalog import Video
from packer.video.clip import Clip
from packer.video.container import VideoError

_DIGEST, _DECIDED_BY = b"clipstream.digest", b"clipstream.decided_by"
_ROWS_PER_PART = 256
"""A kill costs at most so many videos' work."""


@dataclass(frozen=True)
class Part:
    """Rows that are written whole or not at all."""

    name: str
    videos: tuple[Video, ...]


class Predictions:
    """The rows of the videos, in the order of their sources.

    Args:
        out: The file that is made.
        videos: Every candidate.
        class_names: In the order of the logits.
        decided_by: All else that decides a row, the model and the limits; kept in the file's metadata.
    """

    def __init__(
        self, out: Location, videos: Sequence[Video], class_names: Sequence[str], decided_by: Mapping[str, Any]
    ) -> None:
        self._out = out
        self._folder = at(f"{out}.parts")
        self._schema = _schema(class_names)
        self._decided_by = json.dumps(decided_by, sort_keys=True)
        chunks = [tuple(videos[start : start + _ROWS_PER_PART]) for start in range(0, len(videos), _ROWS_PER_PART)]
        self.parts = [Part(f"{_digest(self._decided_by, chunk)}.parquet", chunk) for chunk in chunks]
        self._sha256 = hashlib.sha256("".join(part.name for part in self.parts).encode()).hexdigest()

    def is_complete(self) -> bool:
        """Tells whether the file is there with just these rows.

        Raises:
            UsageError: Something else is there.
        """
        if not self._out.exists():
            return False
        try:
            with local_copy(self._out) as file:
                found = (pq.read_schema(file).metadata or {}).get(_DIGEST)
        except (OSError, pa.ArrowInvalid):
            found = None
        if found != self._sha256.encode():
            raise UsageError(f"{self._out} is there, and is not of these videos and this model: give another --out")
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing the parts.

        Raises:
            UsageError: Another process writes them, or the place cannot be written to.
        """
        with locked(self._folder):
            yield

    def missing_parts(self) -> list[Part]:
        """Returns the parts that are not there yet."""
        return [part for part in self.parts if not (self._folder / part.name).exists()]

    def write_part(self, part: Part, rows: list[dict[str, Any]]) -> None:
        """Writes the rows of one part."""
        with write_atomically(self._folder / part.name) as file:
            pq.write_table(pa.Table.from_pylist(rows, self._schema), file)

    def finish(self) -> None:
        """Makes the file of the parts, of which none is missing."""
        schema = self._schema.with_metadata({_DIGEST: self._sha256, _DECIDED_BY: self._decided_by})
        with write_atomically(self._out) as file, pq.ParquetWriter(file, schema) as writer:
            for part in self.parts:
                with local_copy(self._folder / part.name) as path:
                    writer.write_table(pq.ParquetFile(path).read().cast(schema))

    def remove_parts(self) -> None:
        """Removes what only a stopped scoring needs."""
        for folder in (self._folder / RECORDS, self._folder):
            paths: Iterable[Location] = folder.glob("*")
            for path in list(paths):
                path.unlink(missing_ok=True)
            if isinstance(folder, Path) and folder.exists():
                folder.rmdir()

    def read(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Returns these columns of the complete file."""
        with local_copy(self._out) as file:
            rows: list[dict[str, Any]] = pq.ParquetFile(file).read(columns=list(columns)).to_pylist()
        return rows


def scored_row(
    video: Video, clip: Clip, class_names: Sequence[str], probabilities: NDArray[np.float64]
) -> dict[str, Any]:
    """Returns the row of a video that was scored; `probabilities` is `(K,)`."""
    best = int(np.argmax(probabilities))
    return {
        **_known(video, class_names),
        "predicted": class_names[best],
        "probability": float(probabilities[best]),
        **{f"p_{name}": float(value) for name, value in zip(class_names, probabilities, strict=True)},
        "num_frames": clip.num_frames,
        "duration_seconds": clip.duration_seconds,
    }


def rejected_row(video: Video, class_names: Sequence[str], error: VideoError) -> dict[str, Any]:
    """Returns the row of a video that gives no clip."""
    return {**_known(video, class_names), "reason": error.reason, "message": str(error)}


def _known(video: Video, class_names: Sequence[str]) -> dict[str, Any]:
    folder, _, below = video.source.partition("/")
    return {"source": video.source, "true_class": folder if below and folder in class_names else None}


def _schema(class_names: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [
            ("source", pa.string()),
            ("true_class", pa.string()),
            ("predicted", pa.string()),
            ("probability", pa.float64()),
            *((f"p_{name}", pa.float64()) for name in class_names),
            ("num_frames", pa.int64()),
            ("duration_seconds", pa.float64()),
            ("reason", pa.string()),
            ("message", pa.string()),
        ]
    )


def _digest(decided_by: str, videos: Sequence[Video]) -> str:
    known = [decided_by, [(video.source, video.num_bytes) for video in videos]]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
