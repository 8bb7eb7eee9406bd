from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import onnx_blocks
from zeropoint.exporting import _onnx_blocks
from zeropoint.exporting._integers import Integers
from zeropoint.types import Granularity, Scheme


@st.composite
def weights(draw: st.DrawFn) -> Integers:
    granularity: Granularity = draw(st.sampled_from(["group", "channel", "tensor"]))
    size = draw(st.sampled_from([16, 32, 48]))
    scheme = Scheme(draw(st.integers(2, 8)), draw(st.booleans()), granularity, size if granularity == "group" else None)
    rows, cols = draw(st.integers(1, 4)), size * draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = scheme.groups(cols)
    codes = random.integers(scheme.q_min, scheme.q_max + 1, (rows, cols), dtype=np.int8)
    scale = np.exp2(random.uniform(-20, 2, (rows, groups))).astype(np.float32)
    zero_point = random.integers(scheme.q_min, scheme.q_max + 1, (rows, groups), dtype=np.int8)
    return Integers(codes, scale, None if scheme.symmetric else zero_point, scheme)


@settings(deadline=None, max_examples=30)
@given(weights())
def test_blocks_are_the_values_of_the_weight_read_code_by_code(weight: Integers) -> None:
    rows, cols = weight.codes.shape
    block, reason = _onnx_blocks.block_of(weight.scheme, cols)
    assert not reason
    bits = _onnx_blocks.stored_bits(weight.scheme)
    parts = _onnx_blocks.pack(weight)
    assert {name: array.shape for name, array in parts.items()} == _onnx_blocks.shapes(weight.scheme, rows, cols)
    lists = {name: array.tolist() for name, array in parts.items()}
    tensors = lists["B"], lists["scales"], lists.get("zero_points")
    found = [[onnx_blocks.value(*tensors, bits, block, o, c) for c in range(cols)] for o in range(rows)]
    wanted = weight.values()
    # each is one product of a float32 and a small integer, rounded to float32 in ours
    assert np.array_equal(np.array(found, np.float32), wanted)
    assert np.array_equal(_onnx_blocks.values(parts, bits).view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize(
    ("scheme", "cols", "stored"),
    [
        (Scheme(4, True, "group", 64), 576, (4, 64)),
        (Scheme(3, True, "group", 128), 512, (4, 128)),
        (Scheme(5, False, "group", 48), 576, (8, 16)),
        (Scheme(2, False, "group", 1024), 4096, (2, 256)),
        (Scheme(8, True, "channel", None), 576, (8, 64)),
        (Scheme(4, True, "tensor", None), 80, (4, 16)),
    ],
)
def test_how_wide_codes_and_blocks_are(scheme: Scheme, cols: int, stored: tuple[int, int]) -> None:
    assert (_onnx_blocks.stored_bits(scheme), _onnx_blocks.block_of(scheme, cols)[0]) == stored


@pytest.mark.parametrize(
    ("scheme", "cols", "part"),
    [
        (Scheme(4, True, "group", 8), 64, "groups of 8 columns .* multiple of 16, such as 32, 64 or 128"),
        (Scheme(4, True, "group", 24), 72, "groups of 24 columns"),
        (Scheme(4, True, "channel", None), 72, "72 columns do not split .*keep_float"),
        (
            Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256),
            512,
            "MatMulNBits has none; .*gguf_q4_1",
        ),
    ],
)
def test_what_blocks_do_not_hold_is_refused_with_what_would_fit(scheme: Scheme, cols: int, part: str) -> None:
    block, reason = _onnx_blocks.block_of(scheme, cols)
    assert block == 0
    assert re.search(part, reason)
