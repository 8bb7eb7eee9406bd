from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference import gptaq as reference
from unit.rounding.test_gptq import inputs, weight
from zeropoint.qparams import outliers
from zeropoint.qparams.choose import choose_qparams
from zeropoint.rounding import RoundingError, gptaq, gptq
from zeropoint.rounding.ladder import aim
from zeropoint.types import Drift, Scheme, SecondMoment, Stats


def moved_by(x: Tensor, *, seed: int = 5) -> Tensor:
    """The inputs as quantized layers below might give them: noise, and a part of it that follows the input."""
    random = torch.Generator().manual_seed(seed)
    turn = torch.randn(x.shape[1], x.shape[1], generator=random) * 0.02
    return x + x @ turn + 0.05 * x.abs().mean(0) * torch.randn(x.shape, generator=random)


def statistics(x: Tensor, moved: Tensor) -> dict[str, Stats]:
    tokens = len(x)
    return {
        "second_moment": SecondMoment(moved.T @ moved / tokens, tokens),
        "drift": Drift((x - moved).T @ moved / tokens, tokens),
    }


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 40),
    tokens=st.integers(1, 300),
    strength=st.floats(0, 1),
    damping=st.sampled_from([0.01, 0.2]),
    seed=st.integers(0, 99),
)
def test_the_target_is_that_of_least_squares(
    rows: int, cols: int, tokens: int, strength: float, damping: float, seed: int
) -> None:
    x = inputs(cols, tokens=tokens, seed=seed)
    moved, w = moved_by(x, seed=seed), weight(rows, cols, seed=seed)
    got = gptaq.target(w, statistics(x, moved), gptaq.Options(strength=strength, damping=damping))
    expected = reference.target(
        w.double().numpy(), x.double().numpy(), moved.double().numpy(), damping=damping, strength=strength
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_the_outputs_come_nearer_to_those_of_the_float_model() -> None:
    x = inputs(48, tokens=2000)
    moved, w = moved_by(x), weight(30, 48)
    stats, scheme = statistics(x, moved), Scheme(4, True, "group", 16)
    wanted = x @ w.T
    lost = {}
    for method, options in (("gptq", gptq.Options()), ("gptaq", gptaq.Options(strength=1.0))):
        aimed, reason = aim(w, stats, method, options)
        assert reason is None
        q = gptq.quantize(aimed, choose_qparams(aimed, scheme, "minmax"), scheme, stats, gptq.Options())
        restored = q.codes.float() * q.qparams.scale.repeat_interleave(16, dim=1)
        lost[method] = float((moved @ restored.T - wanted).square().mean())
    assert lost["gptaq"] < 0.7 * lost["gptq"]


def test_without_drift_or_strength_it_is_gptq() -> None:
    x = inputs(32)
    w = weight(8, 32)
    assert torch.equal(gptaq.target(w, statistics(x, x), gptaq.Options(strength=1.0)), w)
    assert torch.equal(gptaq.target(w, statistics(x, moved_by(x)), gptaq.Options(strength=0.0)), w)


def test_without_tokens_it_aims_at_the_weight_and_says_so() -> None:
    empty: dict[str, Stats] = {
        "second_moment": SecondMoment(torch.zeros(8, 8), 0),
        "drift": Drift(torch.zeros(8, 8), 0),
    }
    w = weight(4, 8)
    with pytest.raises(RoundingError, match="no calibration token"):
        gptaq.target(w, empty, gptaq.Options())
    aimed, reason = aim(w, empty, "gptaq", gptaq.Options())
    assert aimed is w
    assert reason is not None
    assert "no calibration token" in reason


def test_columns_that_stay_float_have_no_target() -> None:
    x = inputs(16)
    w = outliers.zeroed(weight(4, 16), (3, 9))
    stats = outliers.without(statistics(x, moved_by(x)), (3, 9))
    target = gptaq.target(w, stats, gptaq.Options(strength=1.0))
    assert not bool(target[:, [3, 9]].any())
    assert not torch.equal(target, w)
