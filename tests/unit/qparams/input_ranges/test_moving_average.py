from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import ranges
from zeropoint.qparams.input_ranges import moving_average
from zeropoint.types import BatchRanges, InputScheme

SCHEME = InputScheme(dynamic=False)


@given(highs=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40), c=st.sampled_from([0.01, 0.3, 1.0]))
def test_the_ends_follow_the_batches_as_the_formula_says(highs: list[float], c: float) -> None:
    high = torch.tensor(highs)
    stats = BatchRanges(-2 * high, high, torch.ones(len(highs), dtype=torch.float64), len(highs))
    found = moving_average.from_stats({"moving_average": stats}, SCHEME, moving_average.Options(c=c))
    expected = ranges.moving_average(high.double().tolist(), c)
    assert (found.low, found.high) == (pytest.approx(-2 * expected), pytest.approx(expected))


def test_batches_without_tokens_are_passed_over() -> None:
    stats = BatchRanges(torch.zeros(3), torch.tensor([4.0, 0.0, 2.0]), torch.tensor([5.0, 0.0, 1.0]), 6)
    found = moving_average.from_stats({"moving_average": stats}, SCHEME, moving_average.Options(c=0.5))
    assert (found.low, found.high) == (0.0, 3.0)
