from __future__ import annotations

import torch

from zeropoint.qparams.grouping import split
from zeropoint.qparams.ranges import minmax
from zeropoint.types import Histogram, Scheme


def test_the_range_of_each_group_is_its_extremes_and_zero() -> None:
    weight = torch.tensor([[-1.0, 2.0, 3.0, 4.0, -5.0], [0.0, 0.0, -6.0, -7.0, 8.0]])
    low, high = minmax.from_values(split(weight, Scheme(group_size=2)), Scheme(group_size=2), minmax.Options())
    assert low.tolist() == [[-1.0, 0.0, -5.0], [0.0, -7.0, 0.0]]
    assert high.tolist() == [[2.0, 4.0, 0.0], [0.0, 0.0, 8.0]]


def test_the_range_of_a_histogram_is_what_was_seen_not_its_bins() -> None:
    histogram = Histogram(
        torch.ones(4, dtype=torch.float64), low=-2.0, width=1.0, seen_low=-1.25, seen_high=1.5, count=4
    )
    assert minmax.from_histogram(histogram, Scheme(), minmax.Options()) == (-1.25, 1.5)
