"""How sure a share of right answers is, by the number of answers that it was counted on."""

import math
from statistics import NormalDist

from trainer.evaluation.metrics import LEVEL


def wilson_interval(num_right: int, num_all: int) -> tuple[float, float]:
    """Returns the 95 % interval, (low, high), of a share.

    38 of 45 give (0.712, 0.923), and 45 of 45 give (0.921, 1.0), for which a bootstrap would give (1.0, 1.0). It
    assumes independent clips, which clips of one recording are not, and says nothing about other trainings.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, square = num_right / num_all, z * z / num_all
    centre = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / num_all + square / (4 * num_all)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)
