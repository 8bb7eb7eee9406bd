"""Affine quantization as the formula says it: float64, one number at a time."""

from __future__ import annotations

import math


def scale_of(low: float, high: float, bits: int, *, symmetric: bool, narrow: bool = False) -> float:
    """The scale before it is rounded to its stored dtype; 0 for an empty range."""
    steps = 2**bits - 1 - narrow
    low, high = min(low, 0.0), max(high, 0.0)
    return max(-low, high) / (steps / 2) if symmetric else (high - low) / steps


def zero_point_of(low: float, scale: float, bits: int, *, narrow: bool = False) -> int:
    q_min, q_max = limits(bits, narrow=narrow)
    return min(max(half_to_even(q_min - min(low, 0.0) / scale), q_min), q_max)


def quantize(value: float, scale: float, zero_point: int, bits: int, *, narrow: bool = False) -> int:
    q_min, q_max = limits(bits, narrow=narrow)
    return min(max(half_to_even(value / scale + zero_point), q_min), q_max)


def dequantize(code: int, scale: float, zero_point: int) -> float:
    return scale * (code - zero_point)


def limits(bits: int, *, narrow: bool = False) -> tuple[int, int]:
    return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1


def half_to_even(x: float) -> int:
    below = math.floor(x)
    if x - below == 0.5:
        return below if below % 2 == 0 else below + 1
    return math.floor(x + 0.5)
