import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.observe.tokens import Observer, quantile


@given(st.sampled_from([1e-30, 1.0, 1e30]), st.sampled_from([0.01, 0.5, 0.99]), st.integers(0, 99))
def test_quantiles_are_those_of_the_tokens_largest_magnitudes_to_a_thirtysecond(
    size: float, share: float, seed: int
) -> None:
    x = torch.randn(999, 4, generator=torch.Generator().manual_seed(seed)).pow(3) * size
    one = Observer()
    one.update(x)
    exact = x.abs().amax(dim=1).sort().values[math.ceil(share * 999) - 1]
    assert quantile(one.result(), share) == pytest.approx(float(exact), rel=1 / 31)
    assert one.result().largest == float(x.abs().max())


def test_of_nothing_and_of_zeros_the_quantile_is_zero() -> None:
    one = Observer()
    assert quantile(one.result(), 0.5) == 0
    one.update(torch.zeros(3, 2))
    assert quantile(one.result(), 0.5) == 0
