"""What finds integers natively, on every instruction set of this machine, against the same written with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import gptq_columns, range_search
from zeropoint import _native
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.grouping import split, split_columns
from zeropoint.qparams.ranges import mse
from zeropoint.rounding import gptq
from zeropoint.types import Granularity, Scheme


@pytest.fixture(params=_native.isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZEROPOINT_ISA", request.param)
    assert _native.isa() == request.param
    return str(request.param)


def heavy(*shape: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random) * torch.randn(shape, generator=random).abs() / 64


# rows in whole and in broken panels; groups in whole blocks of the sums, with a shorter last one, and of several levels
SHAPES: list[tuple[Granularity, int | None, int, int]] = [
    ("group", 64, 33, 192),
    ("group", 20, 5, 70),
    ("group", 7, 1, 50),
    ("channel", None, 18, 1000),
    ("channel", None, 1, 33),
    ("tensor", None, 9, 70),
]


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16", "float32"])
def test_ranges_are_those_of_the_search_with_torch(isa: str, bits: int, symmetric: bool, scale_dtype: str) -> None:
    for number, (granularity, size, rows, cols) in enumerate(SHAPES):
        for narrow in (False, True):
            scheme = Scheme(bits, symmetric, granularity, size, narrow, scale_dtype=scale_dtype)  # type: ignore[arg-type]
            weight = heavy(rows, cols, seed=number) * 2.0 ** (number * 7 - 24)
            weight[0] = 0
            importance = split_columns(heavy(cols, seed=number + 1).square(), rows, scheme)
            grouped = split(weight, scheme)
            for weights in (None, importance):
                low, high = mse.from_values(grouped, scheme, mse.Options(), weights)
                per_value = None if weights is None else weights / weights.amax(-1, keepdim=True)
                expected = range_search.search(grouped.values, per_value, scheme, grid=50, maxshrink=0.6, p=2.0)
                if low.numel() == 1:
                    continue  # torch adds what lies in one piece in an order of its own
                assert torch.equal(low, expected[0]), (granularity, weights is None)
                assert torch.equal(high, expected[1]), (granularity, weights is None)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("p", [0.3, 1.0, 2.0, 2.4, 16.0])
def test_errors_are_those_of_the_search_with_torch_whatever_the_power(isa: str, p: float, symmetric: bool) -> None:
    for granularity, size, rows, cols in SHAPES:
        scheme = Scheme(4, symmetric, granularity, size)
        grouped = split(heavy(rows, cols, seed=3), scheme)
        ends = mse.from_values(grouped, scheme, mse.Options(p=p))
        *_, least = range_search.search(grouped.values, None, scheme, grid=50, maxshrink=0.6, p=p)
        # float32 powers: a few ulp where the exponent is small, 1e-5 at the most
        assert torch.allclose(range_search.error(grouped.values, *ends, scheme, p=p), least, rtol=2e-5, atol=0)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_columns_are_those_of_the_loop_with_torch(isa: str, bits: int, symmetric: bool) -> None:
    for number, (granularity, size, rows, cols) in enumerate(SHAPES):
        scheme = Scheme(bits, symmetric, granularity, size)
        weight = heavy(rows, cols, seed=number)
        random = torch.Generator().manual_seed(number)
        order = torch.randperm(cols, generator=random)
        factor = torch.triu(torch.randn(cols, cols, generator=random) / cols) + torch.eye(cols)
        qparams = choose_qparams(weight, scheme, "minmax")
        for block in (1, 30, 128, 2000):
            found, expected = (
                columns(weight, order, factor, qparams, scheme, block)
                for columns in (gptq._round_columns, gptq_columns.round_columns)
            )
            assert torch.equal(found, expected), (granularity, rows, cols, block)


def test_every_instruction_set_finds_the_same_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    for p in (1.0, 2.0, 2.4):
        found = []
        for name in _native.isas():
            monkeypatch.setenv("ZEROPOINT_ISA", name)
            scheme = Scheme(4, False, "group", 48)
            found.append(mse.from_values(split(heavy(35, 100, seed=5), scheme), scheme, mse.Options(p=p)))
        for low, high in found[1:]:
            assert torch.equal(low, found[0][0])
            assert torch.equal(high, found[0][1])


def test_what_does_not_fit_together_is_refused() -> None:
    values, weights, ends = np.zeros((4, 2, 8), np.float32), np.ones((2, 8), np.float32), np.zeros((4, 2), np.float32)
    fractions = np.ones(1, np.float32)

    def search(**changed: object) -> None:
        given: dict[str, object] = {
            "values": values,
            "weights": weights,
            "both": fractions,
            "single": fractions,
            "low": ends,
            "high": ends.copy(),
            "q_min": -8,
            "q_max": 7,
            "symmetric": True,
            "stored": "bfloat16",
            "p": 2.0,
        }
        _native.search_ranges(**{**given, **changed})  # type: ignore[arg-type]

    search()
    for changed in (
        {"weights": np.ones((2, 7), np.float32)},
        {"low": np.zeros((4, 3), np.float32)},
        {"high": np.zeros((3, 2), np.float32)},
        {"q_min": -129},
        {"q_max": -8},
        {"stored": "float64"},
        {"p": 0.0},
    ):
        with pytest.raises(ValueError, match=r"must be|lie in|stored as|is positive"):
            search(**changed)

    def columns(**changed: object) -> None:
        given: dict[str, object] = {
            "w": np.zeros((2, 4), np.float32),
            "factor": np.eye(2, dtype=np.float32),
            "scale": np.ones((3, 4), np.float32),
            "zero": None,
            "group": np.zeros(2, np.int32),
            "codes": np.zeros((2, 4), np.int8),
            "q_min": -8,
            "q_max": 7,
        }
        _native.round_columns(**{**given, **changed})  # type: ignore[arg-type]

    columns()
    for changed in (
        {"factor": np.eye(3, dtype=np.float32)},
        {"codes": np.zeros((2, 5), np.int8)},
        {"scale": np.ones((3, 5), np.float32)},
        {"zero": np.ones((2, 4), np.float32)},
        {"group": np.zeros(3, np.int32)},
        {"group": np.full(2, 3, np.int32)},
        {"group": np.full(2, -1, np.int32)},
        {"q_max": 128},
    ):
        with pytest.raises(ValueError, match=r"must be|lie in|no such"):
            columns(**changed)
    with pytest.raises(ValueError, match="words must be"):
        _native.pack_codes(np.zeros((2, 9), np.int8), np.zeros((2, 1), np.int32), 4)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        _native.pack_codes(np.zeros((2, 9), np.int8), np.zeros((2, 1), np.int32), 1)
    with pytest.raises(ValueError, match="as many values"):
        _native.lost(np.zeros(3, np.float32), np.zeros(4, np.float32))
