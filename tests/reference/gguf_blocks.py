"""Blocks of GGUF taken apart byte by byte in Python's floats, written from the layout and not from our packer."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SIZES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}


def values(data: bytes, kind: str) -> Iterator[float]:
    """Yield the numbers that blocks of 32 stand for, in float64."""
    for start in range(0, len(data), SIZES[kind]):
        block = data[start : start + SIZES[kind]]
        (scale,) = struct.unpack_from("<e", block)
        if kind == "Q8_0":
            yield from (scale * code for code in struct.unpack_from("<32b", block, 2))
            continue
        (minimum,) = (
            struct.unpack_from("<e", block, 2) if kind[-1] == "1" else (-(16 if kind[1] == "5" else 8) * scale,)
        )
        halves = block[-16:]
        codes = [byte & 15 for byte in halves] + [byte >> 4 for byte in halves]
        if kind[1] == "5":
            (upper,) = struct.unpack_from("<I", block, len(block) - 20)
            codes = [code + 16 * (upper >> column & 1) for column, code in enumerate(codes)]
        yield from (scale * code + minimum for code in codes)
