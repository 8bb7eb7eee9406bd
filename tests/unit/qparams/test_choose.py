from __future__ import annotations

import math

import pytest
import torch

from zeropoint.errors import InternalError, NonFiniteError, RecipeError, SchemeError
from zeropoint.qparams.affine import fake_quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.ranges import mse, percentile
from zeropoint.types import QParams, Scheme

WEIGHT = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


def same(one: QParams, other: QParams) -> bool:
    zeros = (one.zero_point, other.zero_point)
    return torch.equal(one.scale, other.scale) and (
        torch.equal(*zeros)
        if isinstance(zeros[0], torch.Tensor) and isinstance(zeros[1], torch.Tensor)
        else zeros[0] is zeros[1]
    )


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_there_is_one_scale_for_each_group(granularity: str, symmetric: bool) -> None:
    scheme = Scheme(4, symmetric, granularity, 16)  # type: ignore[arg-type]
    expected = {"tensor": (1, 1), "channel": (6, 1), "group": (6, 3)}[granularity]
    q = choose_qparams(WEIGHT, scheme, "minmax")
    assert q.scale.shape == expected
    assert (q.zero_point is None) == symmetric
    assert symmetric or (q.zero_point is not None and q.zero_point.shape == expected)


def test_options_reach_the_rule_and_none_means_its_defaults() -> None:
    scheme = Scheme(granularity="channel")
    default = choose_qparams(WEIGHT, scheme, "percentile", None)
    assert same(default, choose_qparams(WEIGHT, scheme, "percentile", percentile.Options()))
    assert not same(default, choose_qparams(WEIGHT, scheme, "percentile", percentile.Options(percent=80)))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_importance_is_given_per_column_whatever_the_granularity(granularity: str) -> None:
    scheme = Scheme(3, True, granularity, 16)  # type: ignore[arg-type]
    importance = torch.rand(40, generator=torch.Generator().manual_seed(1)) ** 6 + 1e-6

    def error(q: QParams) -> float:
        return float(((fake_quantize(WEIGHT, q, scheme) - WEIGHT).square() * importance).sum())

    weighted, plain = choose_qparams(WEIGHT, scheme, "mse", None, importance), choose_qparams(WEIGHT, scheme, "mse")
    assert error(weighted) < error(plain)
    assert error(weighted) < error(choose_qparams(WEIGHT, scheme, "minmax", None, importance))


def test_the_same_importance_everywhere_is_no_importance() -> None:
    for rule in ("mse", "minmax", "percentile"):
        one = choose_qparams(WEIGHT, Scheme(group_size=16), rule, None, torch.full((40,), 4.0))
        assert same(one, choose_qparams(WEIGHT, Scheme(group_size=16), rule))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    weight, importance = WEIGHT.clone(), torch.ones(40)
    weight[2, 3], importance[7] = bad, bad
    with pytest.raises(NonFiniteError, match=r"1 of 240 weights are NaN or infinite, the first at \(2, 3\)"):
        choose_qparams(weight, Scheme(), "minmax")
    with pytest.raises(NonFiniteError, match=r"1 of 40 numbers of the importance"):
        choose_qparams(WEIGHT, Scheme(), "mse", None, importance)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SchemeError, match="39"):
        choose_qparams(WEIGHT, Scheme(), "mse", mse.Options(), torch.ones(39))
    with pytest.raises(InternalError, match="negative"):
        choose_qparams(WEIGHT, Scheme(), "mse", None, -torch.ones(40))
    with pytest.raises(SchemeError, match="2 to 8 bits"):
        choose_qparams(WEIGHT, Scheme(bits=16), "minmax")
    with pytest.raises(SchemeError, match=r"\(0, 40\)"):
        choose_qparams(WEIGHT[:0], Scheme(), "minmax")
    with pytest.raises(RecipeError, match="did you mean 'minmax'"):
        choose_qparams(WEIGHT, Scheme(), "min_max")
