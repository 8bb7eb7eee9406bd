"""Every file in observe/ that is a statistic is found and held to the same contract."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeropoint import find
from zeropoint.errors import NonFiniteError

OBSERVERS = find.names("observe")

kinds = st.sampled_from(["normal", "heavy tail", "zero", "one sided", "tiny", "one outlier"])


def tokens(count: int, cols: int, kind: str, seed: int) -> Tensor:
    x = torch.randn(count, cols, generator=torch.Generator().manual_seed(seed))
    if kind == "heavy tail":
        x = x**5
    if kind == "one sided":
        x = x.abs()
    if kind == "one outlier":
        x[seed % count, seed % cols] = -5000.0
    return x * {"zero": 0.0, "tiny": 1e-12}.get(kind, 1.0)


def observer(name: str) -> Any:
    return find.load("observe", name).Observer()


def seen(name: str, *batches: Tensor) -> Any:
    one = observer(name)
    for batch in batches:
        one.update(batch)
    return one


def assert_same(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    """Equal but for the rounding of float32 sums, relative to the largest number of each field."""
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        a, b = (torch.as_tensor(getattr(stats, field.name), dtype=torch.float64) for stats in (one, other))
        assert a.shape == b.shape, field.name
        assert bool(((a - b).abs() <= tolerance * b.abs().max()).all()) if b.numel() else True, field.name


@pytest.mark.parametrize("name", OBSERVERS)
@settings(max_examples=25, deadline=None)
@given(
    cols=st.integers(1, 20),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    kind=kinds,
    bfloat16=st.booleans(),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_split_batches_and_merges_in_any_order_are_one_batch(
    *,
    name: str,
    cols: int,
    lengths: list[int],
    kind: str,
    bfloat16: bool,
    seed: int,
    order: Any,
) -> None:
    x = tokens(sum(lengths), cols, kind, seed)
    x = x.bfloat16() if bfloat16 else x
    whole, batches = seen(name, x).result(), list(x.split(lengths))
    assert whole.count == len(x)
    assert_same(seen(name, *batches).result(), whole)
    order.shuffle(batches)
    first, *others = (seen(name, batch) for batch in batches)
    for other in others:
        first.merge(other)
    assert_same(first.result(), whole)


@pytest.mark.parametrize("name", OBSERVERS)
def test_merging_with_what_has_seen_nothing_changes_nothing(name: str) -> None:
    x = tokens(10, 4, "normal", 0)
    one, other = seen(name, x), observer(name)
    one.merge(observer(name))
    other.merge(seen(name, x))
    for merged in (one, other):
        assert_same(merged.result(), seen(name, x).result(), tolerance=0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_merging_leaves_the_other_as_it_was(name: str) -> None:
    one, other = observer(name), seen(name, tokens(10, 4, "normal", 0))
    before = copy.deepcopy(other).result()  # a result is the end of its observer
    one.merge(other)
    one.update(tokens(10, 4, "heavy tail", 1))
    assert_same(other.result(), before, tolerance=0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_bfloat16_activations_count_as_the_same_numbers_in_float32(name: str) -> None:
    x = tokens(64, 8, "heavy tail", 3).bfloat16()
    assert_same(seen(name, x).result(), seen(name, x.float()).result(), tolerance=0)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_zeros_and_single_tokens_are_as_good_as_others(name: str, shape: tuple[int, int]) -> None:
    for x in (torch.zeros(shape), torch.full(shape, -2.5)):
        result = seen(name, x).result()
        assert result.count == shape[0]
        for field in dataclasses.fields(result):
            assert bool(torch.isfinite(torch.as_tensor(getattr(result, field.name))).all())


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_are_refused_as_activations_and_leave_no_trace(
    name: str, bad: float, dtype: torch.dtype
) -> None:
    x = tokens(6, 4, "normal", 0)
    one, worse = seen(name, x), tokens(5, 4, "normal", 1).to(dtype)
    worse[3, 2] = bad
    with pytest.raises(NonFiniteError, match="activations"):
        one.update(worse)
    assert_same(one.result(), seen(name, x).result(), tolerance=0)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_result_does_not_change_when_more_is_seen_and_the_input_is_left_alone(name: str) -> None:
    x = tokens(6, 4, "normal", 0)
    untouched, one = x.clone(), observer(name)
    one.update(x)
    before, after = one.result(), seen(name, x).result()
    one.update(tokens(9, 4, "heavy tail", 1))
    assert_same(before, after, tolerance=0)
    assert torch.equal(x, untouched)


@pytest.mark.parametrize("name", OBSERVERS)
def test_memory_does_not_grow_with_the_number_of_batches(name: str) -> None:
    def held_bytes(one: Any) -> int:
        return sum(v.untyped_storage().nbytes() for v in vars(one).values() if isinstance(v, Tensor))

    one = seen(name, tokens(50, 8, "normal", 0))
    before, fields = held_bytes(one), set(vars(one))
    for seed in range(20):
        one.update(tokens(50, 8, "heavy tail", seed))
    assert held_bytes(one) == before
    assert set(vars(one)) == fields
    assert not any(isinstance(v, list | dict | set) for v in vars(one).values()), "a container can grow"


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_result_does_not_depend_on_the_number_of_threads(name: str) -> None:
    x, before, results = tokens(600, 96, "heavy tail", 0), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(seen(name, x).result())
    finally:
        torch.set_num_threads(before)
    assert_same(*results, tolerance=0)
