"""How MatMulNBits, an operator of ONNX Runtime, holds a weight: unsigned codes in blocks, each with its scale.

For a weight of (rows, cols) with u = q + 2^(bits-1) and z = Z + 2^(bits-1), 2^(bits-1) where it is symmetric:

    B             uint8 (rows, blocks, block * bits / 8)       u, from the lowest bits of a byte on
    scales        float32 (rows, blocks)                       S
    zero_points   uint8 (rows, ceil(blocks * bits / 8))        z, packed as the codes; none where it is symmetric

    value = S * (u - z)

A block is a power of two, 16 or more. A group that is more than one block has its scale in each of them; codes of 3
bits take 4, those of 5 to 7 take 8. Neither changes a value. Scales are float32, which holds all of ours.

Source: the description of com.microsoft.MatMulNBits; tests/reference/onnx_blocks.py reads it code by code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.exporting._integers import Integers
from zeropoint.types import Scheme

BITS = (2, 4, 8)
LEAST, MOST = 16, 256
"""Columns of a block."""

Arrays = dict[str, NDArray[Any]]


def stored_bits(scheme: Scheme) -> int:
    """Return how many bits a code takes."""
    return next(bits for bits in BITS if bits >= scheme.bits)


def block_of(scheme: Scheme, cols: int) -> tuple[int, str]:
    """Return how many columns have a scale of their own and "", or 0 and what would fit."""
    if scheme.super_size is not None:
        return 0, (
            f"{scheme.label()} has minima beside its scales, and MatMulNBits has none; quantize again "
            "without weights.super_size (recipe w4a16 or gguf_q4_1)"
        )
    size = scheme.group_size if scheme.granularity == "group" and scheme.group_size else cols
    block = min(size & -size, MOST)
    if block >= LEAST:
        return block, ""
    if size != cols:
        return 0, (
            f"groups of {size} columns are not made of blocks of {LEAST}, the least that MatMulNBits has; quantize "
            "again with a weights.group_size that is a multiple of 16, such as 32, 64 or 128"
        )
    return 0, f"{cols} columns do not split into blocks of {LEAST}; leave this tensor float (keep_float)"


def shapes(scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that `pack` makes, by the name of the operator's input."""
    bits, (block, _) = stored_bits(scheme), block_of(scheme, cols)
    blocks = cols // block
    found: dict[str, tuple[int, ...]] = {"B": (rows, blocks, block * bits // 8), "scales": (rows, blocks)}
    return found if scheme.symmetric else {**found, "zero_points": (rows, -(-blocks * bits // 8))}


def pack(weight: Integers) -> Arrays:
    """Return the inputs of the operator; each has the rows of the weight in its first axis."""
    rows, cols = weight.codes.shape
    bits, (block, _) = stored_bits(weight.scheme), block_of(weight.scheme, cols)
    weight = weight.in_groups(block)
    found: Arrays = {
        "B": _packed(_unsigned(weight.codes, bits).reshape(rows, -1, block), bits),
        "scales": np.ascontiguousarray(weight.scale),
    }
    if weight.zero_point is not None:
        found["zero_points"] = _packed(_unsigned(weight.zero_point, bits), bits)
    return found


def values(tensors: Mapping[str, NDArray[Any]], bits: int) -> NDArray[np.float32]:
    """Return what the tensors of `pack` stand for: float32 (rows, cols). bits: of a code as it is stored."""
    scale = tensors["scales"]
    rows, blocks = scale.shape
    codes = _unpacked(tensors["B"], bits).reshape(rows, blocks, -1).astype(np.float32)
    if "zero_points" in tensors:
        codes -= _unpacked(tensors["zero_points"], bits)[:, :blocks, None]
    else:
        codes -= 1 << (bits - 1)
    codes *= scale[:, :, None]
    return codes.reshape(rows, -1)


def _unsigned(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    return (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes (..., n) in bytes (..., ceil(n * bits / 8)), the first one in the lowest bits; zeros at the end."""
    each = 8 // bits
    missing = -codes.shape[-1] % each
    filled = np.pad(codes, [*[(0, 0)] * (codes.ndim - 1), (0, missing)])
    parts = filled.reshape(*codes.shape[:-1], -1, each)
    found = np.zeros(parts.shape[:-1], np.uint8)
    for place in range(each):
        found |= parts[..., place] << np.uint8(place * bits)
    return found


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes (..., n * 8 / bits) from bytes (..., n)."""
    each, mask = 8 // bits, np.uint8((1 << bits) - 1)
    parts = [packed >> np.uint8(place * bits) & mask for place in range(each)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)
