"""Codes side by side in integers of 32 bits, the first in the lowest bits: what GPTQ and AWQ share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Return unsigned codes packed along the first axis: (n, m) -> int32 (n * bits / 32, m).

    bits: 2, 4 or 8. n: a multiple of 32 / bits.
    """
    each = 32 // bits
    wide = codes.reshape(-1, each, codes.shape[1]).astype(np.uint32)
    shifts = (np.arange(each, dtype=np.uint32) * bits)[None, :, None]
    return np.ascontiguousarray(np.bitwise_or.reduce(wide << shifts, axis=1)).view(np.int32)


def unpack(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Return the codes that `pack` was given."""
    each = 32 // bits
    shifts = (np.arange(each, dtype=np.uint32) * bits)[None, :, None]
    codes = np.ascontiguousarray(words).view(np.uint32)[:, None, :] >> shifts & np.uint32((1 << bits) - 1)
    return codes.reshape(-1, words.shape[1]).astype(np.uint8)
