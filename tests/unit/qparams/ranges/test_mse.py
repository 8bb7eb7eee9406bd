from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference import ranges
from zeropoint.observe.histogram import Observer
from zeropoint.qparams.affine import fake_quantize
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import split, split_columns
from zeropoint.qparams.ranges import minmax, mse
from zeropoint.types import Granularity, Scheme


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed) ** 3


def bfloat16(scale: float) -> float:
    return torch.tensor(scale).bfloat16().double().item()


def wide(bits: int, *, symmetric: bool) -> float:
    return (2**bits - 1) / 2 / (2 ** (bits - 1) - 1) if symmetric else 1.0


def error(weight: Tensor, scheme: Scheme, found: tuple[Tensor, Tensor], importance: Tensor, p: float = 2) -> Tensor:
    """Weighted error of each group, float64 (rows, groups)."""
    back = fake_quantize(weight, from_range(*found, scheme), scheme)
    each = (back.double() - weight).abs() ** p * importance
    return split(each, scheme).values.sum(-1)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 70),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    narrow=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    group_size=st.integers(1, 40),
    power=st.sampled_from([-100, -20, 0, 60]),
    p=st.sampled_from([2.0, 1.0, 2.4]),
    seed=st.integers(0, 99),
)
def test_the_weighted_error_of_no_group_is_above_that_of_min_max(
    *,
    rows: int,
    cols: int,
    bits: int,
    symmetric: bool,
    narrow: bool,
    granularity: Granularity,
    group_size: int,
    power: int,
    p: float,
    seed: int,
) -> None:
    scheme = Scheme(bits, symmetric, granularity, group_size, narrow)
    weight = heavy(rows, cols, seed=seed)
    importance = heavy(cols, seed=seed + 1).square()
    weight[0, 0] *= 30
    scaled = weight * 2.0**power
    given_ = split_columns(importance, rows, scheme)
    found = mse.from_values(split(scaled, scheme), scheme, mse.Options(grid=20, p=p), given_)
    unit = (found[0] * 2.0**-power, found[1] * 2.0**-power)
    plain = minmax.from_values(split(weight, scheme), scheme, minmax.Options())
    here, there = (error(weight, scheme, ends, importance, p) for ends in (unit, plain))
    assert bool((here <= there * (1 + 1e-5)).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("scale_dtype", "stored"), [("bfloat16", bfloat16), ("float32", float)])
def test_symmetric_search_is_the_literal_one(
    bits: int, weighted: bool, scale_dtype: str, stored: Callable[[float], float]
) -> None:
    scheme = Scheme(bits, True, "group", 12, scale_dtype=scale_dtype)  # type: ignore[arg-type]
    weight = heavy(3, 30)
    importance = heavy(30, seed=1).square() if weighted else torch.ones(30)
    options = mse.Options(grid=40, maxshrink=0.7)
    found = mse.from_values(split(weight, scheme), scheme, options, split_columns(importance, 3, scheme))
    got = error(weight, scheme, found, importance)
    top = wide(bits, symmetric=True)
    above = math.ceil((top - 1) * 40)
    fractions = [1.0, *(top - i * (top - 1) / above for i in range(above)), *(1 - i / 40 for i in range(29))]
    for row in range(3):
        for group in range(3):
            cut = slice(group * 12, (group + 1) * 12)
            values, weights = weight[row, cut].double().numpy(), importance[cut].double().numpy()
            *_, best = ranges.mse(values, weights, bits, symmetric=True, fractions=fractions, stored=stored)
            assert got[row, group].item() == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 4])
def test_asymmetric_search_is_at_most_the_literal_one_of_both_ends_together(bits: int) -> None:
    scheme, weight = Scheme(bits, False, "group", 15), heavy(3, 30) + 0.5
    importance = heavy(30, seed=1).square()
    found = mse.from_values(
        split(weight, scheme), scheme, mse.Options(grid=40, maxshrink=0.7), split_columns(importance, 3, scheme)
    )
    got = error(weight, scheme, found, importance)
    for row in range(3):
        for group in range(2):
            cut = slice(group * 15, (group + 1) * 15)
            values, weights = weight[row, cut].double().numpy(), importance[cut].double().numpy()
            fractions = [1 - i / 40 for i in range(29)]
            *_, best = ranges.mse(values, weights, bits, symmetric=False, fractions=fractions, stored=bfloat16)
            assert got[row, group].item() <= best * (1 + 1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_much_finer_search_finds_little_more(bits: int, symmetric: bool) -> None:
    scheme = Scheme(bits, symmetric, "group", 64)
    weight, importance = normal(16, 64), normal(64, seed=1).square()
    given_ = split_columns(importance, 16, scheme)
    total = [
        float(error(weight, scheme, mse.from_values(split(weight, scheme), scheme, options, given_), importance).sum())
        for options in (mse.Options(), mse.Options(grid=2000))
    ]
    assert total[1] * (1 - 1e-6) <= total[0] <= 1.03 * total[1]


def test_each_option_changes_what_it_says() -> None:
    scheme, weight = Scheme(2, False, "group", 64), heavy(16, 64)

    def reach(options: mse.Options) -> Tensor:
        low, high = mse.from_values(split(weight, scheme), scheme, options)
        seen_low, seen_high = minmax.from_values(split(weight, scheme), scheme, minmax.Options())
        return torch.maximum(low / seen_low, high / seen_high)

    assert bool((reach(mse.Options(maxshrink=0)) == 1).all())
    assert bool((reach(mse.Options(maxshrink=0.3)) >= 0.7 - 1e-6).all())
    assert bool((reach(mse.Options(maxshrink=0.9)) < 0.7).any())
    coarse = reach(mse.Options(grid=4))
    assert bool(((coarse * 4).round() / 4 - coarse).abs().max() < 1e-6)
    assert reach(mse.Options(p=1)).mean() < reach(mse.Options(p=2)).mean() < reach(mse.Options(p=8)).mean()


def test_a_positive_maximum_can_be_restored_exactly_when_symmetric() -> None:
    # S = 7 / 7.5 sends 7 to code 7.5; S = 1 restores all of these
    weight, scheme = torch.tensor([[7.0, 1.0, -3.0, 5.0]]), Scheme(4, True, "channel")
    found = mse.from_values(split(weight, scheme), scheme, mse.Options())
    assert torch.equal(fake_quantize(weight, from_range(*found, scheme), scheme), weight)


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_without_importance_keep_min_max_and_an_empty_column_is_clipped_first(symmetric: bool) -> None:
    scheme, weight = Scheme(3, symmetric, "group", 32), normal(2, 64)
    weight[:, 0] = 100.0
    importance = torch.ones(2, 32)
    importance[0, 0], importance[1] = 0.0, 0.0
    low, high = mse.from_values(split(weight, scheme), scheme, mse.Options(maxshrink=0.95), importance)
    seen_low, seen_high = minmax.from_values(split(weight, scheme), scheme, minmax.Options())
    assert torch.equal(low[:, 1], seen_low[:, 1])
    assert torch.equal(high[:, 1], seen_high[:, 1])
    assert bool((high[:, 0] < 20).all())


@pytest.mark.parametrize("power", [-90, 90])
@pytest.mark.parametrize("symmetric", [True, False])
def test_squares_that_float32_could_not_hold_change_nothing(power: int, symmetric: bool) -> None:
    scheme, weight = Scheme(3, symmetric, "group", 16), normal(4, 32)
    low, high = mse.from_values(split(weight, scheme), scheme, mse.Options())
    far = mse.from_values(split(weight * 2.0**power, scheme), scheme, mse.Options())
    assert torch.equal(far[0], low * 2.0**power)
    assert torch.equal(far[1], high * 2.0**power)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_each_end_is_cut_alone_when_only_one_of_them_is_long(sign: float) -> None:
    weight = sign * torch.cat([torch.tensor([-40.0]), torch.arange(16.0)])[None]  # 16 values for 16 codes, and one more
    importance = torch.cat([torch.zeros(1), torch.ones(16)])[None]
    scheme = Scheme(4, False, "channel")
    low, high = mse.from_values(split(weight, scheme), scheme, mse.Options(grid=100, maxshrink=0.99), importance)
    short, long = (low, high) if sign > 0 else (-high, -low)
    assert short.item() > -3
    assert long.item() > 12


def test_only_the_ratios_of_the_importance_count() -> None:
    scheme, weight, importance = Scheme(3, True, "group", 8), heavy(4, 16), heavy(2, 8, seed=1).square()
    one = mse.from_values(split(weight, scheme), scheme, mse.Options(), importance)
    for factor in (2.0**-100, 2.0**100):
        other = mse.from_values(split(weight, scheme), scheme, mse.Options(), importance * factor)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_rows_do_not_depend_on_the_rows_they_are_searched_with(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy(11, 24)
    for symmetric in (True, False):
        scheme = Scheme(4, symmetric, "group", 8)
        whole = mse.from_values(split(weight, scheme), scheme, mse.Options())
        monkeypatch.setattr(mse, "_CHUNK", 72)  # three rows
        parts = mse.from_values(split(weight, scheme), scheme, mse.Options())
        monkeypatch.undo()
        assert torch.equal(whole[0], parts[0])
        assert torch.equal(whole[1], parts[1])


def test_half_a_step_more_than_the_dtype_holds_is_not_tried() -> None:
    largest = 7.5 * 65504.0  # S = 65504 is float16's last number
    weight, scheme = torch.tensor([[largest, 1.0]]), Scheme(4, True, "channel", scale_dtype="float16")
    _, high = mse.from_values(split(weight, scheme), scheme, mse.Options(maxshrink=0))
    assert high.item() == largest


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 4.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_of_a_histogram_it_is_the_literal_search_over_the_centres(bits: int, shift: float, symmetric: bool) -> None:
    scheme, values = Scheme(bits, symmetric, "tensor"), heavy(50, 20) + shift
    observer = Observer(bins=64)
    observer.update(values)
    h = observer.result()
    centres = h.low + (np.arange(64) + 0.5) * h.width
    weights = h.counts.numpy()
    low, high = mse.from_histogram(h, scheme, mse.Options())
    top = wide(bits, symmetric=symmetric)
    above = math.ceil((top - 1) * 16)
    fractions = [1.0, *(top - i * (top - 1) / above for i in range(above)), *(2 ** (-i / 16) for i in range(100))]
    expected = min(
        ranges.error(centres, weights, h.seen_low * f, h.seen_high * f, bits, symmetric=symmetric, p=2, stored=bfloat16)
        for f in fractions
    )
    got = ranges.error(centres, weights, low, high, bits, symmetric=symmetric, p=2, stored=bfloat16)
    assert got <= expected * (1 + 1e-4)
    assert not symmetric or got >= expected * (1 - 1e-4)


def test_a_histogram_gives_about_the_error_of_the_values() -> None:
    values, scheme = heavy(100, 100), Scheme(4, True, "tensor")
    observer = Observer()
    observer.update(values)
    low, high = mse.from_histogram(observer.result(), scheme, mse.Options())
    exact = mse.from_values(split(values, scheme), scheme, mse.Options(grid=400, maxshrink=0.98))
    ones = torch.ones(100)
    got = error(values, scheme, (torch.tensor([[low]]), torch.tensor([[high]])), ones).item()
    assert got <= 1.02 * error(values, scheme, exact, ones).item()
