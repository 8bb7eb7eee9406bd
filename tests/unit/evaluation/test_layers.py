from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import layer_error
from zeropoint.errors import InternalError, NonFiniteError
from zeropoint.evaluation import layers
from zeropoint.evaluation.layers import outlier_ratio, weight_error


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    cols=st.integers(1, 40),
    noise=st.sampled_from([1e-4, 0.1, 3.0]),
    size=st.sampled_from([1e-20, 1.0, 1e15]),
    seed=st.integers(0, 99),
)
def test_errors_equal_their_definitions(rows: int, cols: int, noise: float, size: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(rows, cols, generator=random)
    restored = weight + size * noise * torch.randn(rows, cols, generator=random)
    got = weight_error(weight, restored)
    w, r = weight.double().numpy(), restored.double().numpy()
    assert got.sqnr_db == pytest.approx(layer_error.sqnr_db(w, r), abs=1e-9)
    assert got.cosine == pytest.approx(layer_error.cosine(w, r), abs=1e-12)
    assert got.max_abs == np.abs(r - w).max()
    assert got.output is None


def test_the_output_error_is_what_the_outputs_lose() -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 24, generator=random) * torch.logspace(-1, 1, 24)
    weight = torch.randn(8, 24, generator=random)
    restored = weight + 0.1 * torch.randn(8, 24, generator=random)
    got = weight_error(weight, restored, inputs.T @ inputs / 200).output
    expected = layer_error.output_error(*(t.double().numpy() for t in (weight, restored, inputs)))
    assert got == pytest.approx(expected, rel=1e-4)


def test_a_tensor_of_many_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    weight, restored = torch.randn(2, 30, 50, generator=random)
    whole, outlier = weight_error(weight, restored), outlier_ratio(weight)
    monkeypatch.setattr(layers, "CHUNK_VALUES", 7)
    parts = weight_error(weight, restored)
    assert whole.sqnr_db is not None
    assert (parts.sqnr_db, parts.cosine) == pytest.approx((whole.sqnr_db, whole.cosine), rel=1e-12)
    assert (parts.max_abs, outlier_ratio(weight)) == pytest.approx((whole.max_abs, outlier), rel=1e-12)


def test_nothing_lost_has_no_sqnr() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    got = weight_error(weight, weight.clone())
    assert (got.sqnr_db, got.max_abs) == (None, 0.0)
    assert got.cosine == pytest.approx(1.0, abs=1e-12)


def test_zero_weights_have_a_cosine() -> None:
    zero, one = torch.zeros(3, 4), torch.ones(3, 4)
    assert weight_error(zero, zero).cosine == 1.0
    assert weight_error(zero, one).cosine == 0.0
    assert weight_error(one, zero).cosine == 0.0
    assert weight_error(one, zero).sqnr_db == pytest.approx(0.0)
    assert weight_error(zero, one).sqnr_db is None


def test_one_bit_more_gives_six_decibels() -> None:
    weight = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    coarse, fine = (weight_error(weight, (weight * steps).round() / steps).sqnr_db for steps in (16, 32))
    assert coarse is not None
    assert fine is not None
    assert fine - coarse == pytest.approx(20 * math.log10(2), abs=0.2)


def test_half_precision_is_compared_exactly() -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    half = weight.bfloat16()
    assert weight_error(weight, half) == weight_error(weight, half.float())


def test_the_outlier_ratio_counts_from_zero() -> None:
    assert outlier_ratio(torch.full((3, 4), -0.7)) == pytest.approx(1.0)
    assert outlier_ratio(torch.zeros(3, 4)) == 0.0
    one = torch.zeros(10, 10)
    one[3, 4] = -5.0
    assert outlier_ratio(one) == pytest.approx(10.0)
    normal = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    assert 4 < outlier_ratio(normal) < 5.5


@given(factor=st.sampled_from([1e-30, 1e-3, 1e20]), seed=st.integers(0, 20))
def test_the_outlier_ratio_does_not_depend_on_the_unit(factor: float, seed: int) -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    assert outlier_ratio(weight * factor) == pytest.approx(outlier_ratio(weight), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    good, damaged = torch.ones(2, 3), torch.ones(2, 3)
    damaged[1, 2] = bad
    with pytest.raises(NonFiniteError, match="1 of 6 values of the weight"):
        weight_error(damaged, good)
    with pytest.raises(NonFiniteError, match="1 of 6 values of the quantized weight"):
        weight_error(good, damaged)
    with pytest.raises(NonFiniteError, match=r"the first at \(1, 2\)"):
        outlier_ratio(damaged)


def test_weights_of_different_shapes_are_not_compared() -> None:
    with pytest.raises(InternalError, match=r"\(2, 3\) cannot be compared with one of \(3, 2\)"):
        weight_error(torch.ones(2, 3), torch.ones(3, 2))
