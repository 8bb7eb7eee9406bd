"""What a range costs a tensor, as the definition says it: float64, one value at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reference import affine


@dataclass(frozen=True)
class Piece:
    """The values of one group and the grid that they get."""

    values: Sequence[float]
    low: float
    high: float
    scale: float
    zero_point: int


def costs(pieces: Sequence[Piece], bits: int) -> tuple[float, float, float, float | None]:
    """(clipped, clipping, rounding, SQNR): share outside the ranges, relative squared errors inside and out."""
    count = clipped = 0
    signal = clipping = rounding = 0.0
    for piece in pieces:
        for r in piece.values:
            q = affine.quantize(r, piece.scale, piece.zero_point, bits)
            error = (affine.dequantize(q, piece.scale, piece.zero_point) - r) ** 2
            inside = piece.low <= r <= piece.high
            count, clipped, signal = count + 1, clipped + (not inside), signal + r * r
            clipping, rounding = clipping + error * (not inside), rounding + error * inside
    if signal == 0:
        return clipped / count, 0.0, 0.0, None
    noise = clipping + rounding
    return (
        clipped / count,
        clipping / signal,
        rounding / signal,
        10 * math.log10(signal / noise) if noise > 0 else None,
    )
