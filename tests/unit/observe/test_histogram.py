from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint.errors import InternalError
from zeropoint.observe import histogram
from zeropoint.observe.histogram import Observer
from zeropoint.types import Histogram

values = st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=12)


def equal(one: Histogram, other: Histogram) -> bool:
    rest = [(h.low, h.width, h.seen_low, h.seen_high, h.count) for h in (one, other)]
    return torch.equal(one.counts, other.counts) and rest[0] == rest[1]


def seen(*batches: list[float], bins: int = 64) -> Observer:
    observer = Observer(bins=bins)
    for batch in batches:
        observer.update(torch.tensor(batch).view(-1, 1))
    return observer


@settings(deadline=None, max_examples=200)
@given(batches=st.lists(values, min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_splitting_and_merging_in_any_order_gives_exactly_the_histogram_of_all_values(
    batches: list[list[float]], order: object
) -> None:
    whole = seen([x for batch in batches for x in batch]).result()
    assert equal(seen(*batches).result(), whole)
    parts = [seen(batch) for batch in batches]
    order.shuffle(parts)  # type: ignore[attr-defined]
    first, *others = parts
    for other in others:
        first.merge(other)
    assert equal(first.result(), whole)


@settings(deadline=None, max_examples=200)
@given(batch=values)
def test_every_value_is_counted_in_the_bin_that_covers_it(batch: list[float]) -> None:
    h = seen(batch).result()
    expected = np.zeros(64)
    for x in batch:
        expected[32 + math.floor(Fraction(x) / Fraction(h.width))] += 1  # exact: 2^52 - 1 is no float32
    assert h.counts.tolist() == expected.tolist()
    assert h.low <= h.seen_low == min(0.0, *batch)
    assert h.low + 64 * h.width > h.seen_high == max(0.0, *batch)
    assert h.counts.dtype == torch.float64


@settings(deadline=None)
@given(batch=values)
def test_the_larger_side_uses_at_least_half_of_its_bins(batch: list[float]) -> None:
    h = seen(batch).result()
    largest = max(-h.seen_low, h.seen_high)
    assert largest == 0 or 16 <= largest / h.width < 32


def test_doubling_adds_up_pairs_around_zero() -> None:
    observer = seen([-1.9, -0.9, -0.1, 0.0, 0.1, 0.6, 1.1, 1.9], bins=8)
    assert observer.result().counts.tolist() == [1, 0, 1, 1, 2, 1, 1, 1]
    observer.update(torch.tensor([[3.5]]))
    assert observer.result().counts.tolist() == [0, 0, 1, 2, 3, 2, 0, 1]
    assert (observer.result().low, observer.result().width) == (-4.0, 1.0)


def test_zeros_alone_have_a_width_and_give_way_to_the_first_value() -> None:
    observer = seen([0.0, 0.0])
    assert (observer.result().seen_low, observer.result().seen_high, observer.result().counts.sum()) == (0.0, 0.0, 2.0)
    assert observer.result().width > 0
    observer.update(torch.tensor([[2.0**-100]]))
    h_bin = 16  # [2^-99 / 2, ...) is the middle of the 32 bins above 0
    assert observer.result().counts[32:].tolist() == [2.0] + [0.0] * (h_bin - 1) + [1.0] + [0.0] * (31 - h_bin)


def test_powers_of_two_fall_into_the_bin_that_begins_with_them() -> None:
    h = seen([4.0, -4.0, 2.0], bins=8).result()
    assert (h.low, h.width) == (-8.0, 2.0)
    assert h.counts.tolist() == [0, 0, 1, 0, 0, 1, 1, 0]


def test_bins_is_the_length_and_decides_the_width() -> None:
    for bins in (4, 256, 8192):
        h = seen([0.7], bins=bins).result()
        assert (len(h.counts), h.width) == (bins, 2 / bins)
    assert len(Observer().result().counts) == 8192


@pytest.mark.parametrize("bins", [0, 2, 3, 100])
def test_bins_that_could_not_be_paired_are_refused(bins: int) -> None:
    with pytest.raises(InternalError, match=rf"power of two .* not {bins}"):
        Observer(bins=bins)


def test_histograms_of_different_length_do_not_merge() -> None:
    with pytest.raises(InternalError, match="8 bins does not merge with one of 16"):
        Observer(bins=8).merge(Observer(bins=16))


def test_a_large_batch_is_counted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = Observer(), Observer()
    whole.update(x)
    monkeypatch.setattr(histogram, "_CHUNK", 37)
    parts.update(x)
    assert equal(whole.result(), parts.result())
