"""ONNX, as ONNX Runtime and onnxruntime-genai run it: a folder with the graph of a decoder, its tensors, its tokenizer.

    model.onnx           the graph: tokens and past keys and values in, logits and all keys and values out
    model.onnx.data      what the weights are stored as: the integers of the folder, its floats as they are
    genai_config.json    what onnxruntime-genai wants to know; config.json and tokenizer for the others

The graph is what the model's own flow does (_onnx_ops.py), so every architecture of models/ has one. Linears of
integers, and an embedding or a head of integers, are laid out for MatMulNBits (_onnx_blocks.py); an embedding that is
the head, too, is stored once. Norms and biases become float32, which holds each of the folder's floats.

A source is read, written and forgotten; then all are read back from the disk and compared, bit for bit.
The onnx package writes the file: an extra, `pip install zeropoint[onnx]`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.checkpoint.place import output_errors, write_side_file
from zeropoint.checkpoint.reader import as_float32
from zeropoint.checkpoint.tokenizer import Tokenizer, find_tokenizer
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import InputError, InternalError, SchemeError
from zeropoint.exporting import _onnx_blocks, _onnx_ops
from zeropoint.exporting._integers import Integers, notes_of_inputs, require_no_outliers
from zeropoint.exporting._onnx_graph import Graph, Stored
from zeropoint.exporting._onnx_ops import INPUT_IDS, LOGITS, Matrix, OnnxOps, Past
from zeropoint.exporting.result import Written
from zeropoint.models.parts import Block, Ops, last_norm, linear_names, positions, tables
from zeropoint.progress import ProgressCallback
from zeropoint.runtime.choices import CONFIG_KEY
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

STORES = "2 to 8 bits with or without zero points; groups of 16 columns or multiples of them, channels, a tensor"

ENGINE = "ONNX Runtime"

GENAI_TYPE = "llama"
"""What onnxruntime-genai is told of every model: a decoder that is all in one graph. It knows not all names of ours,
and does more than that for some that it knows.
"""


@dataclass(frozen=True)
class Planned:
    """What will be written."""

    weights: Weights
    graph: Graph
    notes: tuple[str, ...]


def plan(weights: Weights) -> Planned:
    """Return what will be written, from headers alone.

    Raises: SchemeError, with the tensor's name, for what MatMulNBits does not hold; InputError if the onnx package is
    not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise InputError(f"the onnx package is not installed ({error}): pip install 'zeropoint[onnx]'") from error
    require_no_outliers(weights)
    schemes = {**weights.schemes, **weights.table_schemes}
    for name, scheme in schemes.items():
        if scheme is not None:
            _, reason = _onnx_blocks.block_of(scheme, weights.model.shape(f"{name}.weight")[1])
            if reason:
                raise SchemeError(f"{name}: {reason}")
    notes = [*notes_of_inputs(list(weights.inputs.values()), ENGINE), *_wide_notes(list(schemes.values()))]
    return Planned(weights, record(weights), tuple(notes))


def write(planned: Planned, output: Path, *, overwrite: bool, report: ProgressCallback) -> Written:
    """Write the folder. Raises: OutputError, InternalError; nothing is under the output's name then."""
    from zeropoint.exporting import _onnx_file

    weights, graph = planned.weights, planned.graph
    found = _onnx_file.places(graph)
    checked = 0
    with Writer(output, source=weights.checkpoint.path, overwrite=overwrite, restart=True) as writer:
        for group, start, stop in _onnx_file.slabs(found, "write", report):
            with output_errors(output):
                _onnx_file.write_data(writer.folder, group, start, _parts(weights, group[0].tensor, start, stop))
        with output_errors(output):
            _onnx_file.write_graph(writer.folder, graph, found, weights.model.config.model_type)
        weights.checkpoint.copy_side_files(writer.folder)
        tokenizer = find_tokenizer(weights.checkpoint)
        if tokenizer is not None:
            write_side_file(writer.folder / "genai_config.json", _json(_genai(weights, tokenizer)))
        config = dict(weights.checkpoint.config)
        for key in ("quantization_config", CONFIG_KEY):
            config.pop(key, None)
        writer.finish(config)
        written = _onnx_file.read(writer.folder)
        for group, start, stop in _onnx_file.slabs(found, "verify", report):
            source, held = group[0].tensor.source, written.rows(group, start, stop)
            scheme, wanted = _scheme(weights, source), _values(weights, group[0].tensor, start, stop)
            values = held[""] if scheme is None else _onnx_blocks.values(held, _onnx_blocks.stored_bits(scheme))
            if values.dtype != wanted.dtype or values.tobytes() != wanted.tobytes():
                raise InternalError(f"{output}: rows {start} to {stop} of {source} are not those of the model")
            checked += values.size
        writer.commit()
    kinds = Counter(_kind(weights, tensor) for tensor in graph.stored.values() if tensor.part in ("", "B"))
    return Written(types=dict(sorted(kinds.items())), checked=checked, notes=planned.notes)


def record(weights: Weights) -> Graph:
    """Return what the model computes. Raises: SchemeError for floats that are not known."""
    graph, model = Graph(), weights.model
    ops: Ops = OnnxOps(graph)
    graph.given(INPUT_IDS, "INT64", "batch", "time")
    graph.given(_onnx_ops.ATTENTION_MASK, "INT64", "batch", "total")
    graph.given(_onnx_ops.POSITION_IDS, "INT64", "batch", "time")
    graph.gives(LOGITS, "batch", "time", model.config.vocab_size)
    of_tables = [_matrix(weights, table.name) for table in tables(model)]
    rows = {name: _matrix(weights, name.removesuffix(".weight")) for name in positions(model)}
    x = model.embed(ops, {f"{model.ends.embedding}.weight": of_tables[0], **rows}, INPUT_IDS)
    linears = set(linear_names(model))
    for index in range(model.config.layers):
        prefix, config = f"{model.block_name(index)}.", model.config_of(index)
        graph.scope = prefix
        arrays: dict[str, Any] = {}
        for name in model.block_tensors(index):
            layer = name.removesuffix(".weight")
            array = _matrix(weights, layer) if layer in linears else _vector(graph, weights, name)
            arrays[name.removeprefix(prefix)] = array
        past = Past(index, config.heads, config.kv_heads, config.head_dim)
        x = Block(config, ops, arrays).run(model.flow_of(index), x, past)
    graph.scope = ""
    norm = {name: _vector(graph, weights, name) for name in last_norm(model)}
    logits = model.head(ops, {**norm, f"{model.ends.head}.weight": of_tables[-1]}, x)
    graph.node("Identity", logits, name=LOGITS)
    return graph


def _matrix(weights: Weights, name: str) -> Matrix:
    """Return the weight of a linear or a table, as the ops of the graph want it."""
    rows, cols = weights.model.shape(f"{name}.weight")
    scheme = _scheme(weights, name)
    return Matrix(name, (rows, cols), scheme, "" if scheme is not None else _float_dtype(weights, f"{name}.weight"))


def _vector(graph: Graph, weights: Weights, name: str) -> str:
    """Add a gain or a bias to the graph, in float32."""
    _float_dtype(weights, name)
    return graph.store(Stored(name, "FLOAT", weights.model.shape(name), name))


def _scheme(weights: Weights, name: str) -> Scheme | None:
    return weights.schemes.get(name) or weights.table_schemes.get(name)


def _float_dtype(weights: Weights, name: str) -> str:
    """Return what a float tensor is stored as. Raises: SchemeError if float32 does not hold it."""
    checkpoint = weights.checkpoint
    stored = checkpoint.tensors[checkpoint.tied.get(name, name)].dtype
    if stored not in _onnx_ops.DTYPES:
        raise SchemeError(f"{name}: is stored as {stored}; the graph computes with {', '.join(_onnx_ops.DTYPES)}")
    return stored


def _kind(weights: Weights, tensor: Stored) -> str:
    """Return what a tensor is called in the result."""
    scheme = _scheme(weights, tensor.source)
    return tensor.dtype if scheme is None else f"MatMulNBits of {_onnx_blocks.stored_bits(scheme)} bits"


def _wide_notes(schemes: list[Scheme | None]) -> Iterator[str]:
    """Yield what a model pays for codes that are wider than its scheme."""
    for scheme in dict.fromkeys(schemes):
        if scheme is not None and scheme.bits != _onnx_blocks.stored_bits(scheme):
            yield f"{scheme.label()} is stored in {_onnx_blocks.stored_bits(scheme)} bits, none of its values changed"


def _integers(weights: Weights, tensor: Stored, start: int, stop: int) -> Integers:
    packed = weights.packed_linear(tensor.source) if tensor.source in weights.schemes else None
    if packed is None:
        return Integers.of(weights.packed_table(tensor.source, (start, stop)))
    return Integers.of(packed).with_rows(np.arange(start, stop))


def _floats(weights: Weights, tensor: Stored, start: int, stop: int) -> NDArray[Any]:
    """Return rows of a float tensor as the folder stores them, bfloat16 in uint16; vectors in float32."""
    values = weights.checkpoint.read_array(tensor.source, rows=(start, stop))
    return values if len(tensor.shape) > 1 else as_float32(values)


def _parts(weights: Weights, tensor: Stored, start: int, stop: int) -> Mapping[str, NDArray[Any]]:
    """Return some rows of the source of a tensor, as they are written."""
    if tensor.part:
        return _onnx_blocks.pack(_integers(weights, tensor, start, stop))
    return {"": _floats(weights, tensor, start, stop)}


def _values(weights: Weights, tensor: Stored, start: int, stop: int) -> NDArray[Any]:
    """Return what some rows of the source stand for: integers as float32, floats as they are written."""
    if tensor.part:
        return _integers(weights, tensor, start, stop).values()
    return _floats(weights, tensor, start, stop)


def _genai(weights: Weights, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of genai_config.json."""
    config, kinds = weights.model.config, ("key", "value")
    ends = list(tokenizer.eos_ids)
    bos = {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
    inputs = {name: name for name in (INPUT_IDS, _onnx_ops.ATTENTION_MASK, _onnx_ops.POSITION_IDS)}
    return {
        "model": {
            **bos,
            **({"eos_token_id": ends, "pad_token_id": ends[0]} if ends else {}),
            "context_length": config.max_positions,
            "decoder": {
                "filename": "model.onnx",
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "inputs": inputs | {f"past_{kind}_names": _onnx_ops.PAST.format("%d", kind) for kind in kinds},
                "num_attention_heads": config.heads,
                "num_hidden_layers": config.layers,
                "num_key_value_heads": config.kv_heads,
                "outputs": {
                    LOGITS: LOGITS,
                    **{f"present_{kind}_names": _onnx_ops.PRESENT.format("%d", kind) for kind in kinds},
                },
                "session_options": {"provider_options": []},
            },
            "type": GENAI_TYPE,
            "vocab_size": config.vocab_size,
        },
        "search": {"do_sample": False, "max_length": config.max_positions, "past_present_share_buffer": False},
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
