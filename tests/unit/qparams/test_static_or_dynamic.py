from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import ranges
from zeropoint import find
from zeropoint.observe.massive import Place
from zeropoint.qparams.choose_input import choose_input_range
from zeropoint.qparams.inputs import input_params
from zeropoint.qparams.static_or_dynamic import ChosenInput, choose_static, needs
from zeropoint.types import InputScheme, Stats

DYNAMIC = InputScheme(dynamic=True, symmetric=True)


def observed(x: torch.Tensor, rule: str = "minmax") -> dict[str, Stats]:
    found: dict[str, Stats] = {}
    for name in needs(rule, 0.5):
        observer = find.load("observe", name).Observer()
        observer.update(x)
        found[name] = observer.result()
    return found


def never() -> Iterator[torch.Tensor]:
    """Fail when the first weight is asked for."""
    raise AssertionError("no output is to be measured")
    yield


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(2, 40),
    cols=st.integers(1, 9),
    rows=st.integers(1, 5),
    outlier=st.sampled_from([1.0, 30.0, 1000.0]),
    seed=st.integers(0, 2**31),
)
def test_the_input_is_dynamic_where_the_literal_error_of_the_outputs_is_above_the_limit(
    *, tokens: int, cols: int, rows: int, outlier: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, cols)).astype(np.float32)
    x[0] *= outlier
    weight = random.standard_normal((rows, cols)).astype(np.float32)
    # asymmetric: symmetric min-max puts the largest value half way between two codes, where the last bit decides
    scheme, stats = InputScheme(dynamic=False, symmetric=False), observed(torch.from_numpy(x))
    found = choose_input_range(stats, "minmax", None, scheme)
    static = input_params(found.low, found.high, scheme)
    assert static.scale is not None
    error, _, _ = ranges.output_errors(
        x.astype(np.float64), np.ones(tokens), weight.astype(np.float64), static.scale, static.zero_point, 8
    )
    linears = [torch.from_numpy(weight[:1]), torch.from_numpy(weight[1:])]  # those that share the input count as one

    def chosen(limit: float) -> ChosenInput:
        return choose_static(stats, "minmax", None, scheme, lambda: linears, limit=limit)

    kept, left = chosen(error * 1.01 + 1e-9), chosen(max(0.0, error * 0.99 - 1e-9))
    assert (kept.params, kept.fallback) == (static, None)
    assert kept.error == left.error == pytest.approx(error, rel=5e-3, abs=1e-9)
    if error > 1e-8:
        assert left.params.scheme == DYNAMIC
        assert left.params.scale is None
        assert "is above the limit" in (left.fallback or "")


def test_without_a_limit_nothing_is_measured() -> None:
    x, scheme = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), InputScheme(dynamic=False)
    found = choose_static(observed(x), "minmax", None, scheme, never)
    assert found.params.scheme == scheme
    assert (found.fallback, found.error) == (None, None)
    assert "sample" in needs("minmax", 0.0)
    assert "sample" not in needs("minmax", None)


def test_a_massive_activation_leaves_the_input_dynamic_and_is_named() -> None:
    place = Place(position=0, channel=325, value=-1234.5, ratio=56789.0)
    found = choose_static({}, "minmax", None, InputScheme(dynamic=False, symmetric=False), never, massive=place)
    assert found.params.scheme == DYNAMIC
    assert found.fallback == (
        "input stays dynamic: massive activation at position 0, channel 325: -1234, 56,789 times the median magnitude"
    )


def test_outputs_of_zero_that_a_static_scale_changes_are_above_every_limit() -> None:
    weight = torch.tensor([[1.0, -3.0]])
    x = torch.tensor([[3.0, 1.0], [6.0, 2.0]])
    found = choose_static(observed(x), "minmax", None, InputScheme(dynamic=False), lambda: [weight], limit=1.0)
    assert found.params.scheme == DYNAMIC
    assert found.error is None  # infinite: no number for a result
