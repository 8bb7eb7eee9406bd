from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import exports
from reference import gguf_blocks as reference
from zeropoint.errors import SchemeError
from zeropoint.exporting._gguf_blocks import BlockType, block_type, pack
from zeropoint.exporting._integers import Integers
from zeropoint.types import Scheme

SCHEMES = [
    *(Scheme(bits, True, "group", size) for bits in (2, 3, 4, 5, 8) for size in (32, 64)),
    *(Scheme(bits, False, "group", 32) for bits in (2, 3, 4, 5)),
    Scheme(4, True, "channel", None),
    Scheme(8, True, "channel", None),
    Scheme(4, False, "tensor", None),
]


@st.composite
def weights(draw: st.DrawFn) -> tuple[Integers, BlockType]:
    scheme = draw(st.sampled_from(SCHEMES))
    rows, cols = draw(st.integers(1, 3)), 64 * draw(st.integers(1, 2))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = scheme.groups(cols)
    codes = random.integers(scheme.q_min, scheme.q_max + 1, (rows, cols), dtype=np.int8)
    # 6 significant bits and 5 of a zero point are the 11 of float16
    exponents = random.integers(-18, 4, (rows, groups))
    scale = np.ldexp(random.integers(32, 64, (rows, groups)), exponents - 5).astype(np.float32)
    zero_point = random.integers(scheme.q_min, scheme.q_max + 1, (rows, groups), dtype=np.int8)
    kind, reason = block_type(scheme, cols)
    assert kind is not None, reason
    return Integers(codes, scale, None if scheme.symmetric else zero_point, scheme), kind


@settings(deadline=None, max_examples=80)
@given(weights())
def test_blocks_taken_apart_are_the_values_of_the_weight(given: tuple[Integers, BlockType]) -> None:
    weight, kind = given
    data = pack("w", weight, kind)
    assert np.array_equal(list(reference.values(data.tobytes(), kind)), weight.values().ravel().astype(np.float64))
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(theirs.view(np.uint32), weight.values().view(np.uint32))


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [(4, True, "Q4_0"), (4, False, "Q4_1"), (5, True, "Q5_0"), (5, False, "Q5_1"), (8, True, "Q8_0")],
)
def test_the_value_of_codes_is_the_formula(bits: int, symmetric: bool, kind: BlockType) -> None:
    scheme = Scheme(bits, symmetric, "group", 32)
    codes = (np.arange(32).reshape(1, 32) % (1 << bits) - (1 << bits - 1)).astype(np.int8)
    zero_point = None if symmetric else np.array([[-3]], np.int8)
    weight = Integers(codes, np.array([[0.25]], np.float32), zero_point, scheme)
    expected = [0.25 * (int(code) - (0 if symmetric else -3)) for code in codes[0]]
    assert list(reference.values(pack("w", weight, kind).tobytes(), kind)) == expected


@pytest.mark.parametrize(
    ("scheme", "cols", "part"),
    [
        (Scheme(4, True, "group", 16), 64, "groups of 16"),
        (Scheme(4, True, "group", 48), 96, "groups of 48"),
        (Scheme(4, True, "channel", None), 72, "72 columns"),
        (Scheme(8, False, "group", 32), 64, "8 bits with zero points"),
        (Scheme(6, False, "group", 32), 64, "6 bits with zero points"),
    ],
)
def test_a_scheme_that_no_block_holds_is_refused_with_what_would_fit(scheme: Scheme, cols: int, part: str) -> None:
    kind, reason = block_type(scheme, cols)
    assert kind is None
    assert part in reason
    assert "quantize again" in reason or "keep_float" in reason


@pytest.mark.parametrize("scale", [1 + 2**-11, 2.0**-25, 70000.0, 3 * 2.0**-25])
def test_a_scale_that_float16_does_not_hold_is_refused_by_name(scale: float) -> None:
    weight = Integers(np.zeros((1, 32), np.int8), np.array([[scale]], np.float32), None, Scheme(4, True, "group", 32))
    with pytest.raises(SchemeError, match=r"model\.up_proj: 1 of 1 scales.*scale_dtype"):
        pack("model.up_proj", weight, "Q4_0")


def test_a_minimum_that_float16_does_not_hold_is_refused_by_name() -> None:
    scheme = Scheme(4, False, "group", 32)
    zeros = np.zeros((1, 32), np.int8)
    scale = np.array([[255 / 128]], np.float32)  # 8 significant bits, as bfloat16 has
    even = Integers(zeros, scale, np.array([[0]], np.int8), scheme)
    assert pack("w", even, "Q4_1").shape == (1, 20)
    odd = Integers(zeros, scale, np.array([[7]], np.int8), scheme)  # 255 * 15 = 3825 has 12
    with pytest.raises(SchemeError, match=r"^w: 1 of 1 minima"):
        pack("w", odd, "Q4_1")


def test_the_golden_blocks_are_unchanged() -> None:
    assert exports.packed() == exports.read()
