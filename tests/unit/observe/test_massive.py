import math

import pytest
import torch

from zeropoint.errors import NonFiniteError
from zeropoint.observe.massive import MassiveActivations


def windows(count: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(count, 7, 20, generator=torch.Generator().manual_seed(seed))
    x[:, 0, 13] = -2000.0 - torch.arange(count)
    x[0, 3, 5] = 900.0
    return x


def test_a_place_comes_once_with_its_largest_value_and_the_ratio_to_the_median() -> None:
    one = MassiveActivations()
    for part in windows(10).split(3):
        one.update(part)
    first, second, third = one.largest(3)
    assert (first.position, first.channel, first.value) == (0, 13, -2009.0)
    assert (second.position, second.channel, second.value) == (3, 5, 900.0)
    assert abs(third.value) < 10
    median = float(windows(10).abs().median())
    assert one.median() == pytest.approx(median, rel=1 / 31)
    assert first.ratio == pytest.approx(2009 / one.median())
    ratio = one.first_token_ratio()
    assert ratio is not None
    assert ratio == pytest.approx(2004.5 / float(windows(10).abs().amax(-1).mean(0)[1:].mean()), rel=1e-5)


def test_neither_batches_nor_the_order_of_merging_matter() -> None:
    whole = MassiveActivations()
    whole.update(windows(12))
    parts = [MassiveActivations() for _ in range(3)]
    for part, x in zip(parts, windows(12).split(4), strict=True):
        part.update(x)
    merged = MassiveActivations()
    for part in reversed(parts):
        merged.merge(part)
    assert merged.largest(64) == whole.largest(64)
    assert len(whole.largest(64)) == 64
    assert merged.first_token_ratio() == pytest.approx(whole.first_token_ratio())


def test_zeros_nothing_one_token_and_nan() -> None:
    one = MassiveActivations()
    assert (one.largest(3), one.first_token_ratio(), one.median()) == ((), None, 0.0)
    one.update(torch.zeros(2, 1, 3))
    assert one.first_token_ratio() is None
    assert one.largest(1)[0].ratio == 0
    with pytest.raises(NonFiniteError):
        one.update(torch.full((1, 1, 3), math.nan))
