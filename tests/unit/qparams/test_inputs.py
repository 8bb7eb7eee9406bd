import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.qparams.inputs import input_params, round_input
from zeropoint.types import InputParams, InputScheme

STATIC = (InputScheme(dynamic=False), InputScheme(dynamic=False, symmetric=False))


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from((1e-6, 1.0, 1e6)))
def test_a_token_is_rounded_with_its_own_scale(tokens: int, cols: int, seed: int, size: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((tokens, cols)) * size).astype(np.float32)
    found = round_input(torch.from_numpy(x), InputParams(InputScheme())).numpy()
    for row, got in zip(x, found, strict=True):
        scale = np.float32(np.abs(row).max() / np.float32(127.5))
        codes = np.clip(np.round(row / scale), -128, 127)
        np.testing.assert_array_equal(got, (codes * scale).astype(np.float32))


@given(st.sampled_from(STATIC), st.floats(-50, 0, width=32), st.floats(0, 50, width=32), st.integers(0, 2**31))
def test_static_parameters_cover_their_range(scheme: InputScheme, low: float, high: float, seed: int) -> None:
    params = input_params(low, high, scheme)
    assert params.scale is not None
    assert params.scale > 0
    x = np.random.default_rng(seed).uniform(low, high, (4, 9)).astype(np.float32)
    found = round_input(torch.from_numpy(x), params).numpy()
    # half a step, or one where the symmetric grid lacks its last half step, and the rounding of float32
    assert np.abs(found - x).max(initial=0) <= params.scale * 0.5001 + 1e-6
    assert float(round_input(torch.zeros(1, 1), params)) == 0


@pytest.mark.parametrize("params", [InputParams(InputScheme()), input_params(-1.0, 3.0, STATIC[1])])
def test_zeros_stay_zeros(params: InputParams) -> None:
    assert not round_input(torch.zeros(2, 3), params).any()


def test_the_input_is_not_overwritten() -> None:
    x = torch.tensor([[0.3, -1.0, 2.0]])
    round_input(x, InputParams(InputScheme()))
    assert x.tolist() == [[pytest.approx(0.3), -1.0, 2.0]]
