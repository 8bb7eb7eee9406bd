"""A linear in AWQ's layout read word by word in Python's integers, written from the layout and not from our packer."""

from __future__ import annotations

from collections.abc import Sequence

NIBBLE_OF = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
"""Which four bits of a word hold the code of each of its eight outputs."""


def value(
    qweight: Sequence[Sequence[int]],
    qzeros: Sequence[Sequence[int]],
    scales: Sequence[Sequence[float]],
    group_size: int,
    output: int,
    column: int,
) -> float:
    """Return the weight that joins input `column` with `output`, in float64."""
    word, shift = output // 8, 4 * NIBBLE_OF[output % 8]
    group = column // group_size
    code = (qweight[column][word] & 0xFFFFFFFF) >> shift & 15
    zero = (qzeros[group][word] & 0xFFFFFFFF) >> shift & 15
    return scales[group][output] * (code - zero)
