"""A graph on the disk: model.onnx, and its tensors beside it in model.onnx.data, where readers map them into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import zeropoint
from zeropoint.errors import InternalError
from zeropoint.exporting._onnx_graph import Graph, Node, Port, Stored
from zeropoint.exporting._onnx_ops import MICROSOFT, OPSET
from zeropoint.progress import Progress, ProgressCallback

MODEL, DATA = "model.onnx", "model.onnx.data"

IR_VERSION = 11
"""Of files with opset 23, the first one that has it."""

ALIGNED = 64
"""Tensors begin at multiples of so many bytes."""

SLAB_VALUES = 1 << 24
"""Of a table, written and compared at once: 67 MB in float32."""

NUMPY: Mapping[str, Any] = {"UINT8": np.uint8, "FLOAT": np.float32, "FLOAT16": np.float16, "BFLOAT16": np.uint16}
"""How numpy has the dtypes of stored tensors; bfloat16 as its bits."""

Parts = Mapping[str, NDArray[Any]]
"""The tensors of one source by `Stored.part`, or some rows of each."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the data."""

    tensor: Stored
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, the first axis."""
        return prod(self.tensor.shape[1:]) * int(np.dtype(NUMPY[self.tensor.dtype]).itemsize)

    @property
    def size_bytes(self) -> int:
        """Bytes of all."""
        return self.tensor.shape[0] * self.row_bytes


def places(graph: Graph) -> list[Place]:
    """Return where each tensor goes, in the order in which the graph needs them."""
    found, end = [], 0
    for tensor in graph.stored.values():
        found.append(Place(tensor, -(-end // ALIGNED) * ALIGNED))
        end = found[-1].offset + found[-1].size_bytes
    return found


def slabs(found: list[Place], stage: str, report: ProgressCallback) -> Iterator[tuple[list[Place], int, int]]:
    """Yield what is worked on at once: the tensors of a source, and which rows of them. stage: for the report."""
    groups = [list(group) for _, group in groupby(found, key=lambda place: place.tensor.source)]
    for done, group in enumerate(groups):
        report(Progress(stage, done, len(groups), group[0].tensor.source))
        rows = group[0].tensor.shape[0]
        step = max(1, SLAB_VALUES // max(prod(place.tensor.shape[1:]) for place in group))
        for start in range(0, rows, step):
            yield group, start, min(start + step, rows)
    report(Progress(stage, len(groups), len(groups)))


def write_data(folder: Path, group: list[Place], start: int, parts: Parts) -> None:
    """Write some rows of a source where they belong, from row `start` on. Raises: OSError, InternalError."""
    file = folder / DATA
    with file.open("r+b" if file.exists() else "xb") as stream:
        for place in group:
            values = np.ascontiguousarray(parts[place.tensor.part])
            if values.dtype != NUMPY[place.tensor.dtype] or values.shape[1:] != place.tensor.shape[1:]:
                raise InternalError(f"{place.tensor}: {values.dtype} {values.shape} was to be written of it")
            stream.seek(place.offset + start * place.row_bytes)
            stream.write(values.tobytes())


def write_graph(folder: Path, graph: Graph, found: list[Place], name: str) -> None:
    """Write the graph, which says where in the data its tensors lie. Raises: OSError."""
    made = helper.make_graph(
        [_node(node) for node in graph.nodes],
        name,
        [_port(port) for port in graph.inputs],
        [_port(port) for port in graph.outputs],
        [
            *(_external(place) for place in found),
            *(numpy_helper.from_array(values, each) for each, values in graph.constants.items()),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)
    model.producer_name, model.producer_version = "zeropoint", zeropoint.__version__
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class Written:
    """A folder that is read back. tensors: what the graph says of them, by name."""

    folder: Path
    tensors: Mapping[str, TensorProto]

    def rows(self, group: list[Place], start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return rows of the tensors of a source, from where the graph says. Raises: InternalError, OSError."""
        found = {}
        with (self.folder / DATA).open("rb") as stream:
            for place in group:
                tensor, planned = self.tensors[place.tensor.name], place.tensor
                where = {entry.key: entry.value for entry in tensor.external_data}
                said = tuple(tensor.dims), tensor.data_type, where["location"], int(where["length"])
                if said != (planned.shape, _dtype(planned.dtype), DATA, place.size_bytes):
                    raise InternalError(f"{self.folder / MODEL}: says {said} of {planned}")
                stream.seek(int(where["offset"]) + start * place.row_bytes)
                held = stream.read((stop - start) * place.row_bytes)
                values = np.frombuffer(held, NUMPY[planned.dtype])
                found[planned.part] = values.reshape(stop - start, *planned.shape[1:])
        return found


def read(folder: Path) -> Written:
    """Return what is in a folder."""
    model = onnx.load(str(folder / MODEL), load_external_data=False)
    return Written(folder, {tensor.name: tensor for tensor in model.graph.initializer})


def _node(node: Node) -> onnx.NodeProto:
    attributes: dict[str, Any] = dict(node.attributes)
    if node.op == "Cast":
        attributes["to"] = _dtype(str(attributes["to"]))
    return helper.make_node(
        node.op, node.inputs, node.outputs, name=node.outputs[0], domain=node.domain or None, **attributes
    )


def _port(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, _dtype(port.dtype), port.shape)


def _external(place: Place) -> TensorProto:
    tensor = TensorProto(
        name=place.tensor.name,
        data_type=_dtype(place.tensor.dtype),
        dims=place.tensor.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", DATA), ("offset", place.offset), ("length", place.size_bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _dtype(name: str) -> int:
    return int(TensorProto.DataType.Value(name))
