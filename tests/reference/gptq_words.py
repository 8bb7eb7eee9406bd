"""A linear in GPTQ's layout read word by word in Python's integers, written from the layout and not from our packer."""

from __future__ import annotations

from collections.abc import Sequence


def value(
    qweight: Sequence[Sequence[int]],
    qzeros: Sequence[Sequence[int]],
    scales: Sequence[Sequence[float]],
    g_idx: Sequence[int],
    bits: int,
    output: int,
    column: int,
) -> float:
    """Return the weight that joins input `column` with `output`, in float64."""
    each, mask = 32 // bits, (1 << bits) - 1
    code = (qweight[column // each][output] & 0xFFFFFFFF) >> (column % each * bits) & mask
    group = g_idx[column]
    stored = (qzeros[group][output // each] & 0xFFFFFFFF) >> (output % each * bits) & mask
    return scales[group][output] * (code - (stored + 1))
