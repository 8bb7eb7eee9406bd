"""Where the bytes of a checkpoint are, and the bits per weight that follow: from headers, no tensor is read.

Equal bits mean equal bytes in the file: scales and zero points count, a shorter last group counts as what it takes.
A file that stores a linear NAME as integers has several tensors for it,

    NAME.weight_packed or NAME.weight      codes
    NAME.weight_blocks                     codes, with their scales on two levels between them
    NAME.weight_scale                      scales
    NAME.weight_zero_point                 zero points
    NAME.outlier_weight, .outlier_columns  columns that stay float, and which
    NAME.weight_shape and any other        bookkeeping: part of the file, not of the bits per weight

and one whose dtype is a block type (Q4_1 of a .gguf file) has its scales between the codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.checkpoint.safetensors_header import DTYPES
from zeropoint.errors import InternalError
from zeropoint.evaluation.results import Size
from zeropoint.formats import _super_blocks
from zeropoint.runtime.weights import Weights
from zeropoint.types import HEADS_OF, Scheme

Part: TypeAlias = Literal[
    "codes", "scales", "zero_points", "outliers", "float_linear", "embedding", "head", "other", "overhead"
]

PARTS: dict[str, Part] = {
    "weight_packed": "codes",
    "weight": "codes",
    "weight_blocks": "codes",
    "weight_scale": "scales",
    "weight_zero_point": "zero_points",
    "outlier_weight": "outliers",
    "outlier_columns": "outliers",
}
BLOCK_TYPES = ("Q", "IQ", "TQ", "MXFP")
"""What the names of GGUF's quantized types begin with."""

EMBEDDINGS = (*HEADS_OF, "wpe", "embed_positions", "word_embeddings", "position_embeddings")
HEADS = tuple(HEADS_OF.values())


def measure_size(
    tensors: Mapping[str, TensorInfo],
    schemes: Mapping[str, Scheme | None],
    *,
    tables: Mapping[str, Scheme | None] | None = None,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    file_bytes: int | None = None,
) -> Size:
    """Return where the bytes are.

    tensors: all that is stored, by name. schemes: every linear of the blocks by its full name, without ".weight"; None
    for one that is not quantized by a scheme of ours. lm_head counts as a linear if it has a scheme.
    tables: the schemes of embedding and head, where they are stored as integers; their scales are bytes, no weights.
    shapes: (rows, cols) of linears where the caller knows them, such as from the reference; see `linear_shape`.
    file_bytes: of the files, with their headers (`stored_bytes`); by default the tensors alone.
    Raises: InternalError if the codes of a linear are not two-dimensional.
    """
    sizes: dict[Part, int] = dict.fromkeys(get_args(Part), 0)
    linear_weights = float_linear_weights = weights = 0
    for name, info in tensors.items():
        part = part_of(info, schemes)
        sizes[part] += info.size_bytes
        if part == "codes":
            layer = name.rpartition(".")[0]
            rows, cols = (shapes or {}).get(layer) or linear_shape(layer, tensors, schemes[layer])
            linear_weights += rows * cols
            weights += rows * cols
        elif part not in ("scales", "zero_points", "outliers", "overhead"):
            weights += _weights_in(info, tensors, tables or {})
            float_linear_weights += math.prod(info.shape) if part == "float_linear" else 0
    linear_bytes = sizes["codes"] + sizes["scales"] + sizes["zero_points"] + sizes["outliers"]
    tensor_bytes = sum(sizes.values())
    total_bytes = tensor_bytes if file_bytes is None else file_bytes
    return Size(
        total_bytes=total_bytes,
        linear_bytes=linear_bytes,
        code_bytes=sizes["codes"],
        scale_bytes=sizes["scales"],
        zero_point_bytes=sizes["zero_points"],
        outlier_bytes=sizes["outliers"],
        float_linear_bytes=sizes["float_linear"],
        embedding_bytes=sizes["embedding"],
        head_bytes=sizes["head"],
        other_bytes=sizes["other"],
        overhead_bytes=sizes["overhead"] + total_bytes - tensor_bytes,
        linear_weights=linear_weights,
        float_linear_weights=float_linear_weights,
        weights=weights,
        bits_per_weight=8 * linear_bytes / linear_weights if linear_weights else None,
        bits_per_weight_model=8 * total_bytes / weights if weights else 0.0,
    )


def _weights_in(info: TensorInfo, tensors: Mapping[str, TensorInfo], tables: Mapping[str, Scheme | None]) -> int:
    """Return how many weights a tensor that belongs to no quantized linear stands for."""
    name, _, part = info.name.rpartition(".")
    if part == "weight_packed" and tables.get(name) is not None:
        return math.prod(linear_shape(name, tensors, tables[name]))
    return 0 if PARTS.get(part) == "scales" else math.prod(info.shape)


def stored_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    """Return the size of all files that hold the tensors, headers included."""
    return sum(file.stat().st_size for file in {info.file for info in tensors.values()})


def size_of(weights: Weights) -> Size:
    """Return where the bytes of a checkpoint are, headers of its files included."""
    tensors = weights.checkpoint.tensors
    return measure_size(tensors, weights.schemes, tables=weights.table_schemes, file_bytes=stored_bytes(tensors))


def in_blocks(info: TensorInfo) -> bool:
    """Say whether a tensor is stored in a block type of GGUF."""
    return info.dtype.startswith(BLOCK_TYPES)


def float_name(info: TensorInfo) -> str:
    """Return the dtype, by its name in torch, of a tensor that stays float in an output: bfloat16 for a block type."""
    return "bfloat16" if in_blocks(info) else DTYPES[info.dtype].torch_name


def part_of(info: TensorInfo, schemes: Mapping[str, Scheme | None]) -> Part:
    """Return which part of a model a stored tensor is."""
    layer, _, last = info.name.rpartition(".")
    if layer in schemes and last != "bias":
        if schemes[layer] is not None:
            return PARTS.get(last, "overhead")
        if last == "weight":
            return "codes" if in_blocks(info) else "float_linear"
        return "overhead"
    words = layer.split(".")
    if any(word in EMBEDDINGS for word in words):
        return "embedding"
    return "head" if any(word in HEADS for word in words) else "other"


def linear_shape(layer: str, tensors: Mapping[str, TensorInfo], scheme: Scheme | None) -> tuple[int, int]:
    """Return (rows, cols) of a linear from the headers of its tensors.

    layer: full name, without ".weight". scheme: what it is stored as, None if it is not packed.
    Raises: InternalError if there is no weight of two dimensions.
    """
    packed, plain = tensors.get(f"{layer}.weight_packed"), tensors.get(f"{layer}.weight")
    blocks = tensors.get(f"{layer}.weight_blocks")
    info = blocks or plain if packed is None else packed
    if info is None or len(info.shape) != 2:
        raise InternalError(f"{layer}: none of the tensors of this linear is a weight of two dimensions")
    rows, cols = info.shape
    if info is blocks:
        return rows, cols // _super_blocks.BYTES * _super_blocks.COLUMNS
    if packed is None or scheme is None:
        return rows, cols
    scale = tensors.get(f"{layer}.weight_scale")
    return rows, packed_cols(cols, scheme, None if scale is None else scale.shape)


def packed_cols(words: int, scheme: Scheme, scale_shape: tuple[int, ...] | None) -> int:
    """Return the columns of a row that is packed into `words` integers of 32 bits.

    Exact when cols * bits is a multiple of 32, as with all usual widths, and when the groups divide the columns.
    Otherwise the most that fit, at most 31 / bits columns too many; the header does not say more.
    """
    most = words * 32 // scheme.bits
    if scheme.granularity != "group" or scheme.group_size is None or scale_shape is None or len(scale_shape) != 2:
        return most
    return min(most, scale_shape[1] * scheme.group_size)
