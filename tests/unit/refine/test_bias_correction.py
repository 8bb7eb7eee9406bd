from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import bias_correction as reference
from zeropoint.observe.channel_mean import Observer
from zeropoint.qparams.affine import dequantize, quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.inputs import input_params, round_input
from zeropoint.refine import bias_correction
from zeropoint.refine.bias_correction import corrected_bias, rounded_means
from zeropoint.types import InputParams, InputScheme, Scheme


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 30),
    rows=st.integers(1, 7),
    cols=st.integers(1, 20),
    bits=st.integers(2, 8),
    static=st.sampled_from([None, False, True]),
    offset=st.floats(-3, 3),
    seed=st.integers(0, 2**31),
)
def test_the_bias_is_that_of_the_definition_and_leaves_no_mean_error(
    *, tokens: int, rows: int, cols: int, bits: int, static: bool | None, offset: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, cols, generator=random) + offset
    weight, bias = torch.randn(rows, cols, generator=random), torch.randn(rows, generator=random)
    scheme = Scheme(bits, True, "channel", None)
    qparams = choose_qparams(weight, scheme, "minmax")
    restored = dequantize(quantize(weight, qparams, scheme), qparams, scheme)
    # narrower than the inputs, so that clipping moves the mean, too
    params = (
        input_params(-1.0, 1.5, InputScheme(dynamic=False, symmetric=False)) if static else InputParams(InputScheme())
    )
    rounded = x if static is None else round_input(x, params)
    observer = Observer()
    observer.update(x)
    mean = observer.result().values
    after = mean if static is None else rounded_means([x[None, :1], x[None, 1:]], [params])[params]
    found = corrected_bias(bias, weight, restored, mean, after).numpy()
    doubles = [t.numpy().astype(np.float64) for t in (bias, weight, restored, x, rounded)]
    assert found == pytest.approx(reference.corrected_bias(*doubles), rel=1e-9, abs=1e-9)
    _, w, w_restored, x64, rounded64 = doubles
    gained = (rounded64 @ w_restored.T + found) - (x64 @ w.T + doubles[0])
    assert np.abs(gained.mean(0)).max() < 1e-9


def test_a_large_weight_is_multiplied_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    weight, restored = torch.randn(11, 8, generator=random), torch.randn(11, 8, generator=random)
    mean, bias = torch.randn(8, generator=random, dtype=torch.float64), torch.randn(11, generator=random).bfloat16()
    whole = corrected_bias(bias, weight, restored, mean, mean)
    monkeypatch.setattr(bias_correction, "_SLAB_VALUES", 24)
    assert torch.allclose(corrected_bias(bias, weight, restored, mean, mean), whole, rtol=1e-14, atol=1e-14)


def test_nothing_is_read_where_no_input_is_rounded() -> None:
    assert rounded_means(iter([torch.full((1, 1, 1), torch.nan)]), []) == {}
