"""A folder of numbered pictures that together are one video, as datasets of extracted frames store them.

Owns which files of a folder are its frames, their order, the gaps between them, their bytes and their digest. Pictures
are read only if they are asked for, so a folder of 30,000 costs what its names take.
"""

import hashlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from packer.storage.location import Entry, Location, RemotePath, at, is_url, list_folder
from packer.video.sampling import frame_indices

_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)\.(jpe?g|png)", re.IGNORECASE | re.DOTALL)
"""Text, the last number of the name, text, and the kind of picture."""
_PICTURE = re.compile(r".*\.(jpe?g|png)", re.IGNORECASE | re.DOTALL)
_FLOW = re.compile(r".*flow.*|[uvxy][_-]?", re.DOTALL)
"""Optical flow, which tools store beside the frames: flow_x_00001.jpg, x_00001.jpg."""
_MAX_COUNTING_DIGITS = 9
"""A longer number is a time rather than a frame's number, and its gaps mean nothing."""
_NUM_DIGESTED = 1000
_NUM_AT_ONCE = 32


@dataclass(frozen=True)
class FrameFolder:
    """The numbered pictures of a folder, in order."""

    location: Location
    files: tuple[Entry, ...]
    numbers: tuple[int, ...]
    """The number in each file's name; never falling."""

    @property
    def num_bytes(self) -> int:
        """Size of all pictures together."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_expected(self) -> int:
        """How many pictures there would be without gaps; 0 if the numbers are too long to be counts.

        The step is the largest that all numbers keep: of 1, 3, 5 and 9, which has the step 2, only 7 is missing.
        """
        if self.numbers[-1] >= 10**_MAX_COUNTING_DIGITS:
            return 0
        step = math.gcd(*(after - before for before, after in pairwise(self.numbers)))
        return (self.numbers[-1] - self.numbers[0]) // step + 1 if step else 1

    def only(self, indices: Sequence[int]) -> "FrameFolder":
        """Returns the folder as if it held only some of its pictures."""
        files = tuple(self.files[index] for index in indices)
        return replace(self, files=files, numbers=tuple(self.numbers[index] for index in indices))

    def read(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Yields the bytes of some pictures, in the given order; at an address, 32 are fetched at once.

        Raises:
            OSError: A picture cannot be read.
        """
        files = [self.files[index] for index in indices]
        if not isinstance(self.location, RemotePath):
            yield from (Path(file.path).read_bytes() for file in files)
            return
        for start in range(0, len(files), _NUM_AT_ONCE):
            yield from self.location.read_files(
                [file.path.rpartition("/")[2] for file in files[start : start + _NUM_AT_ONCE]]
            )

    def sha256(self) -> str:
        """Returns the digest of the names and sizes of all pictures, and of the bytes of up to 1,000 of them.

        A folder of 1,000 pictures or fewer is digested whole; of a longer one, as many equally spaced ones. So copies
        of a folder have one digest, wherever they lie.

        Raises:
            OSError: A picture cannot be read.
        """
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(b"%b\0%d\n" % (os.fsencode(file.name), file.num_bytes))
        for data in self.read(frame_indices(len(self.files), min(len(self.files), _NUM_DIGESTED))):
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()


def is_frame_folder(source: str | Path | bytes) -> bool:
    """Tells a folder of pictures from a video file: a folder, or a text that ends with a slash."""
    if isinstance(source, Path):
        return source.is_dir()
    return isinstance(source, str) and source.endswith("/")


def open_frame_folder(source: str | Path) -> FrameFolder | None:
    """Returns the pictures of a folder, given as a path or an address; None if it holds no two numbered ones.

    Raises:
        OSError: The folder cannot be read.
    """
    name = str(source).rstrip("/")
    location = at(name) if is_url(name) else Path(name)
    return numbered_pictures(location, [entry for entry in list_folder(location) if not entry.name.startswith(".")])


def numbered_pictures(folder: Location, entries: Sequence[Entry]) -> FrameFolder | None:
    """Returns the pictures among the entries of a folder that are its frames; None if there are no two.

    Frames have names that differ in their last number alone: `img_00001.jpg`, `7.png`, `frame000001_rgb.JPG`. They are
    ordered by that number, so `frame2` comes before `frame10`. Of several such series the longest counts, then the
    first by name; but one that is named as optical flow counts only if there is no other.
    """
    series: dict[tuple[str, str, str], list[tuple[int, str, Entry]]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "file" and (match := _NUMBERED.fullmatch(entry.name)):
            before, number, after, kind = match.groups()
            key = (before.lower(), after.lower(), kind.lower().replace("e", ""))
            series[key].append((int(number), entry.name, entry))
    if not series:
        return None
    key = max(sorted(series), key=lambda key: (len(series[key]) > 1, not _FLOW.fullmatch(key[0]), len(series[key])))
    found = sorted(series[key], key=lambda item: item[:2])
    if len(found) < 2:
        return None
    return FrameFolder(folder, tuple(file for *_, file in found), tuple(number for number, *_ in found))


def is_picture_name(name: str) -> bool:
    """Tells whether a file is named as a picture that can be a frame."""
    return _PICTURE.fullmatch(name) is not None
