"""The interval of a share is Wilson's."""

import pytest
from scipy.stats import binomtest

from packer.proportion import wilson_interval


@pytest.mark.parametrize(("num_right", "num_all"), [(0, 7), (3, 4), (38, 45), (45, 45), (900, 1000)])
def test_the_interval_is_wilsons(num_right: int, num_all: int) -> None:
    wanted = binomtest(num_right, num_all).proportion_ci(method="wilson")
    assert wilson_interval(num_right / num_all, num_all) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("share", [0.0, 1 / 3, 1.0])
def test_the_share_lies_within_its_interval(share: float) -> None:
    for num_clips in range(1, 500):
        low, high = wilson_interval(share, num_clips)
        assert 0 <= low <= share <= high <= 1
