"""GGUF, as llama.cpp and what is built on it load it: one file with the integers in blocks of 32, or of 256.

Linears become Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q4_K (_gguf_blocks.py says which scheme fits exactly), embedding and head
too where they are integers, else they stay as they are stored (BF16, F16, F32). Norms and biases become F32, which
holds each of those. Rows of q and k are interleaved for the architectures that llama.cpp rotates by neighbours.

Metadata and tokenizer: _gguf_metadata.py, _gguf_tokenizer.py. A tensor is read, written and forgotten; then all are
read back from the disk through the gguf package's dequantization and compared with the folder's values, bit for bit.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import gguf
import numpy as np
from numpy.typing import NDArray

from zeropoint.checkpoint.gguf_header import read_header
from zeropoint.checkpoint.gguf_source import dequantize
from zeropoint.checkpoint.place import output_errors, output_file
from zeropoint.checkpoint.reader import as_float32, rows_of
from zeropoint.errors import InternalError, OutputError, SchemeError
from zeropoint.exporting import _gguf_blocks, _gguf_metadata, _gguf_tokenizer
from zeropoint.exporting._gguf_metadata import Architecture
from zeropoint.exporting._integers import Integers, notes_of_inputs, require_no_outliers
from zeropoint.exporting.result import Written
from zeropoint.formats import _super_blocks
from zeropoint.models.parts import outer_tensors
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

STORES = (
    "2 to 5 bits with or without zero points, 6 to 8 bits symmetric; groups of 32 columns or multiples of them; Q4_K"
)

SLAB_VALUES = 1 << 24
"""Of a table, written and compared at once: 67 MB in float32."""

FLOATS = ("BF16", "F16", "F32")
"""The floats of a folder that GGUF has too, under the same names."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file.

    name: llama.cpp's. source: the folder's. kind: a type of GGUF. scheme: of its integers, None for floats.
    heads: whose rows are interleaved, or None.
    """

    name: str
    source: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    scheme: Scheme | None = None
    heads: int | None = None


@dataclass(frozen=True)
class Planned:
    """What will be written. extra: small tensors that the folder has in config.json, float32. fields: metadata."""

    weights: Weights
    entries: tuple[Entry, ...]
    extra: Mapping[str, NDArray[np.float32]]
    fields: Mapping[str, Any]
    architecture: Architecture
    notes: tuple[str, ...]


def plan(weights: Weights) -> Planned:
    """Return what will be written, from headers alone.

    Raises: SchemeError, with the tensor's name, for what no type holds; ArchitectureError or CheckpointError for a
    model or a tokenizer that GGUF cannot describe, or that is not known here.
    """
    architecture = _gguf_metadata.architecture_of(weights.model)
    require_no_outliers(weights)
    entries = tuple(_entries(weights, architecture))
    tokenizer = _gguf_tokenizer.describe(weights.checkpoint, weights.model.config.vocab_size)
    fields = {**_gguf_metadata.fields_of(weights, [entry.kind.name for entry in entries]), **tokenizer.fields}
    notes = [*tokenizer.notes, *notes_of_inputs(list(weights.inputs.values()), "llama.cpp"), *_wide_notes(entries)]
    extra = _gguf_metadata.rope_factors(weights.model.config)
    return Planned(weights, entries, extra, fields, architecture, tuple(notes))


def write(planned: Planned, output: Path, *, overwrite: bool, report: ProgressCallback) -> Written:
    """Write the file; it has its name when it is complete, on the disk and read back.

    Raises: SchemeError for a scale that float16 does not hold; OutputError; InternalError if what is read back is not
    what the folder has. Nothing is under the output's name then.
    """
    if output.suffix != ".gguf":
        raise OutputError(f"{output}: llama.cpp loads files whose name ends in .gguf; give one, {output.name}.gguf")
    with output_file(output, magic=b"GGUF", overwrite=overwrite, source=planned.weights.checkpoint.path) as partial:
        with output_errors(output):
            _write(planned, partial, report)
        checked = _require_equal(planned, partial, report)
    types = Counter(entry.kind.name for entry in planned.entries) + Counter(F32=len(planned.extra))
    return Written(types=dict(sorted(types.items())), checked=checked, notes=planned.notes)


def _entries(weights: Weights, architecture: Architecture) -> Iterator[Entry]:
    """Yield the tensors in the order of the file."""
    model = weights.model
    names = gguf.get_tensor_name_map(architecture.arch, model.config.layers)
    embedding, norm, *head = outer_tensors(model)
    blocks = [name for index in range(model.config.layers) for name in model.block_tensors(index)]
    for name in (embedding, *blocks, norm, *head):
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise SchemeError(f"{name}: {architecture.arch.name.lower()} of llama.cpp has no such tensor")
        scheme = _scheme_of(weights, name)
        shape = model.shape(name)
        yield Entry(theirs, name, _kind(weights, name, scheme, shape), shape, scheme, architecture.heads(name, model))


def _scheme_of(weights: Weights, name: str) -> Scheme | None:
    layer, kind = name.rsplit(".", 1)
    if kind != "weight":
        return None
    return weights.schemes.get(layer) or weights.table_schemes.get(layer)


def _kind(weights: Weights, name: str, scheme: Scheme | None, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    if scheme is not None:
        kind, reason = _gguf_blocks.block_type(scheme, shape[1])
        if kind is None:
            raise SchemeError(f"{name}: {reason}")
        return gguf.GGMLQuantizationType[kind]
    stored = weights.checkpoint.tensors[name].dtype
    if stored not in FLOATS:
        raise SchemeError(f"{name}: is stored as {stored}; llama.cpp computes with {', '.join(FLOATS)}")
    return gguf.GGMLQuantizationType[stored if len(shape) > 1 else "F32"]  # its norms and biases are F32


def _wide_notes(entries: tuple[Entry, ...]) -> Iterator[str]:
    """Yield what a model pays for types that are wider than its scheme."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.scheme is None:
            continue
        bits = _gguf_blocks.BITS[cast(_gguf_blocks.BlockType, entry.kind.name)]
        grouped = entry.scheme.granularity == "group" and entry.scheme.group_size == _gguf_blocks.BLOCK
        if entry.scheme.bits < bits or not grouped:
            found[entry.scheme.label()] = entry.kind.name
    for label, kind in found.items():
        per_weight = _bits_per_weight(kind)
        yield f"{label} is stored as {kind}, which is wider than that: {per_weight:.1f} bits per weight, none changed"


def _bits_per_weight(kind: str) -> float:
    values, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return 8 * size_bytes / values


def _write(planned: Planned, partial: Path, report: ProgressCallback) -> None:
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(partial, planned.architecture.arch_name, use_temp_file=False)
    try:
        _gguf_metadata.add_fields(writer, planned.fields)
        for name, values in planned.extra.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for entry in planned.entries:
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), _size(entry), entry.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = cast(list[IO[bytes]], writer.fout)[0]
        writer.write_padding(file, file.tell())
        # by ourselves: numpy's tofile has no errno for a full disk
        for values in planned.extra.values():
            file.write(values.tobytes())
            writer.write_padding(file, file.tell())
        for done, entry in enumerate(planned.entries):
            report(Progress("write", done, len(planned.entries), entry.name))
            for start, stop in _slabs(entry):
                file.write(_stored(planned.weights, entry, start, stop).data)
            writer.write_padding(file, file.tell())
        report(Progress("write", len(planned.entries), len(planned.entries)))
    finally:
        writer.close()


def _size(entry: Entry) -> int:
    values, size_bytes = gguf.GGML_QUANT_SIZES[entry.kind]
    return int(np.prod(entry.shape)) // values * size_bytes


def _slabs(entry: Entry) -> Iterator[tuple[int, int]]:
    """Yield the rows that are worked on at once; all, where they are interleaved."""
    rows = entry.shape[0]
    width = int(np.prod(entry.shape[1:]))
    step = rows if entry.heads is not None else max(1, SLAB_VALUES // max(width, 1))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _integers(weights: Weights, entry: Entry, start: int, stop: int) -> Integers:
    layer = entry.source.removesuffix(".weight")
    packed = weights.packed_linear(layer)
    if packed is None:
        return Integers.of(weights.packed_table(layer, (start, stop)))
    found = Integers.of(packed).with_rows(np.arange(start, stop))
    return found if entry.heads is None else found.with_rows(interleaved(stop, entry.heads))


def _floats(weights: Weights, entry: Entry, start: int, stop: int) -> NDArray[Any]:
    """Return rows of a float tensor as the folder stores them, bfloat16 in uint16, in the order of the file."""
    values = weights.checkpoint.read_array(entry.source, rows=(start, stop))
    return values if entry.heads is None else values[interleaved(stop, entry.heads)]


def _stored(weights: Weights, entry: Entry, start: int, stop: int) -> NDArray[Any]:
    """Return the bytes of some rows, as the file has them."""
    if entry.kind.name == "Q4_K":
        part = _super_blocks.tensor_name(entry.source.removesuffix(".weight"))
        blocks = weights.checkpoint.read_array(part, rows=(start, stop))
        return np.ascontiguousarray(blocks if entry.heads is None else blocks[interleaved(stop, entry.heads)])
    if entry.scheme is not None:
        kind = cast(_gguf_blocks.BlockType, entry.kind.name)
        return _gguf_blocks.pack(entry.source, _integers(weights, entry, start, stop), kind)
    values = _floats(weights, entry, start, stop)
    return np.ascontiguousarray(as_float32(values) if entry.kind.name == "F32" else values)


def _values(weights: Weights, entry: Entry, start: int, stop: int) -> NDArray[np.float32]:
    """Return what some rows stand for, in float32."""
    if entry.scheme is not None:
        return _integers(weights, entry, start, stop).values()
    return as_float32(_floats(weights, entry, start, stop))


def interleaved(rows: int, heads: int) -> NDArray[np.intp]:
    """Return which row of Hugging Face's stands in each place of llama.cpp's: the halves of each head in turns."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _require_equal(planned: Planned, file: Path, report: ProgressCallback) -> int:
    """Read everything back and return how many values were compared. Raises: InternalError if one differs."""
    tensors = read_header(file).tensors
    checked = 0
    for done, entry in enumerate(planned.entries):
        report(Progress("verify", done, len(planned.entries), entry.name))
        info = tensors[entry.name]
        if (info.dtype, info.shape) != (entry.kind.name, entry.shape):
            raise InternalError(f"{file}: {entry.name} is {info.dtype} {info.shape}, and was written as {entry}")
        for start, stop in _slabs(entry):
            found = dequantize(rows_of(info, (start, stop)))
            wanted = _values(planned.weights, entry, start, stop)
            if not np.array_equal(found.view(np.uint32), wanted.view(np.uint32)):
                differing = int((found != wanted).sum())
                raise InternalError(f"{file}: {differing} values of {entry.name} are not those of {entry.source}")
            checked += found.size
    report(Progress("verify", len(planned.entries), len(planned.entries)))
    return checked
