"""Look into a checkpoint: how every weight is stored, what its outliers are and, beside a reference, what it lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import InputError, NonFiniteError
from zeropoint.evaluation.results import RECORD, Inspection, QuantizeResult, TensorRow
from zeropoint.evaluation.size import linear_shape, measure_size, part_of, stored_bytes
from zeropoint.models.parts import outer_tensors
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.weights import Weights
from zeropoint.types import Scheme


def inspect(
    path: str | Path,
    *,
    headers: bool = False,
    reference: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Inspection:
    """Return a row for every weight of a checkpoint, in the order of the model.

    headers: read no weight and import no torch; the rows have no outlier ratio then. reference: the model that this one
    was made from; adds the errors of the weights. Without it, those of the linears come from the record that zeropoint
    left beside the weights, if there is one.
    Raises: InputError, by one of its subclasses, if a checkpoint cannot be read, or the two have different weights.
    """
    weights = Weights(open_checkpoint(path))
    original = None if reference is None else Weights(open_checkpoint(reference))
    rows = list(_header_rows(weights))
    if original is not None:
        _require_same(rows, list(_header_rows(original)), path, reference)
    record = _record(weights) if original is None else None
    if record is not None:
        rows = [_recorded(row, record) for row in rows]
    if not headers:
        report = progress or (lambda step: None)
        report(Progress("inspect", 0, len(rows)))
        for done, row in enumerate(rows):
            rows[done] = _measured(row, weights, original)
            report(Progress("inspect", done + 1, len(rows), row.name))
    tensors = weights.checkpoint.tensors
    against = f"{record.model}, as recorded" if record is not None else reference
    return Inspection(
        path=str(path),
        reference=None if against is None else str(against),
        model_type=weights.model.config.model_type,
        tensors=tuple(rows),
        size=measure_size(tensors, weights.schemes, tables=weights.table_schemes, file_bytes=stored_bytes(tensors)),
    )


def _header_rows(weights: Weights) -> Iterator[TensorRow]:
    """Yield what the headers say about every weight, in the order of the model; tensors it does not use come last."""
    table, *outer = outer_tensors(weights.model)
    inner = [name for index in range(weights.model.config.layers) for name in weights.model.block_tensors(index)]
    tensors = weights.checkpoint.tensors
    quantized = {f"{name}.weight": scheme for name, scheme in weights.table_schemes.items() if scheme is not None}
    for full in (table, *inner, *outer, *weights.skipped()):
        name = full.removesuffix(".weight")
        scheme = weights.schemes.get(name) if full.endswith(".weight") else None
        if full in quantized:
            yield _table_row(full, weights, quantized[full])
            continue
        if scheme is not None:
            stored = [info for tensor, info in tensors.items() if tensor.rpartition(".")[0] == name]
            outliers = tensors.get(f"{name}.outlier_columns")
            yield TensorRow(
                name=name,
                kind=name.rpartition(".")[2],
                role="linear",
                shape=linear_shape(name, tensors, scheme),
                stored=scheme.label(),
                size_bytes=sum(info.size_bytes for info in stored),
                outlier_columns=None if outliers is None else outliers.shape[0],
            )
            continue
        info = tensors[full]
        linear = name in weights.schemes and full.endswith(".weight")
        part = part_of(info, weights.schemes)
        yield TensorRow(
            name=name if linear else full,
            kind=name.rpartition(".")[2],
            role="linear" if linear else part if part in ("embedding", "head") else "other",
            shape=info.shape,
            stored=info.dtype,
            size_bytes=info.size_bytes,
        )


def _table_row(full: str, weights: Weights, scheme: Scheme) -> TensorRow:
    name = full.removesuffix(".weight")
    config = weights.model.config
    alone = weights.checkpoint.tensors.values()
    return TensorRow(
        name=full,
        kind=name.rpartition(".")[2],
        role="embedding" if name == weights.tables[0].name else "head",
        shape=(config.vocab_size, config.hidden_size),
        stored=scheme.label(),
        size_bytes=sum(info.size_bytes for info in alone if info.name.rpartition(".")[0] == name),
    )


def _record(weights: Weights) -> QuantizeResult | None:
    """Return the record of the run that made the checkpoint; None if there is none, as beside a float model."""
    file = weights.checkpoint.path / RECORD
    return QuantizeResult.load(file) if file.is_file() else None


def _recorded(row: TensorRow, record: QuantizeResult) -> TensorRow:
    """Return the row with the errors that were measured when the layer was quantized."""
    import msgspec

    for layer in record.layers:
        if layer.name == row.name.removesuffix(".weight"):
            return msgspec.structs.replace(row, sqnr_db=layer.sqnr_db, cosine=layer.cosine)
    return row


def _measured(row: TensorRow, weights: Weights, original: Weights | None) -> TensorRow:
    """Return the row with what can be said when the weights are read.

    Raises: NonFiniteError naming the weight if it holds NaN or infinity.
    """
    import msgspec

    from zeropoint.evaluation.layers import outlier_ratio, weight_error

    value = _values(weights, row)
    if not value.is_floating_point():
        return row
    try:
        found: dict[str, Any] = {"outlier_ratio": outlier_ratio(value)}
        if original is not None:
            lost = weight_error(_values(original, row), value)
            found |= {"sqnr_db": lost.sqnr_db, "cosine": lost.cosine, "max_abs_error": lost.max_abs}
    except NonFiniteError as error:
        raise NonFiniteError(f"{row.name}: {error}") from error
    return msgspec.structs.replace(row, **found)


def _values(weights: Weights, row: TensorRow) -> Any:
    """Return the float values that a row is about."""
    if row.role == "linear":
        return weights.restored_linear(row.name)
    table = row.name.removesuffix(".weight")
    return weights.restored_table(table) if table in weights.table_schemes else weights.checkpoint.read(row.name)


def _require_same(
    rows: list[TensorRow], expected: list[TensorRow], path: str | Path, reference: str | Path | None
) -> None:
    shapes = {row.name: row.shape for row in rows}
    wanted = {row.name: row.shape for row in expected}
    different = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if different:
        name = different[0]
        raise InputError(
            f"{path} was not made from {reference}: {name} is {shapes.get(name, 'missing')} in the one "
            f"and {wanted.get(name, 'missing')} in the other"
        )
