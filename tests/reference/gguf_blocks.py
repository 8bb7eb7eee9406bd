"""Blocks of GGUF taken apart byte by byte in Python's floats, written from the layout and not from our packer."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SIZES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}


def values(data: bytes, kind: str) -> Iterator[float]:
    """Yield the numbers that blocks stand for, in float64."""
    if kind == "Q4_K":
        yield from _super_values(data)
        return
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


def _super_values(data: bytes) -> Iterator[float]:
    """Yield the numbers that blocks of Q4_K stand for: eight groups of 32 columns each."""
    for start in range(0, len(data), 144):
        block = data[start : start + 144]
        d, d_min = struct.unpack_from("<2e", block)
        small = block[4:16]
        for group in range(8):
            if group < 4:
                k, m = small[group] & 63, small[group + 4] & 63
            else:
                k = small[group + 4] % 16 + 16 * (small[group - 4] >> 6)
                m = small[group + 4] // 16 + 16 * (small[group] >> 6)
            halves = block[16 + 32 * (group // 2) : 48 + 32 * (group // 2)]
            for byte in halves:
                yield d * k * (byte >> 4 if group % 2 else byte & 15) - d_min * m
