"""A hash of a picture that hardly changes with its size, compression or brightness: near hashes, pictures alike.

It is a difference hash: the grey picture is shrunk to a few means, and each bit says whether a mean is brighter than
its left neighbour; 64 bits of 8 x 9 means, and 256 bits of 16 x 17. On our real clips it tells recordings apart better
than a hash of the same size by the median of cosine frequencies (pHash), and costs less.

Source: Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013 (dHash).
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import simplejpeg
from numpy.typing import NDArray

NUM_WORDS = 5
"""A hash has that many words of 64 bits; the first is the coarse one."""

_SIDES = (8, 16)
_LEAST_SIDE_PX = 32
_BLACK = 24
"""A border no pixel of which is brighter is a bar, of which a video may have any number: it is left out."""
_LEAST_SPREAD = 8.0
"""Standard deviation of grey levels below which a picture shows nothing: black, white, a fade."""


def frame_hashes(jpegs: Sequence[bytes]) -> tuple[str, ...]:
    """Returns the hashes of a clip's first and last frame; of frames that show nothing there is none.

    Raises:
        ValueError: One of the two JPEGs is damaged.
    """
    return tuple(found for jpeg in (jpegs[0], jpegs[-1]) if (found := picture_hash(jpeg)))


def picture_hash(jpeg: bytes) -> str:
    """Returns the hash of a picture as 80 hexadecimal digits; empty if it shows nothing.

    Raises:
        ValueError: The JPEG is damaged.
    """
    grey = simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=_LEAST_SIDE_PX, min_width=_LEAST_SIDE_PX)[..., 0]
    is_lit = grey > _BLACK
    grey = grey[_inner(is_lit.any(1)), _inner(is_lit.any(0))]
    if not grey.size or grey.std() < _LEAST_SPREAD:
        return ""
    return b"".join(_differences(grey, side) for side in _SIDES).hex()


def hash_words(hashes: Sequence[Sequence[str]]) -> NDArray[np.uint64]:
    """Returns the hashes of N clips as `(N, 2, 5)` uint64; a clip with one hash has it twice."""
    pairs = chain.from_iterable((of_clip[0], of_clip[-1]) for of_clip in hashes)
    return np.frombuffer(bytes.fromhex("".join(pairs)), np.uint64).reshape(-1, 2, NUM_WORDS)


def _inner(is_lit: NDArray[np.bool_]) -> slice:
    """Returns what lies between the dark ends of a side."""
    lit = np.flatnonzero(is_lit)
    return slice(lit[0], lit[-1] + 1) if len(lit) else slice(0)


def _differences(grey: NDArray[np.uint8], side: int) -> bytes:
    means = _means(grey, side, side + 1)
    return np.packbits(means[:, 1:] > means[:, :-1]).tobytes()


def _means(grey: NDArray[np.uint8], num_rows: int, num_columns: int) -> NDArray[np.float64]:
    """Returns the means of equal parts of a picture `(H, W)`; if it has fewer pixels, they are repeated."""
    numbers = zip((num_rows, num_columns), grey.shape, strict=True)
    rows, columns = (np.arange(num) * length // num for num, length in numbers)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, 0, np.float64), columns, 1)
    heights, widths = (np.diff(at, append=n).clip(1) for at, n in zip((rows, columns), grey.shape, strict=True))
    means: NDArray[np.float64] = sums / np.outer(heights, widths)
    return means
