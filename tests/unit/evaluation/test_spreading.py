from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference import spreading as reference
from zeropoint import _native
from zeropoint.evaluation.layers import weight_error
from zeropoint.evaluation.results import Spreading
from zeropoint.evaluation.spreading import HALF, LOUD, InputSpreading, bars, loud, spreading
from zeropoint.qparams.affine import quantize, restore
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.grouping import expand
from zeropoint.types import QTensor, Scheme

SCHEMES = {
    "groups": Scheme(bits=4, symmetric=True, granularity="group", group_size=16),
    "a shorter last group": Scheme(bits=3, symmetric=False, granularity="group", group_size=7),
    "channel": Scheme(bits=8, symmetric=True, granularity="channel"),
    "tensor": Scheme(bits=2, symmetric=False, granularity="tensor"),
    "two levels": Scheme(
        bits=4, symmetric=False, granularity="group", group_size=8, scale_dtype="float16", super_size=32
    ),
}


def heavy(rows: int, cols: int, seed: int, size: float = 1.0) -> Tensor:
    values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return values.pow(3) * size


def rounded(weight: Tensor, scheme: Scheme, rule: str = "mse") -> QTensor:
    qparams = choose_qparams(weight, scheme, rule)
    return QTensor(quantize(weight, qparams, scheme), qparams, scheme)


def spread(weight: Tensor, q: QTensor) -> Spreading:
    restored = restore(q)
    return spreading(weight, restored, q, weight_error(weight, restored), InputSpreading())


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.02, 1e-41, 1e-33, 1e15]),
)
def test_error_is_split_as_by_definition(name: str, rows: int, blocks: int, seed: int, size: float) -> None:
    scheme, cols = SCHEMES[name], 32 * blocks
    weight = heavy(rows, cols, seed, 0.02 if scheme.super_size else size)  # float16 holds no others
    q = rounded(weight, scheme)
    restored, zero_point = restore(q), q.qparams.zero_point
    scale = expand(q.qparams.scale, rows, cols, scheme)
    zero = torch.zeros(rows, cols) if zero_point is None else expand(zero_point.float(), rows, cols, scheme)
    found = spread(weight, q)
    expected = reference.split_error(
        *(each.contiguous().numpy() for each in (weight, restored, scale, zero)), scheme.q_min, scheme.q_max
    )
    assert (found.clipped_error, found.rounded_error) == pytest.approx(expected, rel=1e-12, abs=1e-13 * sum(expected))
    sqnr_db = weight_error(weight, restored).sqnr_db
    if sqnr_db is not None:
        assert found.clipped_error + found.rounded_error == pytest.approx(10 ** (-sqnr_db / 10), rel=1e-9)


def test_a_narrow_grid_clips_and_a_wide_one_rounds() -> None:
    weight = torch.ones(4, 64)
    weight[0, 0] = 100.0
    wide = spread(weight, q := rounded(weight, SCHEMES["channel"], "minmax"))
    assert wide.clipped_error == 0.0
    narrow = QTensor(q.codes.clamp(-1, 1), q.qparams, Scheme(bits=2, symmetric=True, granularity="channel"))
    split = spread(weight, narrow)
    assert split.clipped_error > 0.9
    assert split.rounded_error < 1e-3


@pytest.mark.parametrize("name", SCHEMES)
def test_codes_are_counted_from_the_smallest(name: str) -> None:
    scheme = SCHEMES[name]
    q = rounded(weight := heavy(6, 64, 3), scheme)
    found = spread(weight, q)
    codes = q.codes.flatten().tolist()
    assert found.code_low == scheme.q_min
    assert found.codes == tuple(codes.count(code) for code in range(scheme.q_min, scheme.q_max + 1))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=80),
    size=st.sampled_from([1.0, 2.0**-140, 1e-3, 1e8]),
)
def test_every_value_is_in_the_bar_whose_ends_it_lies_between(values: list[float], size: float) -> None:
    tensor = torch.tensor(values) * size
    found = bars(tensor)
    assert [bar.count for bar in found] == reference.counted(tensor.tolist(), found)
    assert sum(bar.count for bar in found) == len(values)
    assert all(one.high == other.low for one, other in pairwise(found))
    assert found[0].count
    assert found[-1].count
    assert len(found) <= 2 * HALF + 2


@settings(max_examples=30, deadline=None)
@given(count=st.integers(4096, 20_000), seed=st.integers(0, 1000))
def test_bars_are_equal_but_for_the_outermost_and_show_the_bulk(count: int, seed: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    values[seed] = 1000.0
    found = bars(values)
    assert found[-1].low < 10
    assert found[-1].high > 1000
    inner = {bar.high - bar.low for bar in found[1:-1]}
    assert len(inner) == 1
    assert sum(bar.count > count / 1000 for bar in found) > 12
    assert any(bar.low == 0 for bar in found)


def test_bars_of_zeros_and_of_nothing() -> None:
    (bar,) = bars(torch.zeros(3, 5))
    assert (bar.low <= 0 < bar.high, bar.count) == (True, 15)
    assert bars(torch.zeros(0, 0)) == ()


def test_the_loudest_channels_come_first_and_are_measured_by_the_median() -> None:
    squares = np.ones(40)
    squares[[7, 30, 31]] = 100.0, 2500.0, 100.0
    found = loud(squares)
    assert [(one.index, one.ratio) for one in found[:4]] == [(30, 50.0), (7, 10.0), (31, 10.0), (0, 1.0)]
    assert len(found) == LOUD
    assert loud(np.array([0.0, 0.0, 4.0])) == ()
    assert loud(None) == ()


def test_a_weight_of_zeros_loses_nothing() -> None:
    weight = torch.zeros(3, 64)
    q = rounded(weight, SCHEMES["groups"])
    found = spread(weight, q)
    assert (found.clipped_error, found.rounded_error) == (0.0, 0.0)


def test_the_sums_refuse_what_does_not_fit() -> None:
    weight, scale = np.zeros((2, 9), np.float32), np.ones((2, 3), np.float32)
    _native.clipped(weight, weight, scale, None, 4, -8, 7)
    for changed in (
        {"restored": np.zeros((2, 8), np.float32)},
        {"group": 5},
        {"group": 0},
        {"zero": scale[:, :2].copy()},
    ):
        given_ = {
            "weight": weight,
            "restored": weight,
            "scale": scale,
            "zero": None,
            "group": 4,
            "q_min": -8,
            "q_max": 7,
        }
        with pytest.raises(ValueError, match="must be"):
            _native.clipped(**{**given_, **changed})  # type: ignore[arg-type]
    for counts, per_width in ((3, 1.0), (0, 1.0), (4, 0.0)):
        with pytest.raises(ValueError, match=r"must be|is positive"):
            _native.count_bars(np.zeros(3, np.float32), per_width, np.zeros(counts, np.int64))
    with pytest.raises(ValueError, match="must be 256"):
        _native.count_codes(np.zeros((2, 2), np.int8), np.zeros(16, np.int64))
