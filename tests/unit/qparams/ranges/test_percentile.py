from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import ranges
from zeropoint.observe.histogram import Observer
from zeropoint.qparams.grouping import split
from zeropoint.qparams.ranges import percentile
from zeropoint.types import Histogram, Scheme


def heavy(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) ** 3


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 50),
    group_size=st.integers(1, 30),
    symmetric=st.booleans(),
    percent=st.floats(0.1, 100),
    seed=st.integers(0, 99),
)
def test_ranges_are_numpys_percentiles_of_each_group_the_short_last_one_too(
    *, rows: int, cols: int, group_size: int, symmetric: bool, percent: float, seed: int
) -> None:
    weight, scheme = heavy(rows, cols, seed=seed), Scheme(4, symmetric, "group", group_size)
    low, high = percentile.from_values(split(weight, scheme), scheme, percentile.Options(percent=percent))
    for row in range(rows):
        for group in range(scheme.groups(cols)):
            values = weight[row, group * group_size : (group + 1) * group_size].double().numpy()
            expected = ranges.percentile(values, percent, symmetric=symmetric)
            assert (low[row, group].item(), high[row, group].item()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_hundred_percent_is_min_max() -> None:
    weight, options = heavy(3, 20), percentile.Options(percent=100)
    for symmetric in (True, False):
        scheme = Scheme(4, symmetric, "channel")
        low, high = percentile.from_values(split(weight, scheme), scheme, options)
        assert torch.equal(torch.maximum(-low, high), weight.abs().amax(1, keepdim=True)) or not symmetric
        assert symmetric or torch.equal(high, weight.amax(1, keepdim=True).clamp(min=0))


def test_a_short_group_does_not_count_its_filling() -> None:
    scheme = Scheme(4, True, "group", 8)
    weight = torch.cat([torch.ones(1, 8), torch.tensor([[3.0, 3.0]])], dim=1)  # two of the last eight
    _, high = percentile.from_values(split(weight, scheme), scheme, percentile.Options(percent=50))
    assert high.tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("shift", [0.0, 3.0, -30.0, 200.0])
def test_the_histogram_gives_the_same_to_a_bin(symmetric: bool, percent: float, shift: float) -> None:
    values = heavy(200, 100) + shift
    observer = Observer()
    observer.update(values)
    histogram = observer.result()
    low, high = percentile.from_histogram(
        histogram, Scheme(8, symmetric, "tensor"), percentile.Options(percent=percent)
    )
    ordered = (values.abs() if symmetric else values).double().flatten().sort().values.numpy()

    def lies_at(x: float, share: float) -> bool:
        """Whether x is within a bin of the values ranked around `share`; in the tail these are far apart."""
        rank = share * len(ordered)
        around = ordered[max(int(rank) - 2, 0)], ordered[min(int(rank) + 1, len(ordered) - 1)]
        return bool(around[0] - histogram.width <= x <= around[1] + histogram.width)

    if symmetric:
        assert lies_at(max(-low, high), percent / 100)
    else:
        assert low == 0 or lies_at(low, (1 - percent / 100) / 2)
        assert high == 0 or lies_at(high, (1 + percent / 100) / 2)


def test_the_share_inside_is_percent_by_hand() -> None:
    # ten values in each of ten bins from 0 to 10, none below: 95 percent of |x| end at 9.5, both tails leave 0.25 each
    counts = torch.cat([torch.zeros(10), torch.full((10,), 10.0)]).double()
    histogram = Histogram(counts, low=-10.0, width=1.0, seen_low=0.0, seen_high=10.0, count=100)
    options = percentile.Options(percent=95)
    assert percentile.from_histogram(histogram, Scheme(8, True), options) == pytest.approx((0.0, 9.5))
    assert percentile.from_histogram(histogram, Scheme(8, False), options) == pytest.approx((0.0, 9.75))


def test_bins_need_not_be_centred_on_zero() -> None:
    histogram = Histogram(torch.full((4,), 5.0).double(), low=-0.5, width=1.0, seen_low=-0.5, seen_high=3.5, count=20)
    # half a bin lies below 0: |x| <= r holds 10 r values up to 0.5, then 5 more for each unit
    low, high = percentile.from_histogram(histogram, Scheme(8, True), percentile.Options(percent=50))
    assert (low, high) == pytest.approx((-0.5, 1.5))
