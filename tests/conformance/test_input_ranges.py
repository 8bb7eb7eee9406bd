"""Every rule that gives the range of an input is found, in either folder, and held to the same contract."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeropoint import find
from zeropoint.errors import InternalError
from zeropoint.qparams.choose_input import choose_input_range, input_rules, load_input_rule, needs
from zeropoint.qparams.inputs import input_params, round_input
from zeropoint.types import Histogram, InputRange, InputScheme, Stats

RULES = input_rules()
schemes = st.builds(InputScheme, bits=st.just(8), dynamic=st.just(False), symmetric=st.booleans())
kinds = st.sampled_from(["normal", "heavy tail", "one sided", "below zero", "massive token"])


def tokens(count: int, cols: int, kind: str, seed: int) -> Tensor:
    x = torch.randn(count, cols, generator=torch.Generator().manual_seed(seed))
    if kind == "heavy tail":
        return x**5
    if kind in ("one sided", "below zero"):
        return x.abs() * (1 if kind == "one sided" else -1)
    if kind == "massive token":
        x[0, 0] = 3000.0
    return x


def observed(rule: str, *batches: Tensor) -> dict[str, Stats]:
    found: dict[str, Stats] = {}
    for name in needs(rule):
        observer = find.load("observe", name).Observer()
        for batch in batches:
            observer.update(batch)
        found[name] = observer.result()
    return found


def chosen(rule: str, scheme: InputScheme, *batches: Tensor) -> InputRange:
    weight = torch.randn(3, batches[0].shape[1], generator=torch.Generator().manual_seed(1))
    return choose_input_range(observed(rule, *batches), rule, None, scheme, [weight])


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=4, deadline=None)
@given(scheme=schemes, kind=kinds, seed=st.integers(0, 99), cut=st.integers(1, 299))
def test_ranges_contain_zero_stay_in_what_was_seen_and_know_no_batches(
    *, rule: str, scheme: InputScheme, kind: str, seed: int, cut: int
) -> None:
    x = tokens(300, 12, kind, seed)
    found = chosen(rule, scheme, x)
    slack = 127.5 / 127 * (1 + 1e-6)  # half a step, where the symmetric grid lacks it
    assert slack * min(float(x.min()), 0.0) <= found.low <= 0 <= found.high <= slack * max(float(x.max()), 0.0)
    assert (found.low, found.high) in [(one.low, one.high) for one in found.candidates]
    assert found.rule in RULES
    assert chosen(rule, scheme, x[cut:], x[:cut]) == found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_nothing_at_all_have_an_empty_range(rule: str, symmetric: bool) -> None:
    scheme = InputScheme(dynamic=False, symmetric=symmetric)
    for x in (torch.zeros(5, 4), torch.zeros(0, 4)):
        found = chosen(rule, scheme, x)
        assert (found.low, found.high) == (0.0, 0.0)
        assert not round_input(torch.zeros(1, 4), input_params(found.low, found.high, scheme)).any()


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=2, deadline=None)
@given(power=st.integers(-30, 30), symmetric=st.booleans())
def test_ranges_scale_with_the_statistics(rule: str, power: int, symmetric: bool) -> None:
    scheme = InputScheme(dynamic=False, symmetric=symmetric)
    stats, weights = observed(rule, tokens(400, 8, "heavy tail", 3)), [torch.eye(8)]
    scaled = {name: _times(stat, 2.0**power) for name, stat in stats.items()}
    one, other = (choose_input_range(each, rule, None, scheme, weights) for each in (stats, scaled))
    assert (other.low, other.high) == (one.low * 2.0**power, one.high * 2.0**power)


def _times(stats: Stats, factor: float) -> Stats:
    fields = {"low", "high", "seen_low", "seen_high", "width", "rows", "values"}
    named = {field.name: getattr(stats, field.name) for field in dataclasses.fields(stats)}
    return dataclasses.replace(stats, **{name: value * factor for name, value in named.items() if name in fields})


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_needs_are_observers_and_missing_statistics_are_named(rule: str) -> None:
    assert needs(rule) <= set(find.names("observe"))
    assert load_input_rule(rule).Options() == load_input_rule(rule).Options()
    with pytest.raises(InternalError, match="needs the statistics"):
        choose_input_range({}, rule, None, InputScheme(dynamic=False), [torch.eye(2)])


def test_the_statistics_of_a_histogram_are_the_only_ones_that_rules_of_weights_want() -> None:
    assert all(needs(rule) == {"histogram"} for rule in find.names("qparams.ranges"))
    assert isinstance(observed("mse", torch.ones(1, 1))["histogram"], Histogram)
