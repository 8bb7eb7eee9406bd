"""Weights whose scales are on two levels in a compressed-tensors folder: an extension that only zeropoint reads.

    NAME.weight_blocks  uint8 (rows, cols / 256 * 144)     the blocks of GGUF's Q4_K, row after row

A block of 256 columns, eight groups of 32, is 144 bytes:

    d, d_min   2 x float16
    12 bytes   k and m of the groups, 6 bits each. Of the first four groups byte g has k in its lower 6 bits, byte 4 + g
               m. Of the others byte 4 + g has the lower 4 bits of k below those of m; the upper 2 bits of k are the top
               of byte g - 4, those of m the top of byte g.
    128 bytes  u = q + 8: of each pair of groups 32 bytes, the first one in their lower halves

and a value is d * k * u - d_min * m (qparams/levels.py). compressed-tensors has no zero points that are no integers, so
it could not hold these numbers in any layout of its own; here they are as llama.cpp reads them, and an export copies
them.
As for outlier columns (_outliers.py) each group of config.json says it twice, and either is enough for the package to
refuse the model:

    "format": "zeropoint-q4_k"                 no name of a format that the package has
    "weights": {..., "super_size": 256}        a key that the package forbids there

Source: ggml-common.h of ggml, block_q4_K; the tests compare with the numpy twin in the gguf package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zeropoint.errors import CheckpointError, InternalError
from zeropoint.types import PackedWeight, QTensor, Scheme, StoredArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

FORMAT = "zeropoint-q4_k"
NOTE = (
    "weights with scales on two levels (Q4_K) only zeropoint can run as they are here, as float32, and llama.cpp once "
    "they are exported as gguf: the compressed-tensors package, and transformers with it, refuses the model"
)

COLUMNS, BYTES = 256, 144
"""Of a block."""

GROUP, GROUPS = 32, 8

SCHEME = Scheme(4, symmetric=False, group_size=GROUP, scale_dtype="float16", super_size=COLUMNS)
"""The one that a block holds."""


def stored(scheme: Scheme) -> bool:
    """Say whether weights of this scheme are stored so."""
    return scheme.super_size is not None


def supports(scheme: Scheme, cols: int) -> str | None:
    """Return None if rows of `cols` columns can be stored so, else the reason and what would fit."""
    if scheme != SCHEME:
        return (
            f"{scheme.label()}: of scales on two levels only those of Q4_K can be stored, {SCHEME.label()} with "
            f"scale_dtype {SCHEME.scale_dtype!r}; use recipe gguf_q4_k"
        )
    if cols % COLUMNS:
        return (
            f"{cols} columns do not split into the super-blocks of {COLUMNS} of {scheme.label()}; use scales on one "
            "level there, or say in the recipe's `fallback` what such layers are to be"
        )
    return None


def tensor_name(name: str) -> str:
    """Return the name of the one tensor of the linear `name`."""
    return f"{name}.weight_blocks"


def shape_of(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of the tensor for a weight of `shape`."""
    return shape[0], shape[1] // COLUMNS * BYTES


@dataclass(frozen=True)
class Parts:
    """What blocks hold. u: uint8 (rows, cols), 0..15. d, d_min: float32 (rows, supers). k, m: uint8 (rows, groups)."""

    u: NDArray[np.uint8]
    d: NDArray[np.float32]
    d_min: NDArray[np.float32]
    k: NDArray[np.uint8]
    m: NDArray[np.uint8]


def to_blocks(parts: Parts) -> NDArray[np.uint8]:
    """Return the bytes of the blocks: uint8 (rows, supers * 144)."""
    import numpy as np

    rows, supers = parts.d.shape
    units = np.stack([parts.d, parts.d_min], axis=2).astype("<f2").view(np.uint8)  # (rows, supers, 4)
    k, m = (part.reshape(rows, supers, 2, GROUPS // 2) for part in (parts.k, parts.m))
    k_first, k_last, m_first, m_last = k[:, :, 0], k[:, :, 1], m[:, :, 0], m[:, :, 1]
    small = [k_first | k_last >> 4 << 6, m_first | m_last >> 4 << 6, (k_last & 15) | (m_last & 15) << 4]
    pairs = parts.u.reshape(rows, supers, GROUPS // 2, 2, GROUP)
    halves = (pairs[:, :, :, 0] | pairs[:, :, :, 1] << 4).reshape(rows, supers, COLUMNS // 2)
    return np.concatenate([units, *small, halves], axis=2).reshape(rows, -1)


def from_blocks(blocks: NDArray[np.uint8]) -> Parts:
    """Return what `to_blocks` was given. blocks: uint8 (rows, supers * 144)."""
    import numpy as np

    rows = len(blocks)
    each = np.ascontiguousarray(blocks).reshape(rows, -1, BYTES)
    units = np.ascontiguousarray(each[:, :, :4]).view("<f2").astype(np.float32)  # (rows, supers, 2)
    low, high, mixed = each[:, :, 4:8], each[:, :, 8:12], each[:, :, 12:16]
    k = np.concatenate([low & 63, (mixed & 15) | low >> 6 << 4], axis=2)
    m = np.concatenate([high & 63, mixed >> 4 | high >> 6 << 4], axis=2)
    halves = each[:, :, 16:].reshape(rows, -1, GROUPS // 2, 1, GROUP)
    u = np.concatenate([halves & 15, halves >> 4], axis=3)
    return Parts(
        u.reshape(rows, -1), units[:, :, 0].copy(), units[:, :, 1].copy(), k.reshape(rows, -1), m.reshape(rows, -1)
    )


def to_store(name: str, q: QTensor) -> Tensor:
    """Return the tensor of `tensor_name`. Raises: InternalError, with the name, for what Levels does not promise."""
    import numpy as np
    import torch

    levels = q.qparams.levels
    if levels is None or q.input is not None:
        raise InternalError(f"{name}: a weight on two levels has Levels, and an input that stays float")
    numbers = (levels.d, levels.d_min, levels.k, levels.m)
    parts = Parts((q.codes.numpy() - np.int8(q.scheme.q_min)).view(np.uint8), *(part.numpy() for part in numbers))
    blocks = to_blocks(parts)
    found = from_blocks(blocks)
    exact = all(np.array_equal(getattr(found, part), getattr(parts, part)) for part in ("u", "d", "d_min", "k", "m"))
    if blocks.shape != shape_of(q.shape) or not exact or not _sound(found):
        raise InternalError(f"{name}: scales and minima are not those of blocks: float16, and integers of 6 bits")
    return torch.from_numpy(blocks)


def read(name: str, tensors: Mapping[str, StoredArray], scheme: Scheme) -> PackedWeight:
    """Return the weight of linear `name` as it is packed, without torch. Raises: CheckpointError as `parts_of`."""
    import numpy as np

    parts = parts_of(name, tensors[tensor_name(name)])
    rows, cols = parts.u.shape
    words = np.ascontiguousarray(parts.u[:, ::2] | parts.u[:, 1::2] << 4).view("<u4")
    scale, minimum = (
        np.repeat(unit, GROUPS, axis=1) * times for unit, times in ((parts.d, parts.k), (parts.d_min, parts.m))
    )
    return PackedWeight(words, scale, None, (rows, cols), scheme, minimum=minimum)


def unpack(name: str, tensors: Mapping[str, StoredArray], scheme: Scheme) -> QTensor:
    """Return the quantized weight of linear `name`. Raises: CheckpointError as `parts_of`."""
    import torch

    from zeropoint.qparams.levels import qparams_of
    from zeropoint.types import Levels

    parts = parts_of(name, tensors[tensor_name(name)])
    levels = Levels(*(torch.from_numpy(part) for part in (parts.d, parts.d_min, parts.k, parts.m)))
    codes = torch.from_numpy(parts.u).to(torch.int8) + scheme.q_min
    return QTensor(codes, qparams_of(levels, scheme), scheme)


def parts_of(name: str, stored: StoredArray) -> Parts:
    """Return what the stored blocks of linear `name` hold.

    Raises: CheckpointError, with the tensor's name, if it has not the dtype, shape or range that it must.
    """
    values = stored.values
    if stored.dtype != "uint8" or values.ndim != 2 or 0 in values.shape or values.shape[1] % BYTES:
        raise CheckpointError(
            f"{tensor_name(name)} is {stored.dtype} {values.shape}; it must be uint8, rows of blocks of {BYTES} bytes"
        )
    import numpy as np

    parts = from_blocks(values.astype(np.uint8, copy=False))
    if not _sound(parts):
        raise CheckpointError(f"{tensor_name(name)} holds a scale that is not positive and finite, or such a minimum")
    return parts


def _sound(parts: Parts) -> bool:
    """Say whether every scale is above 0 and finite, and every minimum at least 0 and finite."""
    import numpy as np

    finite = np.isfinite(parts.d).all() and np.isfinite(parts.d_min).all()
    return bool(finite and (parts.d > 0).all() and (parts.d_min >= 0).all() and (parts.k > 0).all())
