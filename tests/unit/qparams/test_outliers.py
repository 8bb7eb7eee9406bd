"""Outlier columns against the literal decomposition, for all shapes, thresholds and places of the columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.outliers import columns_of, outlier_linear
from zeropoint.observe.channel_absmax import Observer
from zeropoint.qparams.affine import dequantize, quantize, restore
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.inputs import input_params, round_input
from zeropoint.qparams.outliers import outlier_columns, without, zeroed
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.types import InputParams, InputScheme, QTensor, Scheme, SecondMoment

CHANNEL = Scheme(8, True, "channel", None, scale_dtype="float32")
STATIC = InputScheme(dynamic=False, symmetric=False, outlier_threshold=6.0)


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(1, 6),
    rows=st.integers(1, 9),
    cols=st.integers(1, 70),
    planted=st.integers(0, 70),
    threshold=st.sampled_from((0.5, 2.0, 6.0, 1e6)),
    seed=st.integers(0, 9999),
)
def test_a_linear_is_the_decomposition(
    tokens: int, rows: int, cols: int, planted: int, threshold: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, cols)).astype(np.float32)
    x[:, random.permutation(cols)[:planted]] *= 20
    weight = random.standard_normal((rows, cols)).astype(np.float32)

    scheme = InputScheme(outlier_threshold=threshold)
    observer = Observer()
    observer.update(torch.from_numpy(x))
    columns = outlier_columns({"channel_absmax": observer.result()}, scheme)
    assert list(columns) == columns_of(x, threshold)

    w = torch.from_numpy(weight)
    qparams = choose_qparams(zeroed(w, columns), CHANNEL, "minmax")
    codes = quantize(zeroed(w, columns), qparams, CHANNEL)
    q = QTensor(codes, qparams, CHANNEL, InputParams(scheme, outliers=columns), w[:, list(columns)])
    ops = TorchOps()
    found = ops.linear(torch.from_numpy(x), ops.prepare(q), None).numpy()
    expected = outlier_linear(x, weight, list(columns))
    room = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(weight).T)  # float32 sums of at most 70 products
    assert np.all(np.abs(found - expected) <= room + 1e-6)


def test_a_column_at_the_threshold_stays_float_and_one_below_it_does_not() -> None:
    observer = Observer()
    observer.update(torch.tensor([[6.0, 5.999, -6.0, 0.0]]))
    assert outlier_columns({"channel_absmax": observer.result()}, InputScheme(outlier_threshold=6.0)) == (0, 2)
    assert outlier_columns({}, InputScheme()) == ()


def test_a_static_range_is_of_the_other_columns_and_outliers_pass_unchanged() -> None:
    params = replace(input_params(-1.0, 1.0, STATIC), outliers=(1,))
    found = round_input(torch.tensor([[0.5, 1234.5678, 3.0]]), params)
    assert params.scale is not None
    assert abs(float(found[0, 0]) - 0.5) <= params.scale / 2
    assert float(found[0, 1]) == float(torch.tensor(1234.5678))
    assert float(found[0, 2]) <= 1 + params.scale  # clipped, as any value outside the range


def test_codes_of_outliers_stand_for_zero_and_their_weights_come_back_as_they_were() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) + 3  # one-sided: the zero point is at an end
    scheme = replace(CHANNEL, symmetric=False)
    columns = (0, 6)
    qparams = choose_qparams(zeroed(weight, columns), scheme, "minmax")
    codes = quantize(zeroed(weight, columns), qparams, scheme)
    assert not dequantize(codes, qparams, scheme)[:, list(columns)].any()
    q = QTensor(codes, qparams, scheme, InputParams(InputScheme(), outliers=columns), weight[:, list(columns)])
    assert torch.equal(restore(q)[:, list(columns)], weight[:, list(columns)])
    others = [1, 2, 3, 4, 5, 7]
    assert torch.equal(restore(q)[:, others], dequantize(codes, qparams, scheme)[:, others])


def test_the_second_moment_is_that_of_an_input_without_the_columns() -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    found = without({"second_moment": SecondMoment(x.T @ x / 20, 20)}, (1, 4))["second_moment"]
    others = zeroed(x, (1, 4))
    assert isinstance(found, SecondMoment)
    assert torch.allclose(found.matrix, others.T @ others / 20)
    assert found.count == 20
