"""The header of a safetensors file: read strictly, and written.

    8 bytes   N, little endian
    N bytes   JSON: {"__metadata__": {text: text}, NAME: {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}}
    the rest  the tensors' bytes, back to back: no gap, no overlap, nothing before, between or after

Everything else is refused. The checks are the format's own, so that a file that passes here cannot make any reader
look outside of it; and they are made without torch and before anything as large as the file is allocated.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint import documents
from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
ALIGNMENT_BYTES = 8
MAX_NAME_CHARS = 1000
MAX_DIMENSIONS = 64  # numpy's


@dataclass(frozen=True)
class Dtype:
    """bytes: of one value. torch_name: the attribute of torch. numpy_name: of the same, or of its bits."""

    bytes: int
    torch_name: str
    numpy_name: str


DTYPES: Mapping[str, Dtype] = {
    "F64": Dtype(8, "float64", "float64"),
    "F32": Dtype(4, "float32", "float32"),
    "F16": Dtype(2, "float16", "float16"),
    "BF16": Dtype(2, "bfloat16", "uint16"),
    "F8_E4M3": Dtype(1, "float8_e4m3fn", "uint8"),
    "F8_E5M2": Dtype(1, "float8_e5m2", "uint8"),
    "I64": Dtype(8, "int64", "int64"),
    "I32": Dtype(4, "int32", "int32"),
    "I16": Dtype(2, "int16", "int16"),
    "I8": Dtype(1, "int8", "int8"),
    "U64": Dtype(8, "uint64", "uint64"),
    "U32": Dtype(4, "uint32", "uint32"),
    "U16": Dtype(2, "uint16", "uint16"),
    "U8": Dtype(1, "uint8", "uint8"),
    "BOOL": Dtype(1, "bool", "bool"),
}


class _MalformedError(ValueError):
    """What is wrong with a header, before the file's name is put in front."""


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file in the order of their bytes.

    Raises: CheckpointError naming the file if it cannot be read or breaks any rule of the format.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _MalformedError(f"{size} bytes are too few for a header")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise _MalformedError(
                    f"the header claims {length} bytes, the file has {size}, the format allows 100 MB"
                )
            tensors = _check_tensors(_parse(file.read(length)), path, data_start=8 + length)
            _check_cover(tensors, data_start=8 + length, end=size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except _MalformedError as error:
        raise CheckpointError(
            f"{path}: {error}; the file is damaged or no safetensors file: download it again, "
            "or write it anew with the safetensors package"
        ) from error
    return {tensor.name: tensor for tensor in tensors}


def make_header(tensors: Iterable[TensorInfo]) -> bytes:
    """Return the header for tensors that follow it back to back in this order.

    Tensors go from the widest dtype to the narrowest (see `layout`), so each begins on a multiple of its value's size.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size_bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


def layout(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Return the tensors in the order of one file: widest dtype first, and otherwise as given.

    torch looks at a stored tensor through a view of its dtype, which must begin on a multiple of the value's size.
    """
    return sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].bytes)


def _parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object in a header."""
    if not text.startswith(b"{"):
        raise _MalformedError("the header does not begin with '{'")
    try:
        entries: dict[str, Any] = documents.load_json(text)
    except documents.MalformedError as error:
        raise _MalformedError(f"the header {error}") from error
    return entries


def _check_tensors(entries: dict[str, Any], path: Path, data_start: int) -> list[TensorInfo]:
    """Return the header's tensors, sorted by their place, each right in itself."""
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _MalformedError("__metadata__ is not a table of texts")
    tensors = [_check_tensor(name, entry, path, data_start) for name, entry in entries.items()]
    return sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes))


def _check_tensor(name: str, entry: object, path: Path, data_start: int) -> TensorInfo:
    label = repr(name if len(name) <= 100 else f"{name[:100]}...")
    if not name.isprintable():  # a lone surrogate or a control character would break every later message and file
        raise _MalformedError(f"the tensor name {label} has characters that cannot be printed")
    if len(name) > MAX_NAME_CHARS:
        raise _MalformedError(f"the tensor name {label} has {len(name)} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _MalformedError(f"tensor {label} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _MalformedError(f"tensor {label} has the dtype {str(dtype)[:20]!r}; known are {', '.join(DTYPES)}")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _MalformedError(f"tensor {label} has a shape or offsets that are not sizes")
    size = offsets[1] - offsets[0]
    if len(shape) > MAX_DIMENSIONS or _count(shape, limit=size) * DTYPES[dtype].bytes != size:
        raise _MalformedError(f"tensor {label} of shape {shape[:8]} and dtype {dtype} does not fill its {size} bytes")
    return TensorInfo(name, dtype, tuple(shape), size, path, data_start + offsets[0])


def _is_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _count(shape: list[int], limit: int) -> int:
    """Return the product of `shape`, or some number above `limit` if it is larger."""
    count = 0 if 0 in shape else 1
    for dimension in shape:
        count *= dimension
        if count > limit:
            break
    return count


def _check_cover(tensors: list[TensorInfo], data_start: int, end: int) -> None:
    """Check that the tensors fill the file from `data_start` to `end` without gap or overlap."""
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the one before" if tensor.offset < position else "begins after a gap"
            raise _MalformedError(f"tensor {tensor.name!r} {what}")
        position += tensor.size_bytes
    if position != end:
        raise _MalformedError(f"the tensors end at byte {position} and the file at byte {end}")
