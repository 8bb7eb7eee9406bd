"""Which block type holds a scheme exactly, and how blocks of 32 columns are laid out.

    Q4_0   18 bytes   float16 d, 16 bytes of q + 8                      value = d * (u - 8)
    Q4_1   20 bytes   float16 d, float16 m, 16 bytes of q + 8           value = d * u + m
    Q5_0   22 bytes   float16 d, 4 + 16 bytes of q + 16                 value = d * (u - 16)
    Q5_1   24 bytes   float16 d, float16 m, 4 + 16 bytes of q + 16      value = d * u + m
    Q8_0   34 bytes   float16 d, 32 signed bytes                        value = d * q

In the 16 bytes byte j holds the lower four bits of column j in its lower half, and of column j + 16 in its upper one.
The 4 bytes before them are, lowest bit first, the fifth bit of every column.

Ours is S * (q - Z). So d = S, and in Q4_1 m = -S * (Z + 8), in Q5_1 -S * (Z + 16): exact if float16 holds that product.
S has at most 11 significant bits, Z + 8 is below 16 and Z + 16 below 32; with S of 7, or 6, bits every product fits.
The reader's d * u + m is then exact in float32 too, and its values are ours bit for bit. A scale of more than 32
columns is repeated in each of its blocks.

Q4_K, 144 bytes for 256 columns, is what the folder holds of a weight whose scales are on two levels, byte for byte
(formats/_super_blocks.py).

Source: ggml's ggml-common.h and the numpy twins of the gguf package (tests/unit/exporting compares with both).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zeropoint.exporting._integers import Integers, as_float16
from zeropoint.formats import _super_blocks
from zeropoint.types import Scheme

BLOCK = 32

BlockType: TypeAlias = Literal["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K"]

BITS: Mapping[BlockType, int] = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q4_K": 4}
"""Of a code."""


def block_type(scheme: Scheme, cols: int) -> tuple[BlockType | None, str]:
    """Return the type that holds such codes and "", or None and why there is none, with what would fit."""
    if scheme.super_size is not None:
        reason = _super_blocks.supports(scheme, cols)
        return (None, reason) if reason else ("Q4_K", "")
    if cols % BLOCK:
        return None, f"{cols} columns do not split into GGUF's blocks of {BLOCK}; leave this tensor float (keep_float)"
    size = scheme.group_size if scheme.granularity == "group" and scheme.group_size else cols
    if size % BLOCK:
        return None, (
            f"groups of {size} columns do not fill GGUF's blocks of {BLOCK}, which have one scale each; quantize again "
            f"with weights.group_size = {BLOCK}, or a multiple of it"
        )
    kinds: tuple[BlockType, ...] = ("Q4_0", "Q5_0", "Q8_0") if scheme.symmetric else ("Q4_1", "Q5_1")
    for kind in kinds:
        if scheme.bits <= BITS[kind]:
            return kind, ""
    return None, (
        f"GGUF has no type for {scheme.bits} bits with zero points; quantize again with weights.symmetric = true "
        "(recipe gguf_q8_0), or with 4 or 5 bits"
    )


def pack(name: str, weight: Integers, kind: BlockType) -> NDArray[np.uint8]:
    """Return the blocks of a weight: uint8 (rows, bytes of a row).

    name: for messages. kind: one of 32 columns.
    Raises: SchemeError, with the name, if float16 does not hold a scale or a minimum.
    """
    weight = weight.in_groups(BLOCK)
    rows, cols = weight.codes.shape
    scale = as_float16(name, weight.scale, "scales")
    parts: list[NDArray[np.uint8]] = [_bytes(scale)]
    codes = weight.codes.reshape(rows, cols // BLOCK, BLOCK)
    offset = 1 << (BITS[kind] - 1)
    if weight.zero_point is not None:
        # codes of fewer bits than the type's are as they are, with the zero point that belongs to them
        minimum = -weight.scale * (weight.zero_point.astype(np.float32) + offset)
        parts.append(_bytes(as_float16(name, minimum, "minima (scale * zero point)")))
    if kind == "Q8_0":
        parts.append(codes.view(np.uint8))
    else:
        unsigned = (codes + offset).astype(np.uint8)
        if BITS[kind] == 5:
            parts.append(np.packbits(unsigned >> 4, axis=2, bitorder="little"))
        lower = unsigned & 15
        parts.append(lower[:, :, : BLOCK // 2] | np.left_shift(lower[:, :, BLOCK // 2 :], np.uint8(4)))
    return np.concatenate(parts, axis=2).reshape(rows, -1)


def _bytes(halves: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return float16 (rows, blocks) as uint8 (rows, blocks, 2)."""
    return np.ascontiguousarray(halves, "<f2").view(np.uint8).reshape(*halves.shape, 2)
