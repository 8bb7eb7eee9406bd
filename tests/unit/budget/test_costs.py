"""Forecasts, curves and choices, of costs that are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint.budget.costs import Costs, Limits, knee
from zeropoint.evaluation.budgets import CurvePoint, FormCost, Sensitivities, UniformCheck, UnitCosts

FORMS = (("int3", 3, 0.3), ("int4", 4, 0.05), ("int8", 8, 0.0001), ("float", None, 0.0))


def unit(name: str, weights: int, dear: float) -> UnitCosts:
    sizes = {3: 3, 4: 4, 8: 8, None: 32}
    return UnitCosts(
        names=(name,),
        weights=weights,
        forms=tuple(
            FormCost(form=form, bits=bits, size_bytes=weights * sizes[bits] // 8, kl=dear * kl)
            for form, bits, kl in FORMS
        ),
    )


def found(*, measured: float = 1.5, tables: bool = False) -> Sensitivities:
    """Ten units, each dearer than the one before; whole models lose `measured` times what the sum says."""
    units = tuple(unit(f"layer.{k}", 800, 2.0**k / 1024) for k in range(10))
    sums = {form: sum(f.kl for u in units for f in u.forms if f.form == form) for form, *_ in FORMS}
    return Sensitivities(
        zeropoint="0",
        model="m",
        recipe={},
        units=units,
        tables=unit("embed", 400, 0.01) if tables else None,
        checks=tuple(
            UniformCheck(form=form, expected=kl, measured=measured * kl) for form, kl in sums.items() if form != "float"
        ),
        rest_bytes=100,
        source_bytes=100 + 10 * 3200,
        fisher_tokens=1,
        tokens=1,
        check_tokens=1,
        elapsed_s=0.0,
    )


def test_a_forecast_is_what_whole_models_measured() -> None:
    costs = Costs(found(measured=1.5))
    assert costs.forecast(0.1) == pytest.approx(0.15)
    assert costs.forecast(0.1, factor=2) == pytest.approx(0.3)
    assert costs.forecast(0.0) == 0.0
    assert costs.spread == pytest.approx((1.0, 1.0))


def test_without_checks_the_sum_is_the_forecast() -> None:
    import msgspec

    costs = Costs(msgspec.structs.replace(found(), checks=()))
    assert costs.forecast(0.1) == pytest.approx(0.1)
    assert costs.spread == (0.5, 2.0)


@settings(deadline=None)
@given(st.floats(1e-8, 10), st.floats(0.2, 5))
def test_sum_of_is_the_inverse_of_the_forecast(kl: float, factor: float) -> None:
    costs = Costs(found(measured=0.7))
    assert costs.forecast(costs.sum_of(kl, factor=factor), factor=factor) == pytest.approx(kl, rel=1e-3)


def test_the_dear_get_more_bits_and_the_limit_holds() -> None:
    costs = Costs(found())
    limit = 100 + 10 * 400  # as 4 bits everywhere
    forms = costs.best(Limits(size_bytes=limit))
    assert forms is not None
    bits = [form.bits or 32 for form in forms]
    assert bits == sorted(bits)
    assert len(set(bits)) > 1
    point = costs.point(forms)
    assert point.size_bytes <= limit
    uniform = costs.point([next(f for f in u.forms if f.form == "int4") for u in found().units])
    assert point.kl < uniform.kl
    assert sum(point.forms.values()) == 8000


def test_the_smallest_within_a_loss_is_no_larger_than_any_that_keeps_it() -> None:
    costs = Costs(found())
    for point in costs.curve():
        smallest = costs.smallest(Limits(kl=point.kl * 1.0001))
        assert smallest is not None
        assert costs.point(smallest).size_bytes <= point.size_bytes
        assert costs.point(smallest).kl <= point.kl * 1.001


def test_a_limit_of_bits_counts_linears_and_not_the_tables() -> None:
    costs = Costs(found(tables=True))
    forms = costs.best(Limits(bits=4.5))
    assert forms is not None
    point = costs.point(forms)
    assert point.bits <= 4.5
    assert point.embeddings == "float"  # bytes of tables are free here


def test_what_is_not_possible_is_none() -> None:
    costs = Costs(found())
    assert costs.best(Limits(size_bytes=100)) is None
    assert costs.smallest(Limits(kl=1e-9, bits=3.5)) is None


def test_the_curve_falls_and_has_both_ends() -> None:
    points = Costs(found()).curve()
    sizes, losses = [p.size_bytes for p in points], [p.kl for p in points]
    assert sizes == sorted(set(sizes))
    assert losses == sorted(losses, reverse=True)
    assert sizes[0] == 100 + 10 * 300
    assert (sizes[-1], losses[-1]) == (100 + 10 * 3200, 0.0)


def test_the_knee_is_where_the_curve_bends() -> None:
    def point(size: int, kl: float) -> CurvePoint:
        return CurvePoint(size_bytes=size, bits=4, kl=kl, kl_low=kl, kl_high=kl, forms={}, embeddings="stored")

    bent = [point(10, 1.0), point(20, 0.1), point(30, 0.01), point(100, 0.009), point(300, 0.008)]
    assert knee(bent) == 2
    assert knee(bent[:1]) == 0
    assert math.isfinite(knee([*bent, point(400, 0.0)]))
