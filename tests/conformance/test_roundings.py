"""Every file in rounding/ is found and held to the same contract."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unit.rounding.test_gptq import inputs
from zeropoint import find
from zeropoint.observe.shadow import DRIFT
from zeropoint.qparams.choose import choose_qparams
from zeropoint.rounding.ladder import Rounded, round_weight
from zeropoint.types import Drift, Scheme, Stats

METHODS = find.names("rounding")
TWO_LEVELS = Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256)


def statistics(method: str, x: Tensor) -> dict[str, Stats]:
    """What the method needs of the input x (tokens, cols), and the second moment that all of them are judged by."""
    names = {"second_moment", *need(method)} - {DRIFT}
    observers = {name: find.load("observe", name).Observer() for name in names}
    for observer in observers.values():
        observer.update(x)
    found: dict[str, Stats] = {name: observer.result() for name, observer in observers.items()}
    if DRIFT in need(method):  # as if the layers below had halved the input and turned it a little
        original = 2 * x + 0.1 * x.roll(1, dims=1)
        found[DRIFT] = Drift((original - x).T @ x / max(1, len(x)), len(x))
    return found


def need(method: str) -> tuple[str, ...]:
    names: tuple[str, ...] = find.load("rounding", method).NEEDS
    return names


def round_it(method: str, weight: Tensor, stats: dict[str, Stats], scheme: Scheme) -> Rounded:
    module = find.load("rounding", method)
    qparams = choose_qparams(weight, scheme, "minmax", None)
    return round_weight(weight, qparams, scheme, stats, method, module.Options())


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    cols=st.integers(1, 70),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([1, 8, 32, 64, None]),
    kind=st.sampled_from(["normal", "zero", "constant", "one outlier", "tiny", "huge"]),
    tokens=st.sampled_from([1, 3, 200]),
    dead=st.booleans(),
    seed=st.integers(0, 99),
)
def test_codes_are_in_range_and_no_worse_than_nearest(
    method: str,
    rows: int,
    cols: int,
    bits: int,
    symmetric: bool,
    group_size: int | None,
    kind: str,
    tokens: int,
    dead: bool,
    seed: int,
) -> None:
    scheme = Scheme(bits, symmetric, "channel" if group_size is None else "group", group_size)
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    if kind == "one outlier":
        weight[0, -1] = 1000.0
    weight *= {"zero": 0.0, "tiny": 1e-30, "huge": 1e15}.get(kind, 1.0)
    if kind == "constant":
        weight[:] = -0.37
    x = inputs(cols, tokens=tokens, seed=seed)
    if dead:
        x[:, 0] = 0
    stats = statistics(method, x)
    got = round_it(method, weight, stats, scheme)
    assert got.qtensor.codes.dtype == torch.int8
    assert got.qtensor.shape == (rows, cols)
    assert int(got.qtensor.codes.min()) >= scheme.q_min
    assert int(got.qtensor.codes.max()) <= scheme.q_max
    assert 0 <= got.error <= round_it("rtn", weight, stats, scheme).error
    if kind == "zero":
        assert got.error == 0


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 12),
    supers=st.integers(1, 2),
    kind=st.sampled_from(["normal", "zero", "one outlier", "tiny", "huge"]),
    seed=st.integers(0, 99),
)
def test_on_two_levels_too(method: str, rows: int, supers: int, kind: str, seed: int) -> None:
    weight = torch.randn(rows, 256 * supers, generator=torch.Generator().manual_seed(seed))
    if kind == "one outlier":
        weight[0, -1] = 1000.0
    weight *= {"zero": 0.0, "tiny": 1e-30, "huge": 1e4}.get(kind, 1.0)
    stats = statistics(method, inputs(256 * supers, tokens=300, seed=seed))
    got = round_it(method, weight, stats, TWO_LEVELS)
    assert got.qtensor.shape == weight.shape
    assert int(got.qtensor.codes.min()) >= -8
    assert int(got.qtensor.codes.max()) <= 7
    assert 0 <= got.error <= round_it("rtn", weight, stats, TWO_LEVELS).error
    if kind == "zero":
        assert got.error == 0
    if kind == "normal":
        assert got.rounding == method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [Scheme(group_size=32), TWO_LEVELS], ids=Scheme.label)
def test_the_same_input_gives_the_same_bits_on_any_number_of_threads(method: str, scheme: Scheme) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    before = torch.get_num_threads()
    stats = statistics(method, inputs(256))
    codes = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            codes.append(round_it(method, weight, stats, scheme).qtensor.codes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("method", METHODS)
def test_the_weight_and_the_statistics_are_left_as_they_were(method: str) -> None:
    weight, stats = torch.randn(8, 64, generator=torch.Generator().manual_seed(5)), statistics(method, inputs(64))
    copies = deepcopy((weight, stats))
    round_it(method, weight, stats, Scheme(group_size=32))
    assert torch.equal(weight, copies[0])
    for name, kept in copies[1].items():
        assert all(torch.equal(*pair) for pair in zip(_tensors(stats[name]), _tensors(kept), strict=True))


def _tensors(stats: Stats) -> list[Tensor]:
    return [value for value in vars(stats).values() if isinstance(value, Tensor)]
