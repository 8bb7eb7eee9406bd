"""AWQ's layout ("gemm"), as vLLM, transformers and AutoAWQ load it: 4 bits, packed along the outputs in a mixed order.

For a linear NAME with a weight of (rows, cols), u = q + 8 and z = Z + 8, 8 where the weight is symmetric:

    NAME.qweight   int32 (cols, rows / 8)      u transposed
    NAME.qzeros    int32 (groups, rows / 8)    z, as it is
    NAME.scales    float16 (groups, rows)

The eight codes of a word are those of neighbouring outputs, from its lowest bits on in the order 0 2 4 6 1 3 5 7, in
which a kernel of AutoAWQ takes them out in pairs.

Source: the layout of AutoAWQ 0.2; tests/reference/awq_words.py reads it word by word.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.exporting import _folder, _words
from zeropoint.exporting._folder import Packing
from zeropoint.exporting._integers import Integers, as_float16
from zeropoint.types import Scheme

STORES = "4 bits with or without zero points, by group or channel, one scheme for the model"

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS, HALF = 4, 8


def supports(scheme: Scheme, shape: tuple[int, int]) -> str | None:
    """Return None if such a weight can be stored, else why not and what would fit."""
    rows, _ = shape
    if scheme.bits != BITS:
        return f"AWQ has 4 bits only, not {scheme.bits}; quantize again with 4, or export as gptq"
    if rows % len(ORDER):
        return f"{rows} outputs do not fill words of {len(ORDER)} codes; leave it float (keep_float)"
    if scheme.super_size is not None:
        return "scales on two levels are in GGUF only; quantize again without weights.super_size, or export as gguf"
    if scheme.granularity == "tensor":
        return "one scale for the whole weight is not in AWQ's layout; quantize again by channel or group"
    return None


def pack(name: str, weight: Integers) -> dict[str, NDArray[Any]]:
    """Return the tensors of a linear. Raises: SchemeError, with its name, for a scale that float16 does not hold."""
    zero_point = np.zeros(weight.scale.shape, np.int8) if weight.zero_point is None else weight.zero_point
    return {
        "qweight": _across(weight.codes.T),
        "qzeros": _across(zero_point.T),
        "scales": np.ascontiguousarray(as_float16(name, weight.scale, "scales").T),
    }


def unpack(tensors: Mapping[str, NDArray[Any]], scheme: Scheme) -> Integers:
    """Return the weight that `pack` was given."""
    codes, zero_point = (_back(tensors[part]) for part in ("qweight", "qzeros"))
    return Integers(codes, tensors["scales"].T.astype(np.float32), zero_point, scheme)


def config(scheme: Scheme, floats: list[str]) -> dict[str, Any]:
    """Return the quantization_config."""
    size = scheme.group_size if scheme.granularity == "group" else -1
    return {
        "bits": BITS,
        "group_size": size,
        "modules_to_not_convert": floats or None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def _across(codes: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return signed codes (n, rows) in words along the rows: int32 (n, rows / 8)."""
    mixed = (codes + HALF).astype(np.uint8).reshape(len(codes), -1, len(ORDER))[:, :, ORDER]
    return np.ascontiguousarray(_words.pack(mixed.reshape(len(codes), -1).T, BITS).T)


def _back(words: NDArray[np.int32]) -> NDArray[np.int8]:
    """Return signed codes (rows, n) from words (n, rows / 8)."""
    mixed = _words.unpack(words.T, BITS).reshape(-1, len(ORDER), len(words))
    return (mixed[:, np.argsort(ORDER)].reshape(-1, len(words)).astype(np.int8) - HALF).astype(np.int8)


PACKING = Packing("awq", supports, pack, unpack, config)

plan = partial(_folder.plan, packing=PACKING)
write = _folder.write
