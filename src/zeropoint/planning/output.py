"""The tensors of an output before there is one: names, dtypes and shapes, and so its size to the byte.

Only outlier columns are not known before the text is read: an output that has them is larger by these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.checkpoint.safetensors_header import DTYPES, layout, make_header
from zeropoint.evaluation.results import Size
from zeropoint.evaluation.size import float_name, measure_size
from zeropoint.planning.schemes import Plans, inputs_of, schemes_of
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme

OUTPUT = Path("output")
_DTYPE_NAMES = {dtype.torch_name: name for name, dtype in DTYPES.items()}


def planned_tensors(
    weights: Weights, plans: Plans, tables: Mapping[str, Scheme], file_format: ModuleType, *, unties: bool
) -> dict[str, TensorInfo]:
    """Return the tensors that the output will have, by name.

    tables: schemes of those that become integers. unties: whether a head that is the embedding comes apart from it.
    """
    found: dict[str, TensorInfo] = {}
    inputs = inputs_of(plans)
    for name, info in weights.checkpoint.tensors.items():
        layer = name.removesuffix(".weight")
        plan = plans.get(layer) if name.endswith(".weight") else None
        float_dtype = float_name(info)
        if plan is not None:
            rows, cols = info.shape
            parts = file_format.layout(layer, plan.scheme, (rows, cols), inputs[layer], float_dtype=float_dtype)
        elif layer in tables:
            also = next((table.also for table in weights.tables if table.name == layer), None)
            rows, cols = info.shape
            parts = file_format.table_layout(layer, tables[layer], (rows, cols), also)
        else:
            parts = {name: (float_dtype, info.shape)}
        if unties and layer == weights.tables[0].name and weights.tables[0].also is not None:
            parts |= {f"{weights.tables[0].also}.weight": (float_dtype, info.shape)}
        found |= {each.name: each for each in _infos(parts)}
    return found


def planned_size(
    weights: Weights, plans: Plans, tables: Mapping[str, Scheme], tensors: Mapping[str, TensorInfo]
) -> Size:
    """Return where the bytes of the output will be. tensors: of `planned_tensors`."""
    header = len(make_header(layout(tensors.values())))
    file_bytes = header + sum(info.size_bytes for info in tensors.values())
    of_tables = {table.name: tables.get(table.name) for table in weights.tables}
    return measure_size(tensors, schemes_of(plans), tables=of_tables, file_bytes=file_bytes)


def _infos(parts: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[TensorInfo]:
    for name, (dtype, shape) in parts.items():
        stored = _DTYPE_NAMES[dtype]
        yield TensorInfo(name, stored, shape, math.prod(shape) * DTYPES[stored].bytes, OUTPUT)
