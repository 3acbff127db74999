"""How sure a share is, such as that of right answers, by the number of clips that it was counted on."""

import math
from statistics import NormalDist

LEVEL = 0.95
"""How probably an interval covers the share that more and more clips would give."""


def wilson_interval(share: float, num_clips: int) -> tuple[float, float]:
    """Returns the 95 % interval, (low, high), of a share.

    0.8 of 20 clips gives (0.584, 0.919), and 1.0 of 45 gives (0.921, 1.0), for which a bootstrap would give (1.0, 1.0).
    It assumes independent clips, which clips of one recording are not, and says nothing about other trainings.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    square = z * z / num_clips
    centre = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / num_clips + square / (4 * num_clips)) / (1 + square)
    # The share lies within its interval, but rounding may put an end beyond it.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
