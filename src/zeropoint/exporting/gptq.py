"""GPTQ's layout, as GPTQModel, vLLM and transformers load it: 2, 4 or 8 bits, packed along the inputs.

For a linear NAME with a weight of (rows, cols), u = q + 2^(bits-1) and z = Z + 2^(bits-1), both unsigned:

    NAME.qweight   int32 (cols * bits / 32, rows)     u transposed, the codes of a word under each other
    NAME.qzeros    int32 (groups, rows * bits / 32)   z - 1, the zero points of a word beside each other
    NAME.scales    float16 (groups, rows)
    NAME.g_idx     int32 (cols,)                      the group of each column

"z - 1" is the layout of version 1, checkpoint_format "gptq": readers add the 1 again, and some of them without cutting
the sum to its bits. A zero point on the lowest code, whose z - 1 is below 0, comes back as 2^bits there; it is refused.

Source: the layout of AutoGPTQ 0.7 and GPTQModel; tests/reference/gptq_words.py reads it word by word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import zeropoint
from zeropoint.errors import SchemeError
from zeropoint.exporting import _folder, _words
from zeropoint.exporting._folder import Packing
from zeropoint.exporting._integers import Integers, as_float16
from zeropoint.types import Scheme

STORES = "2, 4 or 8 bits, one scheme for the model; with zero points only where none is on the lowest code"

BITS = (2, 4, 8)


def supports(scheme: Scheme, shape: tuple[int, int]) -> str | None:
    """Return None if such a weight can be stored, else why not and what would fit."""
    rows, cols = shape
    if scheme.bits not in BITS:
        return f"GPTQ's readers have kernels for 2, 4 and 8 bits, not {scheme.bits}; quantize again with one of those"
    each = 32 // scheme.bits
    if rows % each or cols % each:
        return f"a weight of ({rows}, {cols}) does not fill words of {each} codes; leave it float (keep_float)"
    if scheme.super_size is not None:
        return "scales on two levels are in GGUF only; quantize again without weights.super_size, or export as gguf"
    if scheme.granularity == "tensor":
        return "one scale for the whole weight is not in GPTQ's layout; quantize again by channel or group"
    return None


def pack(name: str, weight: Integers) -> dict[str, NDArray[Any]]:
    """Return the tensors of a linear. Raises: SchemeError, with its name, for what the layout cannot hold."""
    bits, half = weight.scheme.bits, 1 << (weight.scheme.bits - 1)
    rows, cols = weight.codes.shape
    groups = weight.scale.shape[1]
    zero_point = np.zeros((rows, groups), np.int8) if weight.zero_point is None else weight.zero_point
    lowest = int((zero_point == -half).sum())
    if lowest:
        raise SchemeError(
            f"{name}: {lowest} of {zero_point.size} zero points are the lowest code, which GPTQ's layout stores as -1 "
            "and its readers do not agree on; export as awq, or quantize again with weights.symmetric = true"
        )
    codes = (weight.codes.astype(np.int16) + half).astype(np.uint8).T
    below = (zero_point.astype(np.int16) + half - 1).astype(np.uint8)
    return {
        "qweight": _words.pack(codes, bits),
        "qzeros": np.ascontiguousarray(_words.pack(below, bits).T),
        "scales": np.ascontiguousarray(as_float16(name, weight.scale, "scales").T),
        "g_idx": (np.arange(cols) // (cols // groups)).astype(np.int32),
    }


def unpack(tensors: Mapping[str, NDArray[Any]], scheme: Scheme) -> Integers:
    """Return the weight that `pack` was given."""
    half = 1 << (scheme.bits - 1)
    codes = _words.unpack(tensors["qweight"], scheme.bits).T.astype(np.int16) - half
    zero_point = _words.unpack(tensors["qzeros"].T, scheme.bits).astype(np.int16) + 1 - half
    scale = tensors["scales"].T.astype(np.float32)
    return Integers(codes.astype(np.int8), scale, zero_point.astype(np.int8), scheme)


def config(scheme: Scheme, floats: list[str]) -> dict[str, Any]:
    """Return the quantization_config."""
    size = scheme.group_size if scheme.granularity == "group" else -1
    kept: dict[str, Any] = {f"-:^{re.escape(name)}$": {} for name in floats}
    return {
        "bits": scheme.bits,
        "checkpoint_format": "gptq",
        "desc_act": False,
        "group_size": size,
        "lm_head": False,
        "meta": {"quantizer": [f"zeropoint:{zeropoint.__version__}"]},
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": scheme.symmetric,
        **({"dynamic": kept} if kept else {}),
    }


PACKING = Packing("gptq", supports, pack, unpack, config)

plan = partial(_folder.plan, packing=PACKING)
write = _folder.write
