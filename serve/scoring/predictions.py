"""The table that a folder is scored into: Parquet parts beside the file while scoring runs, one file in the end.

The name of a part is the digest of everything that decides its rows. So a stopped scoring continues after its last
whole part, and never uses rows of another model or of other videos. The digest of all parts shows that the finished
file is complete. It lies in a Parquet file itself, and beside a file of another format in `<out>.metadata.json`.
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
from packer.storage.files import file_sha256, local_copy, open_sha256, write_atomically
from packer.storage.location import Location, at
from packer.storage.target_lock import RECORDS, locked
from packer.video.catalog import Video
from packer.video.clip import Clip
from packer.video.container import VideoError
from serve.scoring.formats import TableFormat
from trainer.model.contract import prediction_columns

_DIGEST, _DECIDED_BY = "clipstream.digest", "clipstream.decided_by"
_ROWS_PER_PART = 256
"""A kill costs the work on at most this many videos."""


@dataclass(frozen=True)
class Part:
    """Rows that are written together or not at all."""

    name: str
    videos: tuple[Video, ...]


class Predictions:
    """The rows of the videos, in the order of their sources.

    Args:
        out: The file to write.
        table_format: Format of that file.
        videos: Every candidate.
        class_names: In the order of the logits.
        decided_by: Everything else that decides a row: the model and the limits. It is kept with the file.
    """

    def __init__(
        self,
        out: Location,
        table_format: TableFormat,
        videos: Sequence[Video],
        class_names: Sequence[str],
        decided_by: Mapping[str, Any],
    ) -> None:
        self._out = out
        self._format = table_format
        self._metadata_file = at(f"{out}.metadata.json")
        self._folder = at(f"{out}.parts")
        self._schema = _schema(class_names)
        self._decided_by = json.dumps(decided_by, sort_keys=True)
        chunks = [tuple(videos[start : start + _ROWS_PER_PART]) for start in range(0, len(videos), _ROWS_PER_PART)]
        self.parts = [Part(f"{_digest(self._decided_by, chunk)}.parquet", chunk) for chunk in chunks]
        self._sha256 = hashlib.sha256("".join(part.name for part in self.parts).encode()).hexdigest()

    def is_complete(self) -> bool:
        """Returns whether the file is there with exactly these rows.

        Raises:
            UsageError: The file is there with other content.
        """
        if not self._out.exists():
            return False
        found = self._digest_in_file() if self._format.holds_metadata else self._digest_beside_file()
        if found != self._sha256:
            raise UsageError(
                f"{self._out} exists, but was not made from these videos by this model: give another --out"
            )
        return True

    def _digest_in_file(self) -> str | None:
        try:
            with local_copy(self._out) as file:
                found = (pq.read_schema(file).metadata or {}).get(_DIGEST.encode())
        except (OSError, pa.ArrowInvalid):  # another format, or damaged
            return None
        return None if found is None else str(found, "utf-8")

    def _digest_beside_file(self) -> str | None:
        if not self._metadata_file.exists():
            return None
        try:
            found = json.loads(self._metadata_file.read_bytes())
        except ValueError:
            return None
        is_of_this_file = isinstance(found, dict) and found.get("sha256") == file_sha256(self._out)
        return found.get(_DIGEST) if is_of_this_file else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing the parts.

        Raises:
            UsageError: Another process is writing them, or nobody may write there.
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
        """Writes the file from the parts, which must all be there."""
        schema = self._schema.with_metadata({_DIGEST: self._sha256, _DECIDED_BY: self._decided_by})
        with write_atomically(self._out) as file:
            self._format.write(file, schema, self._tables(schema))
            if not self._format.holds_metadata:
                self._write_metadata(open_sha256(file))  # before the file gets its name, so that a kill costs nothing

    def _tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        for part in self.parts:
            with local_copy(self._folder / part.name) as path:
                yield pq.ParquetFile(path).read().cast(schema)

    def _write_metadata(self, sha256: str) -> None:
        metadata = {_DIGEST: self._sha256, _DECIDED_BY: json.loads(self._decided_by), "sha256": sha256}
        with write_atomically(self._metadata_file) as file:
            file.write(json.dumps(metadata, indent=2, sort_keys=True).encode() + b"\n")

    def remove_parts(self) -> None:
        """Removes the parts, which only a stopped scoring needs."""
        for folder in (self._folder / RECORDS, self._folder):
            paths: Iterable[Location] = folder.glob("*")
            for path in list(paths):
                path.unlink(missing_ok=True)
            if isinstance(folder, Path) and folder.exists():
                folder.rmdir()

    def read(self, columns: Sequence[str]) -> list[Mapping[str, Any]]:
        """Returns the rows of the complete file with these columns, which must be strings."""
        with local_copy(self._out) as file:
            return list(self._format.read(file, columns))


def scored_row(
    video: Video, clip: Clip, class_names: Sequence[str], probabilities: NDArray[np.float64], seen_in: str | None
) -> dict[str, Any]:
    """Returns the row of a video that was scored; `probabilities` is `(K,)`, `seen_in` as in `Seen.split`."""
    best = int(np.argmax(probabilities))
    return {
        **_known(video, class_names),
        "predicted": class_names[best],
        "probability": float(probabilities[best]),
        **{f"p_{name}": float(value) for name, value in zip(class_names, probabilities, strict=True)},
        "num_frames": clip.num_frames,
        "duration_seconds": clip.duration_seconds,
        "seen_in": seen_in,
    }


def rejected_row(video: Video, class_names: Sequence[str], error: VideoError) -> dict[str, Any]:
    """Returns the row of a video that gives no clip."""
    return {**_known(video, class_names), "reason": error.reason, "message": str(error)}


def _known(video: Video, class_names: Sequence[str]) -> dict[str, Any]:
    folder, _, below = video.source.partition("/")
    return {"source": video.source, "true_class": folder if below and folder in class_names else None}


def _schema(class_names: Sequence[str]) -> pa.Schema:
    names = prediction_columns(class_names)  # as in a run's tables
    types = [pa.string()] * 3 + [pa.float64()] * (len(names) - 3)
    return pa.schema(
        [
            *zip(names, types, strict=True),
            ("num_frames", pa.int64()),
            ("duration_seconds", pa.float64()),
            ("reason", pa.string()),
            ("message", pa.string()),
            ("seen_in", pa.string()),
        ]
    )


def _digest(decided_by: str, videos: Sequence[Video]) -> str:
    known = [decided_by, [(video.source, video.num_bytes) for video in videos]]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
