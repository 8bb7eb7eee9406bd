from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference import affine
from zeropoint.errors import NonFiniteError, SchemeError
from zeropoint.qparams.affine import dequantize, fake_quantize, nearest_codes, quantize, values_of
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.grouping import expand
from zeropoint.types import Granularity, QParams, Scheme


def random(rows: int, cols: int, seed: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 50),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    narrow=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    group_size=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_every_value_goes_to_the_code_of_the_formula_and_back(
    *,
    rows: int,
    cols: int,
    bits: int,
    symmetric: bool,
    narrow: bool,
    granularity: Granularity,
    group_size: int,
    seed: int,
) -> None:
    scheme = Scheme(bits, symmetric, granularity, group_size, narrow)
    weight = random(rows, cols, seed)
    qparams = choose_qparams(weight, scheme, "minmax")
    codes = quantize(weight, qparams, scheme)
    values = dequantize(codes, qparams, scheme)
    assert (codes.dtype, codes.shape) == (torch.int8, weight.shape)
    assert (values.dtype, values.shape) == (torch.float32, weight.shape)
    scale = expand(qparams.scale, rows, cols, scheme)
    zero = torch.zeros(rows, cols) if qparams.zero_point is None else expand(qparams.zero_point, rows, cols, scheme)
    for i in range(rows):
        for j in range(cols):
            r, s, z, q = weight[i, j].item(), scale[i, j].item(), int(zero[i, j]), int(codes[i, j])
            place = r / s + z
            tie = abs(place - math.floor(place) - 0.5) < 1e-4  # float32 and float64 may differ there
            assert q == affine.quantize(r, s, z, bits, narrow=narrow) or tie
            assert scheme.q_min <= q <= scheme.q_max
            assert values[i, j].item() == pytest.approx(affine.dequantize(q, s, z), rel=1e-6)
    assert torch.equal(values, fake_quantize(weight, qparams, scheme))


def test_ties_go_to_the_even_code() -> None:
    scheme = Scheme(4, True, "tensor")
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert quantize(weight, QParams(torch.ones(1, 1), None), scheme).tolist() == [[0, 2, 2, 0, -2, -2]]
    odd = QParams(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int32))  # r / S + Z is rounded, not r / S
    assert quantize(weight, odd, Scheme(4, False, "tensor")).tolist() == [[2, 2, 4, 0, 0, -2]]


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 99), power=st.integers(-60, 60))
def test_codes_do_not_depend_on_the_unit_of_the_weight(bits: int, symmetric: bool, seed: int, power: int) -> None:
    scheme, weight = Scheme(bits, symmetric, "group", 8), random(3, 20, seed)
    codes = [quantize(w, choose_qparams(w, scheme, "minmax"), scheme) for w in (weight, weight * 2.0**power)]
    assert torch.equal(codes[0], codes[1])


def test_all_zero_groups_come_back_as_zeros() -> None:
    weight = random(4, 64, 0)
    weight[1], weight[:, 16:32] = 0.0, 0.0
    for symmetric in (True, False):
        scheme = Scheme(4, symmetric, "group", 16)
        back = fake_quantize(weight, choose_qparams(weight, scheme, "minmax"), scheme)
        assert bool((back[weight == 0] == 0).all())
        assert bool((back[0, :16] != 0).any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    scheme, weight = Scheme(8, False, "channel"), random(4, 64, 3).to(dtype)
    qparams = choose_qparams(weight, scheme, "minmax")
    assert torch.equal(quantize(weight, qparams, scheme), quantize(weight.float(), qparams, scheme))
    assert torch.equal(qparams.scale, choose_qparams(weight.float(), scheme, "minmax").scale)


def test_a_transposed_weight_gives_the_codes_of_its_copy() -> None:
    scheme, weight = Scheme(4, False, "group", 5), random(12, 7, 3).T
    qparams = choose_qparams(weight, scheme, "minmax")
    assert torch.equal(quantize(weight, qparams, scheme), quantize(weight.contiguous(), qparams, scheme))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    weight = torch.ones(2, 3)
    weight[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"1 of 6 values .* first at \(1, 2\)"):
        quantize(weight, QParams(torch.ones(2, 1), None), Scheme(granularity="channel"))


def test_qparams_of_another_shape_are_refused() -> None:
    scheme = Scheme(4, False, "group", 2)
    scale, zero = torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int32)
    for wrong in (QParams(scale[:1], zero), QParams(scale, zero[:, :1])):
        with pytest.raises(SchemeError, match=r"which has \(2, 2\)"):
            quantize(torch.ones(2, 4), wrong, scheme)
        with pytest.raises(SchemeError, match=r"which has \(2, 2\)"):
            dequantize(torch.ones(2, 4, dtype=torch.int8), wrong, scheme)


@pytest.mark.parametrize("zero", [None, torch.tensor([[3], [-2]], dtype=torch.int32)])
def test_the_core_writes_into_out_what_it_returns_otherwise(zero: Tensor | None) -> None:
    values, scale, scheme, out = random(2, 9, 1), torch.tensor([[0.2], [0.3]]), Scheme(), torch.empty(2, 9)
    expected = nearest_codes(values, scale, zero, scheme)
    assert nearest_codes(values, scale, zero, scheme, out=out) is out
    assert torch.equal(out, expected)
    back = values_of(expected, scale, zero)
    assert torch.equal(values_of(out, scale, zero, out=out), back)
