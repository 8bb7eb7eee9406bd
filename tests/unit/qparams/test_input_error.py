from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import ranges
from zeropoint.qparams.input_error import clipped_values, input_errors
from zeropoint.qparams.inputs import input_params, round_input
from zeropoint.types import InputParams, InputScheme


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 6),
    cols=st.integers(1, 9),
    symmetric=st.booleans(),
    high=st.floats(0.1, 4.0),
    seed=st.integers(0, 2**31),
)
def test_the_parts_are_those_of_the_literal_sums(
    *, tokens: int, cols: int, symmetric: bool, high: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x, weight = random.standard_normal((tokens, cols)), random.standard_normal((4, cols))
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    counts = random.integers(1, 5, tokens).astype(np.float64)
    params = input_params(-high / 2, high, InputScheme(dynamic=False, symmetric=symmetric))
    assert params.scale is not None
    (found,) = input_errors([(torch.from_numpy(x), torch.from_numpy(counts))], [params], [torch.from_numpy(weight)])
    expected = ranges.output_errors(
        x.astype(np.float64), counts, weight.astype(np.float64), params.scale, params.zero_point, 8
    )
    assert (found.output, found.clipping, found.rounding) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_many_batches_and_linears_are_one_and_candidates_know_nothing_of_each_other() -> None:
    x = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    narrow, dynamic = input_params(-1.0, 1.0, InputScheme(dynamic=False)), InputParams(InputScheme())
    both = input_errors([(x[:17], None), (x[17:], None)], [narrow, dynamic], [weight[:1], weight[1:]])
    (alone,) = input_errors([(x, torch.ones(5000, dtype=torch.float64))], [narrow], [weight])
    assert both[0].output == pytest.approx(alone.output, rel=1e-5)
    assert both[0].clipped == alone.clipped == pytest.approx(float((x.abs() > 1.004).double().mean()), abs=1e-3)
    error = round_input(x, narrow) - x
    assert both[0].sqnr_db == pytest.approx(10 * math.log10(float(x.square().sum() / error.square().sum())), rel=1e-5)
    assert both[1].clipped == both[1].clipping == 0
    assert both[1].output < both[0].output


@pytest.mark.parametrize("symmetric", [True, False])
def test_nothing_inside_the_range_is_clipped(symmetric: bool) -> None:
    x = torch.linspace(-0.37, 2.11, 1000)
    params = input_params(-0.37, 2.11, InputScheme(dynamic=False, symmetric=symmetric))
    assert not clipped_values(x, params).any()
    assert clipped_values(torch.tensor([2.2]), params).all()


def test_zeros_lose_nothing() -> None:
    (found,) = input_errors([(torch.zeros(3, 2), None)], [InputParams(InputScheme())], [torch.ones(1, 2)])
    assert (found.sqnr_db, found.output, found.clipping, found.rounding, found.clipped) == (None, 0, 0, 0, 0)
