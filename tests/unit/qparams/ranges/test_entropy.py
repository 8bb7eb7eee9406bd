from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reference import ranges
from zeropoint.errors import SchemeError
from zeropoint.observe.histogram import Observer
from zeropoint.qparams.grouping import split
from zeropoint.qparams.ranges import entropy
from zeropoint.types import Histogram, Scheme


def heavy(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) ** 3


def of_magnitudes(counts: np.ndarray) -> Histogram:
    """A histogram of positive values with these counts in bins of width 1."""
    bins = len(counts)
    both = torch.cat([torch.zeros(bins, dtype=torch.float64), torch.from_numpy(counts)])
    return Histogram(both, low=-float(bins), width=1.0, seen_low=0.0, seen_high=float(bins), count=int(counts.sum()))


@example(bits=4, bins=64, share=0.2, seed=256)  # a tie, but for the rounding of sums
@settings(deadline=None, max_examples=80)
@given(
    bits=st.integers(2, 5), bins=st.integers(64, 140), share=st.sampled_from([1.0, 0.7, 0.2]), seed=st.integers(0, 999)
)
def test_the_upper_end_is_that_of_the_published_algorithm(bits: int, bins: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = np.floor(random.exponential(size=bins) * 1000 * np.exp(-np.arange(bins) / random.uniform(5, 60)))
    counts[random.random(bins) > share] = 0  # empty bins are what makes KL infinite
    counts[-1] = random.integers(1, 10)
    _, last = ranges.entropy(counts, levels=2 ** (bits - 1))
    assert entropy.from_histogram(of_magnitudes(counts), Scheme(bits, True), entropy.Options()) == (0.0, float(last))


@settings(deadline=None, max_examples=80)
@given(bits=st.integers(2, 5), bins=st.integers(64, 140), below=st.integers(0, 60), seed=st.integers(0, 999))
def test_both_ends_of_an_asymmetric_range_are_those_of_the_published_algorithm(
    bits: int, bins: int, below: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    distance = np.abs(np.arange(bins) - below + 0.5)
    counts = np.floor(random.exponential(size=bins) * 1000 * np.exp(-distance / random.uniform(5, 60)))
    counts[0], counts[-1] = 3, 2
    histogram = Histogram(
        torch.from_numpy(counts),
        low=-float(below),
        width=1.0,
        seen_low=-float(below),
        seen_high=float(bins - below),
        count=1,
    )
    first, last = ranges.entropy(counts, levels=2**bits, below=below)
    expected = (float(first - below), float(last - below))
    assert entropy.from_histogram(histogram, Scheme(bits, False), entropy.Options()) == expected


def test_the_example_of_the_slides_eight_bins_in_two_levels() -> None:
    counts = np.array([1.0, 0, 2, 3, 5, 3, 1, 7])
    assert ranges.merged(counts, 2).tolist() == [2, 0, 2, 2, 4, 4, 4, 4]
    # (1 ln 1/2 + 2 ln 1 + 3 ln 3/2 + 5 ln 5/4 + 3 ln 3/4 + 1 ln 1/4 + 7 ln 7/4) / 22
    assert ranges.kl(counts, ranges.merged(counts, 2)) == pytest.approx(0.15031526, rel=1e-6)
    # without the last bin, whose seven go to the one before it, KL is 0.1136; every other window has more than 0.148
    assert entropy.from_histogram(of_magnitudes(counts), Scheme(2, True), entropy.Options()) == (0.0, 7.0)


def test_it_clips_a_heavy_tail_and_keeps_a_uniform_distribution() -> None:
    scheme, options = Scheme(8, True, "tensor"), entropy.Options()
    tail, flat = Observer(), Observer()
    values = heavy(400, 500)
    tail.update(values)
    flat.update(torch.rand(400, 500, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert entropy.from_histogram(tail.result(), scheme, options)[1] < 0.7 * values.abs().max().item()
    assert entropy.from_histogram(flat.result(), scheme, options)[1] > 0.98


@pytest.mark.parametrize(
    ("bits", "symmetric", "levels"), [(8, True, 128), (8, False, 256), (4, True, 8), (4, False, 16)]
)
def test_as_many_bins_as_levels_are_refused_because_nothing_could_be_chosen(
    bits: int, symmetric: bool, levels: int
) -> None:
    scheme = Scheme(bits, symmetric)
    counts = np.ones(2 * levels - 1)
    with pytest.raises(SchemeError, match=rf"{levels} levels, .* {2 * levels - 1} bins .* at least {2 * levels}"):
        entropy.from_histogram(of_magnitudes(counts), scheme, entropy.Options())
    entropy.from_histogram(of_magnitudes(np.ones(2 * levels)), scheme, entropy.Options())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bins", [300, 500])
def test_groups_of_a_weight_go_through_a_histogram_of_their_own(symmetric: bool, bins: int) -> None:
    scheme, weight = Scheme(4, symmetric, "group", 600), heavy(2, 1000)
    low, high = entropy.from_values(split(weight, scheme), scheme, entropy.Options(bins=bins))
    for row in range(2):
        for group in range(2):
            values = weight[row, group * 600 : (group + 1) * 600].double().numpy()
            reach = np.abs(values).max()
            start, stop = (0.0, reach) if symmetric else (min(values.min(), 0.0), max(values.max(), 0.0))
            width = np.float32((stop - start) / bins)
            counts, _ = np.histogram(np.abs(values) if symmetric else values, bins=bins, range=(start, stop))
            first, last = ranges.entropy(counts.astype(np.float64), 8 if symmetric else 16, below=int(-start / width))
            assert high[row, group].item() == pytest.approx(min(start + last * width, values.max()), rel=1e-5)
            expected = -(last * width) if symmetric else start + first * width
            assert low[row, group].item() == pytest.approx(max(expected, values.min()), rel=1e-5)


def test_a_short_group_does_not_count_its_filling() -> None:
    scheme, weight = Scheme(4, True, "group", 400), heavy(1, 600)
    short = weight[:, 400:].clone()
    whole = entropy.from_values(split(weight, scheme), scheme, entropy.Options(bins=100))
    alone = entropy.from_values(split(short, scheme), scheme, entropy.Options(bins=100))
    assert whole[1][0, 1] == alone[1][0, 0]


def test_groups_do_not_depend_on_the_rows_they_are_searched_with(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, weight = Scheme(3, False, "group", 50), heavy(7, 100)
    whole = entropy.from_values(split(weight, scheme), scheme, entropy.Options())
    monkeypatch.setattr(entropy, "_ELEMENTS", 1)
    parts = entropy.from_values(split(weight, scheme), scheme, entropy.Options())
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
