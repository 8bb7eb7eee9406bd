"""A linear with integer weights and activations, literally, in float64.

    y = sum over blocks b of   s_x[b] * s_w[g(b)] * sum over k in b of (u[k] - z[g(b)]) * q[k]

with u the unsigned codes, g(b) the group that block b lies in, and x ~ s_x q, q = round(127 x / max |x|) in each block.

Where a file declares one scale and zero point for all columns of x, and one for each row of W, it is in integers

    Y = S_x S_w (X_q W_q^T - Z_x 1 W_q^T - X_q 1 Z_w + K Z_x Z_w) + b
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def stream_of_bits(codes: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """Return the rows as dense little-endian streams of bits in 32-bit words."""
    rows, cols = codes.shape
    each = (codes[:, :, None].astype(np.int64) >> np.arange(bits)) & 1
    flat = each.reshape(rows, -1)
    words = -(-cols * bits // 32)
    flat = np.pad(flat, ((0, 0), (0, words * 32 - flat.shape[1])))
    packed: NDArray[np.uint32] = (
        (flat.reshape(rows, words, 32).astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32)
    )
    return packed


def restored(codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], group: int) -> Floats:
    """Return s (u - z) for codes (rows, cols), scale and zero (rows, groups)."""
    columns = np.minimum(np.arange(codes.shape[1]) // group, scale.shape[1] - 1)
    found: Floats = scale.astype(np.float64)[:, columns] * (codes.astype(np.float64) - zero[:, columns])
    return found


def rounded(x: NDArray[np.float32], block: int) -> Floats:
    """Return what x (rows, cols) is after rounding to int8 in blocks of columns."""
    rows, cols = x.shape
    padded = np.zeros((rows, -(-cols // block) * block), np.float32)
    padded[:, :cols] = x
    blocks = padded.reshape(rows, -1, block)
    largest = np.abs(blocks).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(largest > 0, np.rint(blocks * (np.float32(127) / largest)), 0)
    values = q.astype(np.float64) * (largest / np.float32(127)).astype(np.float64)
    return values.reshape(rows, -1)[:, :cols]


def token_codes(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], Floats]:
    """Return round(x / S) and S = max |x| / 127.5 of each row, with the division in float32 as it is declared."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127.5)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(x / scale), -128, 127).astype(np.int64), scale.astype(np.float64)


def fixed_codes(x: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.int64]:
    """Return round(x / S + Z), in float32."""
    shifted = x / np.float32(scale) + np.float32(zero_point)
    return np.clip(np.rint(shifted), -128, 127).astype(np.int64)


def integer_linear(
    x: NDArray[np.int64],
    x_zero: int,
    x_scale: Any,
    w: NDArray[Any],
    w_zero: NDArray[Any],
    w_scale: NDArray[Any],
) -> Floats:
    """Return Y without b.

    x: (tokens, cols). w: (rows, cols). w_zero, w_scale: (rows, 1). x_scale: (tokens, 1), or one.
    """
    w, w_zero = w.astype(np.int64), w_zero.astype(np.int64)
    products = x @ w.T - x_zero * w.sum(1) - x.sum(1, keepdims=True) * w_zero.T + x.shape[1] * x_zero * w_zero.T
    found: Floats = products.astype(np.float64) * x_scale * w_scale.astype(np.float64).T
    return found
