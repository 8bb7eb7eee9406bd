"""A weight of MatMulNBits read code by code in Python's integers, written from its description, not from our packer."""

from __future__ import annotations

from collections.abc import Sequence


def value(
    b: Sequence[Sequence[Sequence[int]]],
    scales: Sequence[Sequence[float]],
    zero_points: Sequence[Sequence[int]] | None,
    bits: int,
    block_size: int,
    row: int,
    column: int,
) -> float:
    """Return the weight that joins input `column` with output `row`, in float64."""
    block, place = divmod(column, block_size)
    code = _field(b[row][block], bits, place)
    zero = 2 ** (bits - 1) if zero_points is None else _field(zero_points[row], bits, block)
    return scales[row][block] * (code - zero)


def _field(data: Sequence[int], bits: int, index: int) -> int:
    """Return the number in the bits from index * bits on, counted from the lowest one of the first byte."""
    whole = int.from_bytes(bytes(data), "little")
    return whole >> (index * bits) & ((1 << bits) - 1)
