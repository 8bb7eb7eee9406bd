"""Every file in qparams/ranges/ is found and held to the same contract."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeropoint import find
from zeropoint.observe.histogram import Observer
from zeropoint.qparams.affine import fake_quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import split, split_columns
from zeropoint.types import Granularity, Histogram, Scheme

RULES = find.names("qparams.ranges")

KINDS = ["normal", "heavy tail", "zero", "constant", "one outlier", "one sided", "below zero", "bfloat16", "zero row"]
kinds = st.sampled_from(KINDS)
schemes = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    group_size=st.integers(1, 40),
    narrow=st.booleans(),
)


def make(rows: int, cols: int, kind: str, seed: int) -> Tensor:
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    if kind == "heavy tail":
        return x**5
    if kind in ("one sided", "below zero"):
        return x.abs() * (1 if kind == "one sided" else -1)
    if kind == "one outlier":
        x[0, -1] = 1000.0
    if kind == "zero row":
        x[0] = 0.0
    if kind == "constant":
        x[:] = -0.37
    return x.bfloat16() if kind == "bfloat16" else x * (kind != "zero")


def importance_of(cols: int, seed: int) -> Tensor:
    return torch.randn(cols, generator=torch.Generator().manual_seed(seed)).square()


def widest(scheme: Scheme) -> float:
    """How far a symmetric range may go beyond the largest value: until the last code is that value."""
    return (scheme.q_max - scheme.q_min) / 2 / scheme.q_max if scheme.symmetric else 1.0


def rule_options(rule: str) -> tuple[ModuleType, object]:
    module = find.load("qparams.ranges", rule)
    return module, module.Options()


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 60),
    kind=kinds,
    scheme=schemes,
    weighted=st.booleans(),
    power=st.sampled_from([-60, -1, 1, 60]),
    seed=st.integers(0, 99),
)
def test_ranges_contain_zero_stay_in_what_was_seen_and_scale_with_it(
    *, rule: str, rows: int, cols: int, kind: str, scheme: Scheme, weighted: bool, power: int, seed: int
) -> None:
    module, options = rule_options(rule)
    weight = make(rows, cols, kind, seed)
    importance = split_columns(importance_of(cols, seed), rows, scheme) if weighted else None
    grouped = split(weight, scheme)
    low, high = module.from_values(grouped, scheme, options, importance)
    assert low.shape == high.shape == grouped.values.shape[:2]
    assert low.dtype == high.dtype == torch.float32
    assert bool((low <= 0).all())
    assert bool((high >= 0).all())
    slack = widest(scheme) * (1 + 1e-6)
    assert bool((low >= grouped.values.float().amin(-1).clamp(max=0) * slack).all())
    assert bool((high <= grouped.values.float().amax(-1).clamp(min=0) * slack).all())
    scaled = module.from_values(split(weight.float() * 2.0**power, scheme), scheme, options, importance)
    assert torch.equal(scaled[0], low * 2.0**power)
    assert torch.equal(scaled[1], high * 2.0**power)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=12, deadline=None)
@given(
    kind=kinds,
    scheme=schemes,
    shift=st.sampled_from([0.0, 2.0, -50.0]),
    power=st.integers(-60, 60),
    seed=st.integers(0, 99),
)
def test_ranges_of_histograms_keep_the_same_contract(
    *, rule: str, kind: str, scheme: Scheme, shift: float, power: int, seed: int
) -> None:
    module, options = rule_options(rule)
    observer = Observer()
    observer.update(make(30, 20, kind, seed) + (shift if kind != "zero" else 0.0))
    one = observer.result()
    low, high = module.from_histogram(one, scheme, options)
    slack = widest(scheme) * (1 + 1e-6)
    assert slack * one.seen_low <= low <= 0 <= high <= one.seen_high * slack
    factor = 2.0**power
    scaled = dataclasses.replace(
        one,
        low=one.low * factor,
        width=one.width * factor,
        seen_low=one.seen_low * factor,
        seen_high=one.seen_high * factor,
    )
    assert module.from_histogram(scaled, scheme, options) == (low * factor, high * factor)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_all_zero_has_an_empty_range_and_comes_back_as_zero(rule: str, symmetric: bool) -> None:
    module, options = rule_options(rule)
    scheme, weight = Scheme(4, symmetric, "group", 8), make(3, 20, "normal", 0)
    weight[1], weight[:, 8:16] = 0.0, 0.0
    low, high = module.from_values(split(weight, scheme), scheme, options, None)
    zero = (split(weight, scheme).values == 0).all(-1)
    assert not bool(low[zero].any() or high[zero].any())
    back = fake_quantize(weight, from_range(low, high, scheme), scheme)
    assert not bool(back[weight == 0].any())
    nothing: Histogram = Observer().result()
    assert module.from_histogram(nothing, scheme, options) == (0.0, 0.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_a_weight_is_quantized_with_it_whatever_its_values(rule: str, kind: str, granularity: Granularity) -> None:
    weight = make(4, 40, kind, 0)
    for bits in (2, 4, 8):
        scheme = Scheme(bits, False, granularity, 16)
        qparams = choose_qparams(weight, scheme, rule, None, importance_of(40, 1))
        back = fake_quantize(weight, qparams, scheme)
        reach = weight.float().abs().max()
        assert bool(((back - weight.float()).abs() <= reach * (1 + 1e-6)).all())
        assert bool((back[weight == 0] == 0).all())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_know_nothing_of_each_other_and_the_input_is_left_alone(rule: str, symmetric: bool) -> None:
    module, options = rule_options(rule)
    scheme, weight = Scheme(4, symmetric, "group", 16), make(5, 40, "heavy tail", 0)
    importance = split_columns(importance_of(40, 1), 5, scheme)
    copies = weight.clone(), importance.clone()
    low, high = module.from_values(split(weight, scheme), scheme, options, importance)
    assert torch.equal(weight, copies[0])
    assert torch.equal(importance, copies[1])
    for row in range(5):
        alone = module.from_values(split(weight[row : row + 1], scheme), scheme, options, importance)
        assert torch.equal(alone[0], low[row : row + 1])
        assert torch.equal(alone[1], high[row : row + 1])


@pytest.mark.parametrize("rule", RULES)
def test_the_same_weight_gives_the_same_bits_on_any_number_of_threads(rule: str) -> None:
    weight, scheme = make(64, 640, "heavy tail", 5), Scheme(group_size=32)
    before, scales = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scales.append(choose_qparams(weight, scheme, rule, None, importance_of(640, 1)).scale)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(scales[0], scales[1])


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_needs_are_observers(rule: str) -> None:
    module, _ = rule_options(rule)
    assert isinstance(module.NEEDS, tuple)
    assert set(module.NEEDS) <= set(find.names("observe"))
