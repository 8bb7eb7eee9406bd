from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.kv_cache import in_int8 as reference
from zeropoint.runtime.cache import in_halves, in_int8


@given(st.integers(1, 4), st.integers(1, 40), st.integers(-30, 30), st.integers(0, 2**32 - 1))
def test_int8_is_the_formula(rows: int, cols: int, power: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32) * np.float32(2.0) ** power
    found = in_int8(torch.from_numpy(x)).double().numpy()
    expected = reference(x.astype(np.float64))
    step = np.abs(x).max(-1, keepdims=True) / 127
    off = np.abs(found - expected) / step
    # float32 may see a value at the middle of a step on its other side
    near_middle = np.abs(np.abs(x / step % 1) - 0.5) < 1e-4
    assert (off[~near_middle] < 1e-4).all()
    assert (off < 1.001).all()
    assert (np.abs(found - x) <= step * 0.5001).all()


def test_int8_keeps_zeros_and_what_is_nearly_zero_finite() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-38, -1e-39], [3e38, 1.0]])
    found = in_int8(x)
    assert found[0].tolist() == [0, 0]
    assert found[1].tolist() == [0, 0]
    assert torch.isfinite(found).all()


def test_halves_are_clamped() -> None:
    assert in_halves(torch.tensor([1e6, -1e6, 1.0])).tolist() == [65504, -65504, 1]
