from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zeropoint.errors import InternalError, SchemeError
from zeropoint.formats.bits import pack, unpack, unpack_array, words

BITS = range(2, 9)


def random_codes(rows: int, cols: int, bits: int, seed: int) -> Tensor:
    half = 1 << (bits - 1)
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-half, half, (rows, cols), generator=random, dtype=torch.int8)


def as_one_integer(row: list[int], bits: int) -> int:
    """The definition: the codes of a row, made unsigned, one after the other from the lowest bit."""
    return sum((code + (1 << (bits - 1))) << (index * bits) for index, code in enumerate(row))


matrices = st.tuples(st.integers(0, 9), st.integers(0, 75), st.sampled_from(BITS), st.integers(0, 10_000))


@settings(max_examples=200, deadline=None)
@given(matrices, st.sampled_from([0, 1]))
def test_unpacking_gives_back_the_codes(matrix: tuple[int, int, int, int], dim: int) -> None:
    rows, cols, bits, seed = matrix
    codes = random_codes(rows, cols, bits, seed)
    packed = pack(codes, bits, dim=dim)
    assert packed.dtype == torch.int32
    assert packed.is_contiguous()
    assert packed.shape[dim] == words(codes.shape[dim], bits)
    back = unpack(packed, bits, codes.shape[dim], dim=dim)
    assert back.dtype == torch.int8
    assert back.is_contiguous()
    assert torch.equal(back, codes)


@settings(max_examples=100, deadline=None)
@given(matrices)
def test_a_row_is_one_stream_of_bits_with_zeros_at_its_end(matrix: tuple[int, int, int, int]) -> None:
    rows, cols, bits, seed = matrix
    codes = random_codes(rows, cols, bits, seed)
    for row, stream in zip(codes.tolist(), pack(codes, bits).tolist(), strict=True):
        stored = sum((word % (1 << 32)) << (32 * index) for index, word in enumerate(stream))
        assert stored == as_one_integer(row, bits)


@settings(max_examples=50, deadline=None)
@given(matrices)
def test_packing_along_columns_is_packing_the_transposed_matrix(matrix: tuple[int, int, int, int]) -> None:
    rows, cols, bits, seed = matrix
    codes = random_codes(rows, cols, bits, seed)
    assert torch.equal(pack(codes, bits, dim=0), pack(codes.T, bits).T)
    assert torch.equal(unpack(pack(codes.T, bits).T, bits, rows, dim=0), codes)


def test_four_bit_codes_fill_a_word_from_its_lowest_bits() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).reshape(1, 16)
    assert [f"{word % (1 << 32):08x}" for word in pack(codes, 4)[0].tolist()] == ["76543210", "fedcba98"]


def test_the_eleventh_three_bit_code_straddles_two_words() -> None:
    codes = torch.full((1, 11), -4, dtype=torch.int8)
    codes[0, 10] = 3
    assert [word % (1 << 32) for word in pack(codes, 3)[0].tolist()] == [0b11 << 30, 0b1]


@pytest.mark.parametrize("bits", BITS)
def test_the_extremes_of_the_grid_survive(bits: int) -> None:
    half = 1 << (bits - 1)
    codes = torch.tensor([[-half, half - 1, -1, 0, -half, half - 1, half - 1, -half, half - 1]], dtype=torch.int8)
    assert torch.equal(unpack(pack(codes, bits), bits, 9), codes)


@pytest.mark.parametrize(
    ("size", "bits", "expected"), [(0, 4, 0), (8, 4, 1), (9, 4, 2), (32, 3, 3), (33, 3, 4), (1, 2, 1)]
)
def test_words_are_counted_without_bits_wasted_between_codes(size: int, bits: int, expected: int) -> None:
    assert words(size, bits) == expected


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_outside_two_to_eight_are_refused(bits: int) -> None:
    codes = torch.zeros(1, 8, dtype=torch.int8)
    with pytest.raises(SchemeError, match=f"{bits} bits"):
        pack(codes, bits)
    with pytest.raises(SchemeError, match=f"{bits} bits"):
        unpack(torch.zeros(1, 1, dtype=torch.int32), bits, 8)


@pytest.mark.parametrize("code", [-9, 8])
def test_a_code_that_would_change_its_neighbour_is_refused(code: int) -> None:
    with pytest.raises(InternalError, match=r"outside 4 bits \[-8, 7\]"):
        pack(torch.tensor([[0, code, 0]], dtype=torch.int8), 4)


@pytest.mark.parametrize("codes", [torch.zeros(1, 8), torch.zeros(8, dtype=torch.int8), torch.zeros(1, 8).int()])
def test_only_an_int8_matrix_is_packed(codes: Tensor) -> None:
    with pytest.raises(InternalError, match="int8 matrix"):
        pack(codes, 4)


@pytest.mark.parametrize(
    ("packed", "dim"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), 1),
        (torch.zeros(3, 2, dtype=torch.int32), 0),
        (torch.zeros(2, 2, dtype=torch.int64), 1),
        (torch.zeros(2, dtype=torch.int32), 0),
    ],
)
def test_words_that_do_not_hold_so_many_codes_are_refused(packed: Tensor, dim: int) -> None:
    with pytest.raises(SchemeError, match="16 codes of 4 bits are 2 words"):
        unpack(packed, 4, 16, dim=dim)


class LargestTensor(TorchFunctionMode):
    """Remembers the size of the largest tensor that any function of torch returned."""

    largest_bytes = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.largest_bytes = max(self.largest_bytes, made.numel() * made.element_size())
        return made


@pytest.mark.parametrize("bits", BITS)
def test_packing_makes_nothing_larger_than_the_codes_on_the_way(bits: int) -> None:
    codes = random_codes(32, 256, bits, seed=0)
    with LargestTensor() as seen:
        pack(codes, bits)
    assert seen.largest_bytes == codes.nbytes


@pytest.mark.parametrize("bits", BITS)
def test_unpacking_needs_the_words_again_beside_the_codes(bits: int) -> None:
    packed = pack(random_codes(256, 1024, bits, seed=0), bits)
    tracemalloc.start()
    try:
        codes = unpack_array(packed.numpy(), bits, 1024)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # two values of one code in eight are under way, and numpy's buffers
    assert most_bytes < codes.nbytes + packed.nbytes + 3 * codes.nbytes // 8 + 20_000


@pytest.mark.parametrize("bits", BITS)
def test_words_may_be_unsigned_and_are_left_as_they_are(bits: int) -> None:
    codes = random_codes(5, 43, bits, seed=0)
    packed = pack(codes, bits).numpy().view(np.uint32)
    packed.flags.writeable = False
    assert np.array_equal(unpack_array(packed, bits, 43), codes.numpy())
