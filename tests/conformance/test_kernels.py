"""Every instruction set that this machine has, held to the same contract: the linears equal the literal ones.

Sums are float32 in an order that the layout fixes (native/kernels.h), so that instruction sets, numbers of threads and
numbers of rows change no bit; against the float64 reference the tolerance is that of float32 sums.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import zeropoint
from reference.integer_linear import (
    fixed_codes,
    integer_linear,
    restored,
    rounded,
    stream_of_bits,
    token_codes,
)
from zeropoint import _native

ISAS = _native.isas()
POOLS = {threads: _native.Pool(threads) for threads in (1, 2, 3)}
Array = NDArray[np.float32]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZEROPOINT_ISA", request.param)
    assert _native.isa() == request.param
    return str(request.param)


@pytest.fixture
def every_isa(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each in turn, inside one test."""

    def turns() -> Iterator[str]:
        for name in ISAS:
            monkeypatch.setenv("ZEROPOINT_ISA", name)
            yield name

    return turns()


@dataclass(frozen=True)
class Made:
    """A weight in panels, and the values it stands for."""

    weight: _native.Weight
    values: NDArray[np.float64]


def make_codes(
    bits: int,
    rows: int,
    cols: int,
    group: int,
    *,
    zeros: bool,
    halves: bool = True,
    seed: int = 0,
    extreme: bool = False,
) -> Made:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (rows, cols))
    if extreme:
        codes[:] = (1 << bits) - 1
    groups = 1 if group >= cols else -(-cols // group)
    scale = ((random.random((rows, groups)) + 0.5) / 100).astype(np.float32)
    if halves:
        scale = (scale.view(np.uint32) & 0xFFFF0000).view(np.float32)
    zero = random.integers(0, 1 << bits, (rows, groups)).astype(np.uint8) if zeros else None
    weight = _native.codes_weight(bits, rows, cols, group, halves, zeros)
    weight.put_codes(POOLS[2], 0, stream_of_bits(codes, bits), scale, zero)
    middle = np.full((rows, groups), 1 << (bits - 1))
    return Made(weight, restored(codes, scale, middle if zero is None else zero, group))


def run(weight: _native.Weight, x: Array, *, how: str = "blocks", threads: int = 2) -> Array:
    """The linear of x; how: its inputs are rounded, in 0.02 where the scale is fixed, or "floats"."""
    y = np.zeros((len(x), weight.rows), np.float32)
    if how == "floats":
        _native.linear(POOLS[threads], weight, x, y, True)
    else:
        _native.linear(POOLS[threads], weight, x, y, kind=how, scale=0.02)
    return y


def inputs(rows: int, cols: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def close(found: Array, expected: NDArray[np.float64]) -> bool:
    # float32 sums of up to a few hundred terms of either sign
    return bool(np.allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max() + 1e-7))


SHAPES = [(40, 96, 32), (17, 576, 64), (33, 200, 64), (16, 320, 128), (50, 100, 1000), (16, 192, 96), (1, 32, 32)]


@pytest.mark.parametrize("zeros", [False, True], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_linears_equal_the_reference(isa: str, bits: int, zeros: bool) -> None:
    for rows, cols, group in SHAPES:
        made = make_codes(bits, rows, cols, group, zeros=zeros, halves=cols != 200)
        for tokens in (1, 2, 5, 8, 9, 13):
            x = inputs(tokens, cols)
            assert close(run(made.weight, x), rounded(x, made.weight.block) @ made.values.T), (
                rows,
                cols,
                group,
                tokens,
            )
            assert close(run(made.weight, x, how="floats"), x.astype(np.float64) @ made.values.T)


def in_integers(x: Array, block: int, **how: Any) -> tuple[NDArray[np.int8], Array, NDArray[np.int32]]:
    """The integers of x without those past its columns, the scales and the sums of its blocks."""
    rows, cols = x.shape
    padded = -(-cols // _native.CHUNK) * _native.CHUNK
    blocks = -(-padded // block)
    q = np.full((rows, padded), 99, np.int8)
    scales, sums = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.int32)
    _native.quantize(x, q, scales, sums, block, **how)
    assert not q[:, cols:].any()
    assert np.array_equal(sums.sum(1), q.sum(1, dtype=np.int64))
    return q[:, :cols], scales, sums


def edge_cases(cols: int) -> Array:
    """Rows of many magnitudes; ties; zeros; a row that reaches -127.5 steps; numbers without a leading 1."""
    x = inputs(9, cols) * np.float32(10) ** np.arange(-4, 5, dtype=np.float32)[:, None]
    x[1] = np.rint(x[1]) + np.float32(0.5)
    x[2] = 0
    x[3, ::2], x[3, 1::2] = -127.5, 0.5
    x[4] = np.float32(1e-45)
    x[5] = np.float32(1e-40) * np.arange(cols)
    return x


@pytest.mark.parametrize("cols", [1, 31, 32, 100, 576])
def test_declared_roundings_give_their_integers_exactly(isa: str, cols: int) -> None:
    x = edge_cases(cols)
    for block in (32, 64, 1024):
        q, scales, _ = in_integers(x, block, kind="token")
        expected, scale = token_codes(x)
        assert np.array_equal(q, expected)
        assert np.array_equal(scales, np.repeat(scale.astype(np.float32), scales.shape[1], axis=1))
        for step, zero in ((0.05, 0), (0.3, -128), (0.007, 127), (1.0, 17)):
            q, scales, _ = in_integers(x, block, kind="fixed", scale=step, zero=zero)
            assert np.array_equal(q, fixed_codes(x, step, zero))
            assert (scales == np.float32(step)).all()


@pytest.mark.parametrize("zeros", [False, True], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", [4, 8])
def test_declared_linears_are_the_identity_in_integers(isa: str, bits: int, zeros: bool) -> None:
    random = np.random.default_rng(bits)
    for rows, cols in ((40, 96), (17, 576), (33, 200), (16, 32)):
        codes = random.integers(0, 1 << bits, (rows, cols))
        w_scale = ((random.random((rows, 1)) + 0.5) / 100).astype(np.float32)
        w_zero = random.integers(0, 1 << bits, (rows, 1)).astype(np.uint8)
        weight = _native.codes_weight(bits, rows, cols, cols, False, zeros)
        weight.put_codes(POOLS[2], 0, stream_of_bits(codes, bits), w_scale, w_zero if zeros else None)
        middle = w_zero if zeros else np.full((rows, 1), 1 << (bits - 1))
        sums = (codes - middle.astype(np.int64)).sum(1) * w_scale[:, 0].astype(np.float64)
        for tokens in (1, 3, 8, 13):
            x = inputs(tokens, cols)
            x[0, 0] = -np.abs(x).max()  # reaches -128
            q, scale = token_codes(x)
            expected = integer_linear(q, 0, scale, codes, middle, w_scale)
            y = np.zeros((tokens, rows), np.float32)
            _native.linear(POOLS[2], weight, x, y, kind="token")
            assert close(y, expected)
            q = fixed_codes(x, 0.02, -40)
            expected = integer_linear(q, -40, float(np.float32(0.02)), codes, middle, w_scale)
            _native.linear(POOLS[2], weight, x, y, kind="fixed", scale=0.02, zero=-40)
            # what is added back is as large as the products: the tolerance is of that
            shift = float(np.float32(0.02)) * 40 * sums
            error = np.abs(y + shift - expected).max()
            assert error <= 3e-6 * max(np.abs(expected).max(), np.abs(shift).max())


@pytest.mark.parametrize("zeros", [False, True], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", [4, 8])
def test_declared_linears_round_each_sum_once(isa: str, bits: int, zeros: bool) -> None:
    random = np.random.default_rng(bits)
    for rows, cols in ((17, 576), (5, 2500)):  # more columns than the weights that AVX2 unpacks at once
        codes = random.integers(0, 1 << bits, (rows, cols))
        w_scale = ((random.random((rows, 1)) + 0.5) / 100).astype(np.float32)
        w_zero = random.integers(0, 1 << bits, (rows, 1)).astype(np.uint8)
        weight = _native.codes_weight(bits, rows, cols, cols, False, zeros)
        weight.put_codes(POOLS[2], 0, stream_of_bits(codes, bits), w_scale, w_zero if zeros else None)
        middle = w_zero if zeros else np.full((rows, 1), 1 << (bits - 1))
        for tokens in (1, 8, 9, 71):
            x = inputs(tokens, cols)
            q, scale = token_codes(x)
            dots = q.astype(np.int64) @ (codes - middle.astype(np.int64)).T
            expected = dots.astype(np.float32) * (scale.astype(np.float32) * w_scale[:, 0])
            assert np.array_equal(run(weight, x, how="token"), expected)


def test_sums_that_int32_might_not_hold_are_cut() -> None:
    made = make_codes(8, 1, 70_000, 70_000, zeros=True, extreme=True)
    assert made.weight.declared_block == made.weight.block
    x = np.ones((9, 70_000), np.float32)
    x[1::2] = -1
    expected = x.astype(np.float64) @ made.values.T  # 1 is 50 steps of 0.02
    # 1,094 blocks of one sign: each addition rounds by half a unit
    assert np.allclose(run(made.weight, x, how="fixed"), expected, rtol=1094 * 2.0**-24, atol=0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_codes_and_activations_do_not_saturate(isa: str, bits: int) -> None:
    made = make_codes(bits, 16, 576, 64, zeros=True, extreme=True)
    x = np.ones((9, 576), np.float32)
    x[1::2] = -1
    for tokens in (1, 9):
        assert close(run(made.weight, x[:tokens]), x[:tokens].astype(np.float64) @ made.values.T)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 50),
    cols=st.integers(1, 300),
    group=st.sampled_from([32, 64, 96, 128, 100_000]),
    tokens=st.integers(1, 24),
    zeros=st.booleans(),
    halves=st.booleans(),
    how=st.sampled_from(["floats", "blocks", "token", "fixed"]),
)
def test_neither_isa_nor_threads_nor_other_rows_change_a_bit(
    bits: int, rows: int, cols: int, group: int, tokens: int, zeros: bool, halves: bool, how: str
) -> None:
    made = make_codes(bits, rows, cols, group, zeros=zeros, halves=halves, seed=cols)
    x = inputs(tokens, cols)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ISAS:
            patch.setenv("ZEROPOINT_ISA", name)
            found += [run(made.weight, x, how=how, threads=threads) for threads in POOLS]
            found.append(np.concatenate([run(made.weight, row[None], how=how) for row in x]))
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("halves", [False, True], ids=["float32", "bfloat16"])
def test_float_linears_equal_the_reference(isa: str, halves: bool) -> None:
    for rows, cols in ((40, 96), (17, 577), (1, 3)):
        values = inputs(rows, cols, seed=5)
        weight = _native.float_weight(halves, rows, cols)
        if halves:
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            values = (bits.astype(np.uint32) << 16).view(np.float32)
            weight.put_bf16(POOLS[2], 0, bits)
        else:
            weight.put_f32(POOLS[2], 0, values)
        for tokens in (1, 6, 7, 20):
            x = inputs(tokens, cols)
            assert close(run(weight, x), x.astype(np.float64) @ values.astype(np.float64).T)


def test_arrays_need_not_be_aligned(isa: str) -> None:
    made = make_codes(4, 16, 64, 32, zeros=False)
    memory = np.zeros(4 * 64 * 9 + 1, np.uint8)
    x = memory[1:].view(np.float32).reshape(9, 64)
    x[:] = inputs(9, 64)
    assert x.ctypes.data % 4
    assert np.array_equal(run(made.weight, x), run(made.weight, x.copy()))


def test_rows_come_back_as_they_were_put_in_slabs() -> None:
    values = inputs(40, 70)
    weight = _native.codes_weight(8, 40, 70, 70, False, False)
    for start in (0, 16, 32):
        weight.round_f32(POOLS[2], start, values[start : start + 16])
    row = np.zeros(70, np.float32)
    for index in (0, 15, 16, 39):
        weight.read_row(index, row)
        # half a step of the row's own grid
        assert np.abs(row - values[index]).max() <= np.abs(values[index]).max() / 127 * 0.5001
    exact = _native.float_weight(False, 40, 70)
    exact.put_f32(POOLS[1], 0, values)
    exact.read_row(33, row)
    assert np.array_equal(row, values[33])


def test_a_block_of_zeros_stays_zero(every_isa: Iterator[str]) -> None:
    made = make_codes(4, 16, 128, 64, zeros=True)
    x = inputs(3, 128)
    x[:, :64] = 0
    x[1] = 0
    for _ in every_isa:
        found = run(made.weight, x)
        assert not found[1].any()
        assert close(found, rounded(x, 64) @ made.values.T)


WRONG: list[tuple[str, Any]] = [
    ("float64", lambda x, y: (x.astype(np.float64), y)),
    ("one dimension", lambda x, y: (x[0], y)),
    ("not contiguous", lambda x, y: (x[:, ::2], y)),
    ("too few columns", lambda x, y: (np.ascontiguousarray(x[:, :32]), y)),
    ("y of another height", lambda x, y: (x, y[:1])),
    ("a list", lambda x, y: (x.tolist(), y)),
]


@pytest.mark.parametrize(("what", "spoil"), WRONG, ids=[what for what, _ in WRONG])
def test_arrays_of_another_kind_are_refused(what: str, spoil: Any) -> None:
    made = make_codes(4, 16, 64, 32, zeros=False)
    with pytest.raises((TypeError, ValueError)):
        _native.linear(POOLS[1], made.weight, *spoil(inputs(2, 64), np.zeros((2, 16), np.float32)))


def test_rows_outside_a_weight_are_refused() -> None:
    weight = _native.float_weight(False, 40, 8)
    for first, count in ((8, 16), (32, 16), (-16, 16), (0, 10), (48, 1)):
        with pytest.raises(ValueError, match="row"):
            weight.put_f32(POOLS[1], first, np.zeros((count, 8), np.float32))


def test_an_isa_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROPOINT_ISA", "mmx")
    with pytest.raises(ValueError, match=f"ZEROPOINT_ISA is 'mmx'; this machine has {', '.join(ISAS)}"):
        _native.isa()


def test_the_stub_names_what_the_module_has() -> None:
    stub = ast.parse((Path(zeropoint.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
    named = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert set(named) | {"CHUNK", "PANEL"} == {name for name in dir(_native) if not name.startswith("_")}
    for name, node in named.items():
        if isinstance(node, ast.ClassDef):
            members = {part.name for part in node.body if isinstance(part, ast.FunctionDef)} - {"__init__"}
            assert members == {part for part in vars(getattr(_native, name)) if not part.startswith("_")}, name
