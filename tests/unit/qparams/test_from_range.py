from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference import affine
from zeropoint.errors import NonFiniteError, SchemeError
from zeropoint.qparams.affine import nearest_codes, values_of
from zeropoint.qparams.from_range import as_stored, from_range, require_finite
from zeropoint.types import Scheme

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
schemes = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.just("tensor"),
    narrow=st.booleans(),
    scale_dtype=st.sampled_from(list(DTYPES)),
)
moderate = st.floats(-1000, 1000, width=32)
anything = st.floats(-(2.0**120), 2.0**120, width=32)  # denormal numbers, too


def range_(low: float, high: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[low]]), torch.tensor([[high]])


def back(values: Tensor, low: float, high: float, scheme: Scheme) -> Tensor:
    """`values` after a round trip through the grid of [low, high]."""
    q = from_range(*range_(low, high), scheme)
    codes = nearest_codes(values, q.scale, q.zero_point, scheme)
    return values_of(codes, q.scale, q.zero_point)


@settings(deadline=None, max_examples=200)
@given(low=moderate, high=moderate, bits=st.integers(2, 8), symmetric=st.booleans(), dtype=st.sampled_from([*DTYPES]))
def test_a_scale_has_no_more_bits_than_asked_and_its_grid_still_covers_the_range(
    low: float, high: float, bits: int, symmetric: bool, dtype: str
) -> None:
    extent = max(-low, high, 0.0) if symmetric else max(high, 0.0) - min(low, 0.0)
    assume(extent > 0.1)  # a scale in the normal numbers of float16
    scheme = Scheme(bits, symmetric, "tensor", None, scale_dtype=dtype, scale_bits=7)  # type: ignore[arg-type]
    q = from_range(*range_(low, high), scheme)
    mantissa, _ = math.frexp(q.scale.item())
    assert mantissa * 2**7 == round(mantissa * 2**7)
    multiples = q.scale * torch.arange(16)
    assert torch.equal(multiples.half().float(), multiples)
    steps = (scheme.q_max - scheme.q_min) / (2 if symmetric else 1)
    assert (steps + 0.5) * q.scale.item() >= extent
    assert q.scale.item() == pytest.approx(extent / steps, rel=2**-6)
    whole = from_range(
        *range_(low, high), Scheme(bits, symmetric, "tensor", None, scale_dtype="float32", scale_bits=24)
    )
    assert whole.scale.item() == pytest.approx(extent / steps, rel=2e-7)


def test_scales_that_were_moved_are_rounded_to_their_bits_and_a_gradient_passes() -> None:
    moved = torch.tensor([1 + 3 / 256, 1 + 1 / 128, 0.01], requires_grad=True)
    stored = as_stored(moved, Scheme(4, False, "tensor", None, scale_dtype="float16", scale_bits=7))
    # 1/64 apart from 1 on, ties to even; 2^-13 apart around 0.01
    assert stored.tolist() == [1 + 1 / 64, 1.0, round(0.01 * 2**13) / 2**13]
    stored.sum().backward()
    assert moved.grad is not None
    assert moved.grad.tolist() == [1.0, 1.0, 1.0]


@settings(deadline=None, max_examples=200)
@given(low=moderate, high=moderate, bits=st.integers(2, 8), symmetric=st.booleans(), narrow=st.booleans())
def test_scale_and_zero_point_are_those_of_the_formula(
    low: float, high: float, bits: int, symmetric: bool, narrow: bool
) -> None:
    scheme = Scheme(bits, symmetric, "tensor", None, narrow, "float32")
    q = from_range(*range_(low, high), scheme)
    expected = affine.scale_of(low, high, bits, symmetric=symmetric, narrow=narrow)
    assume(expected > 1e-30)
    assert q.scale.item() == pytest.approx(expected, rel=2e-7)
    if symmetric:
        assert q.zero_point is None
    else:
        assert q.zero_point is not None
        assert q.zero_point.dtype == torch.int32
        assert q.zero_point.item() == affine.zero_point_of(low, q.scale.item(), bits, narrow=narrow) or _is_a_tie(
            low / q.scale.item()
        )


def _is_a_tie(x: float) -> bool:
    return abs(x - math.floor(x) - 0.5) < 1e-4


@settings(deadline=None, max_examples=300)
@given(low=anything, high=anything, scheme=schemes)
def test_a_scale_is_positive_and_exactly_what_its_dtype_stores(low: float, high: float, scheme: Scheme) -> None:
    assume(scheme.scale_dtype != "float16" or max(abs(low), abs(high)) < 60000)
    q = from_range(*range_(low, high), scheme)
    assert q.scale.dtype == torch.float32
    assert 0 < q.scale.item() < math.inf
    assert torch.equal(q.scale.to(DTYPES[scheme.scale_dtype]).float(), q.scale)
    if q.zero_point is not None:
        assert scheme.q_min <= q.zero_point.item() <= scheme.q_max


@settings(deadline=None, max_examples=200)
@given(low=moderate, high=moderate, power=st.integers(-80, 80), scheme=schemes)
def test_scaling_the_range_by_a_power_of_two_scales_the_scale_and_nothing_else(
    low: float, high: float, power: int, scheme: Scheme
) -> None:
    power = max(-1, min(power, 2)) if scheme.scale_dtype == "float16" else power
    assume(max(-low, high, 0) > 0.1)  # so that neither side is below the normal numbers of its dtype
    assume(low == 0 or abs(low) > 1e-12)
    assume(high == 0 or abs(high) > 1e-12)
    one, other = (
        from_range(*range_(low, high), scheme),
        from_range(*range_(low * 2.0**power, high * 2.0**power), scheme),
    )
    assert torch.equal(one.scale * 2.0**power, other.scale)
    if one.zero_point is not None:
        assert torch.equal(one.zero_point, other.zero_point)


@settings(deadline=None, max_examples=200)
@given(low=anything, high=anything, scheme=schemes)
def test_zero_is_exact(low: float, high: float, scheme: Scheme) -> None:
    assume(scheme.scale_dtype != "float16" or max(abs(low), abs(high)) < 60000)
    assert back(torch.tensor([[0.0, -0.0]]), low, high, scheme).tolist() == [[0.0, 0.0]]


@settings(deadline=None, max_examples=300)
@given(low=anything, high=anything, share=st.floats(0, 1), scheme=schemes)
def test_inside_the_grid_the_error_is_half_a_step_and_in_the_range_at_most_one(
    low: float, high: float, share: float, scheme: Scheme
) -> None:
    assume(scheme.scale_dtype != "float16" or max(abs(low), abs(high)) < 60000)
    low, high = min(low, 0.0), max(high, 0.0)
    value = torch.tensor([[low + share * (high - low)]])
    q = from_range(*range_(low, high), scheme)
    zero = 0 if q.zero_point is None else q.zero_point
    step, error = q.scale.double(), (back(value, low, high, scheme).double() - value.double()).abs()
    inside = (step * (scheme.q_min - zero) <= value) & (value <= step * (scheme.q_max - zero))
    allowed = torch.where(inside, 0.5, 1.0) * step
    assert bool(error <= allowed * (1 + 1e-4)), (error / step).item()  # r / S + Z is rounded to 24 bits


@settings(deadline=None, max_examples=300)
@given(
    constant=anything,
    bits=st.integers(2, 8),
    narrow=st.booleans(),
    scale_dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
)
def test_a_constant_group_comes_back_within_half_a_step_when_asymmetric(
    constant: float, bits: int, narrow: bool, scale_dtype: str
) -> None:
    assume(scale_dtype != "float16" or abs(constant) < 60000)
    scheme = Scheme(bits, False, "tensor", None, narrow, scale_dtype)  # type: ignore[arg-type]
    scale = from_range(*range_(constant, constant), scheme).scale.double().item()
    error = abs(back(torch.tensor([[constant]]), constant, constant, scheme).double().item() - constant)
    assert error <= 0.5 * scale * (1 + 1e-5)


def test_an_8_bit_bfloat16_scale_is_rounded_up_where_nearest_would_miss_the_last_step() -> None:
    scheme = Scheme(8, False, "tensor", None)
    c = 255 * (1 + 2**-8 - 2**-16)  # wants S = 1.0039, nearest is 1.0: the end would lie 0.996 steps outside
    assert from_range(*range_(0.0, c), scheme).scale.item() == 1 + 2**-7
    assert from_range(*range_(0.0, 255.4), scheme).scale.item() == 1.0
    assert from_range(*range_(-c / 2, c / 2), Scheme(8, True, "tensor", None)).scale.item() == 1.0


@pytest.mark.parametrize("scheme", [Scheme(4, s, "tensor", None, scale_dtype=d) for s in (True, False) for d in DTYPES])  # type: ignore[arg-type]
def test_an_empty_range_has_the_scale_one(scheme: Scheme) -> None:
    assert from_range(*range_(0.0, 0.0), scheme).scale.item() == 1.0
    assert back(torch.zeros(1, 1), 0.0, 0.0, scheme).item() == 0.0


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_without_zero_is_extended_to_it(symmetric: bool) -> None:
    scheme = Scheme(4, symmetric, "tensor", None)
    for given_, extended in (((2.0, 5.0), (0.0, 5.0)), ((-5.0, -2.0), (-5.0, 0.0))):
        one, other = from_range(*range_(*given_), scheme), from_range(*range_(*extended), scheme)
        assert torch.equal(one.scale, other.scale)
        assert symmetric or torch.equal(one.zero_point, other.zero_point)  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [True, False])
def test_float16_underflow_takes_the_smallest_positive_scale_not_zero(symmetric: bool) -> None:
    scheme = Scheme(4, symmetric, "tensor", None, scale_dtype="float16")
    for tiny in (1e-9, 1e-30, 1e-45):
        assert from_range(*range_(0.0, tiny), scheme).scale.item() == 2.0**-24
    between = 7.5 * 1.4 * 2.0**-24  # nearest is one unit, which would clip a quarter of the range
    assert from_range(*range_(-between, between), scheme).scale.item() == 2.0**-23


def test_float16_overflow_is_refused_and_bfloat16_named() -> None:
    low, high = torch.tensor([[0.0, -3.0]]), torch.tensor([[1.0, 1e6]])
    for symmetric in (True, False):
        scheme = Scheme(4, symmetric, scale_dtype="float16")
        with pytest.raises(SchemeError, match=r"reach 1e\+06 .* float16 scales cannot hold; use .*bfloat16"):
            from_range(low, high, scheme)
        assert bool(torch.isfinite(from_range(low, high, Scheme(4, symmetric)).scale).all())


@settings(deadline=None)
@given(scheme=schemes, low=st.floats(-3.4028234e38, 0), high=st.floats(0, 3.4028234e38))
def test_a_range_is_refused_or_all_its_codes_are_finite(scheme: Scheme, low: float, high: float) -> None:
    try:
        q = from_range(*range_(low, high), scheme)
    except SchemeError:
        assert max(-low, high) > 2.0**15
        return
    codes = torch.arange(scheme.q_min, scheme.q_max + 1, dtype=torch.float32)[None]
    assert bool(torch.isfinite(values_of(codes, q.scale, q.zero_point)).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("symmetric", [True, False])
def test_nan_and_infinity_are_refused(bad: float, symmetric: bool) -> None:
    good = torch.ones(2, 2)
    worse = good.clone()
    worse[1, 0] = bad
    for low, high in ((-good, worse), (worse, good)):
        with pytest.raises(NonFiniteError, match=r"1 of 4 .* ends .* first at \(1, 0\)"):
            from_range(low, high, Scheme(symmetric=symmetric))


def test_require_finite_passes_what_is_finite() -> None:
    require_finite(torch.tensor([3.4e38, -3.4e38, 1e-45, 0.0]), "values")
    with pytest.raises(NonFiniteError, match="2 of 3 values"):
        require_finite(torch.tensor([1.0, math.nan, math.inf]), "values")
