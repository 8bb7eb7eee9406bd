"""What scale and zero point do to one tensor: a group of it step by step, its histogram, the range rules compared.

    float tensor --range rule--> low, high --from_range--> S, Z --> codes --> restored values
    quantized    ------------------------- file ---------> S, Z,    codes --> restored values

All range rules of weights are tried on a float tensor, without importance: no text is read. A value is clipped when it
lies outside [low, high] of its group. With e = r' - r, and sums over the values measured,

    clipping = sum of e^2 where r is clipped / sum of r^2       rounding = the same where it is not
    SQNR     = -10 log10(clipping + rounding), dB

Of a tensor larger than MEASURED values the rules see rows at equal distances; how many is in the result.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import zeropoint
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import InputError, RecipeError, SchemeError
from zeropoint.evaluation.layers import outlier_ratio
from zeropoint.evaluation.results import Bar, GroupAnatomy, RangeRow, TensorInspection, TensorRow
from zeropoint.evaluation.spreading import code_counts
from zeropoint.inspection import inspect
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.qparams.affine import dequantize, quantize, restore
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import check_scheme, expand, split
from zeropoint.qparams.levels import minimum_of
from zeropoint.runtime.weights import Weights
from zeropoint.types import QParams, QTensor, Scheme

RANGE = "minmax"
EXCERPT = 256
"""Values of a group in a result, at most."""

MEASURED = 1 << 20
"""Values of a tensor that the rules are tried on, at most; all of them where one scale is for the whole tensor."""

_SLAB = 1 << 20
"""Values in float64 at once."""

_REACH = 4
"""Root mean squares on each side of zero that the histogram resolves, in halves."""


def inspect_tensor(
    path: str | Path,
    *,
    tensor: str,
    scheme: Scheme | None = None,
    range_rule: str | None = None,
    row: int = 0,
    group: int = 0,
    progress: ProgressCallback | None = None,
) -> TensorInspection:
    """Return what quantization does to one matrix of a checkpoint, or what it did to a quantized one.

    tensor: its name, with or without ".weight". scheme: for a float tensor; None is 4 bits, groups of 64, symmetric.
    range_rule: whose range the excerpt and the counts of codes have; None is min-max. row, group: of the excerpt.
    Raises: InputError, by one of its subclasses, for a checkpoint that cannot be read, a name that is not there, what
    is no matrix, a row or group outside it, a scheme that is not allowed, and a scheme or rule for a quantized tensor.
    """
    rule = RANGE if range_rule is None else range_rule
    find.load("qparams.ranges", rule, error=RecipeError)
    if scheme is not None:
        check_scheme(scheme)
    weights = Weights(open_checkpoint(path))
    ends = weights.model.ends
    if weights.model.config.tied_embeddings and tensor.removesuffix(".weight") == ends.head:
        tensor = ends.embedding
    found = _find(path, tensor, inspect(path, headers=True).tensors)
    stored = _stored(weights, found)
    if stored is not None:
        if scheme is not None or range_rule is not None:
            raise InputError(
                f"{found.name} is stored as {found.stored}, with the scales of its file; another scheme or range needs "
                "the float model that it was made from"
            )
        return _of_codes(path, found, stored, row, group)
    values = _matrix(weights, found)
    return _of_floats(path, found, values, scheme or Scheme(), rule, (row, group), progress or (lambda step: None))


def _find(path: str | Path, tensor: str, rows: Sequence[TensorRow]) -> TensorRow:
    """Return the row of the tensor. Raises: InputError naming the nearest if there is none; SchemeError for vectors."""
    names = {row.name.removesuffix(".weight"): row for row in rows} | {row.name: row for row in rows}
    found = names.get(tensor, names.get(tensor.removesuffix(".weight")))
    matrices = [row.name for row in rows if len(row.shape) == 2]
    if found is None:
        near = difflib.get_close_matches(tensor, [row.name for row in rows], n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the first matrix is {matrices[0]!r};"
        raise InputError(f"{path} has no tensor {tensor!r}; {advice} zeropoint inspect MODEL --headers lists them")
    if len(found.shape) != 2:
        what = "a norm or a bias" if len(found.shape) == 1 else "no matrix"
        raise SchemeError(
            f"{found.name} has the shape {found.shape}: {what} stays float and has no scales; "
            f"name a matrix, such as {matrices[0]!r}"
        )
    return found


def _stored(weights: Weights, found: TensorRow) -> QTensor | None:
    """Return the codes and scales of a quantized tensor; None of a float one."""
    name = found.name.removesuffix(".weight")
    if weights.schemes.get(name) is not None:
        weight = weights.linear(name)
    elif weights.table_schemes.get(name) is not None:
        weight = weights.table(name)
    else:
        return None
    return weight if isinstance(weight, QTensor) else None


def _matrix(weights: Weights, found: TensorRow) -> Tensor:
    """Return the float32 values (rows, cols). Raises: SchemeError for integers, NonFiniteError for NaN or infinity."""
    name = found.name if found.name in weights.checkpoint.tensors else f"{found.name}.weight"
    values = weights.read(name)
    if not values.is_floating_point():
        raise SchemeError(f"{name} holds {found.stored}, no floats; there is nothing to quantize")
    return values.float()


def _of_codes(path: str | Path, found: TensorRow, q: QTensor, row: int, group: int) -> TensorInspection:
    """Return what a file holds: its own codes and scales."""
    scheme, (rows, cols) = q.scheme, q.shape
    first, columns = _place(found.name, (rows, cols), scheme, row, group)
    values = restore(q)
    of_row = 0 if len(q.qparams.scale) == 1 else row
    zero_point = q.qparams.zero_point
    levels = q.qparams.levels
    span = slice(first, first + min(columns, EXCERPT))
    outliers = () if q.input is None else q.input.outliers
    excerpt = GroupAnatomy(
        row=row,
        group=group,
        first_column=first,
        columns=columns,
        rule=None,
        low=None,
        high=None,
        exact_scale=None,
        scale=float(q.qparams.scale[of_row, group]),
        zero_point=None if zero_point is None else float(zero_point[of_row, group]),
        minimum=None if levels is None else float(minimum_of(levels)[of_row, group]),
        values=None,
        positions=None,
        codes=tuple(q.codes[row, span].tolist()),
        restored=tuple(values[row, span].tolist()),
        float_columns=tuple(column for column in outliers if span.start <= column < span.stop),
    )
    return _result(path, found, values, scheme, excerpt, (), None, code_counts(q.codes, scheme), rows)


def _of_floats(
    path: str | Path,
    found: TensorRow,
    values: Tensor,
    scheme: Scheme,
    rule: str,
    place: tuple[int, int],
    report: ProgressCallback,
) -> TensorInspection:
    (row, group), (rows, cols) = place, values.shape
    first, columns = _place(found.name, (rows, cols), scheme, row, group)
    whole = scheme.granularity == "tensor"
    rules = find.names("qparams.ranges")
    measured = values if whole else values[_spread_rows(rows, cols)]
    table: list[RangeRow] = []
    made: dict[str, tuple[_Chosen, tuple[int, ...]]] = {}
    report(Progress("inspect", 0, len(rules)))
    try:
        for done, name in enumerate(rules):
            chosen = _choose(measured, scheme, name)
            codes = quantize(measured, chosen.qparams, scheme)
            here = chosen if whole else _choose(values[row : row + 1], scheme, name)
            table.append(_range_row(name, here, group, _costs(measured, codes, chosen, scheme)))
            made[name] = here, code_counts(codes, scheme)
            report(Progress("inspect", done + 1, len(rules), name))
    except SchemeError as error:
        raise SchemeError(f"{found.name}: {error}") from error
    here, counts = made[rule]
    span = slice(first, first + min(columns, EXCERPT))
    excerpt = _excerpt(values if whole else values[row : row + 1], here, scheme, rule, place, span, columns)
    best = max((one for one in table if one.sqnr_db is not None), key=lambda one: one.sqnr_db or 0.0, default=None)
    return _result(
        path, found, values, scheme, excerpt, tuple(table), None if best is None else best.rule, counts, len(measured)
    )


def _place(name: str, shape: tuple[int, int], scheme: Scheme, row: int, group: int) -> tuple[int, int]:
    """Return the first column of a group, and how many it has. Raises: InputError if there is no such row or group."""
    rows, cols = shape
    groups = scheme.groups(cols)
    for what, asked, count in (("row", row, rows), ("group", group, groups)):
        if not 0 <= asked < count:
            known = f"{what}s 0 to {count - 1}" if count > 1 else f"one {what}, 0"
            raise InputError(f"{what} {asked}: {name} as {scheme.label()} has {known}")
    size = scheme.group_cols(cols)
    return group * size, min(size, cols - group * size)


def _spread_rows(rows: int, cols: int) -> Tensor:
    """Return the numbers of the rows that the rules see: all, or as many as hold MEASURED values, evenly spaced."""
    count = min(rows, max(1, MEASURED // cols))
    return torch.arange(count) * rows // count


@dataclass(frozen=True)
class _Chosen:
    """low, high: float32 (rows, groups), as the rule gives them. qparams: the grid that covers them."""

    low: Tensor
    high: Tensor
    qparams: QParams


def _choose(values: Tensor, scheme: Scheme, rule: str) -> _Chosen:
    module = find.load("qparams.ranges", rule)
    low, high = module.from_values(split(values, scheme), scheme, module.Options())
    return _Chosen(low, high, from_range(low, high, scheme))


def _excerpt(
    values: Tensor, chosen: _Chosen, scheme: Scheme, rule: str, place: tuple[int, int], span: slice, columns: int
) -> GroupAnatomy:
    """Return the steps of one group. values: the row that it is in; with one scale for the tensor, all rows."""
    row, group = place
    low, high = float(chosen.low[0, group]), float(chosen.high[0, group])
    steps = scheme.q_max - scheme.q_min
    scale = float(chosen.qparams.scale[0, group])
    zero_point = chosen.qparams.zero_point
    at = row if len(values) > 1 else 0
    codes = quantize(values, chosen.qparams, scheme)
    position = _positions(values, chosen.qparams, scheme)
    return GroupAnatomy(
        row=row,
        group=group,
        first_column=span.start,
        columns=columns,
        rule=rule,
        low=low,
        high=high,
        exact_scale=max(-low, high) / (steps / 2) if scheme.symmetric else (high - low) / steps,
        scale=scale,
        zero_point=None if zero_point is None else float(zero_point[0, group]),
        minimum=None,
        values=tuple(values[at, span].tolist()),
        positions=tuple(position[at, span].tolist()),
        codes=tuple(codes[at, span].tolist()),
        restored=tuple(dequantize(codes, chosen.qparams, scheme)[at, span].tolist()),
        float_columns=(),
    )


def _positions(values: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Return r / S + Z, where the values lie among the codes: float32 (rows, cols)."""
    rows, cols = values.shape
    position = values / expand(qparams.scale, rows, cols, scheme)
    if qparams.zero_point is not None:
        position += expand(qparams.zero_point, rows, cols, scheme)
    return position


@dataclass(frozen=True)
class _Costs:
    """clipped: share of the values. clipping, rounding: sums of squared errors; signal: of squared values."""

    clipped: float
    clipping: float
    rounding: float
    signal: float


def _costs(values: Tensor, codes: Tensor, chosen: _Chosen, scheme: Scheme) -> _Costs:
    rows, cols = values.shape
    low, high = (expand(end, rows, cols, scheme) for end in (chosen.low, chosen.high))
    outside = (values < low) | (values > high)
    error = dequantize(codes, chosen.qparams, scheme).double().sub_(values).square_()
    return _Costs(
        clipped=int(outside.sum()) / values.numel(),
        clipping=float(error[outside].sum()),
        rounding=float(error[~outside].sum()),
        signal=float(values.double().square().sum()),
    )


def _range_row(rule: str, here: _Chosen, group: int, costs: _Costs) -> RangeRow:
    zero_point = here.qparams.zero_point
    noise = costs.clipping + costs.rounding
    return RangeRow(
        rule=rule,
        low=float(here.low[0, group]),
        high=float(here.high[0, group]),
        scale=float(here.qparams.scale[0, group]),
        zero_point=None if zero_point is None else int(zero_point[0, group]),
        clipped=costs.clipped,
        clipping_error=costs.clipping / costs.signal if costs.signal > 0 else 0.0,
        rounding_error=costs.rounding / costs.signal if costs.signal > 0 else 0.0,
        sqnr_db=10 * math.log10(costs.signal / noise) if costs.signal > 0 and noise > 0 else None,
    )


def histogram_of(values: Tensor) -> tuple[Bar, ...]:
    """Return counts of all values between multiples of half their root mean square; the outer bars hold the rest.

    values: float, finite, at least one. The last bar includes its upper end; without a spread there is one bar.
    """
    low, high = (float(end) for end in torch.aminmax(values))
    square = sum(float(part.double().square().sum()) for part in _parts(values))
    rms = math.sqrt(square / values.numel())
    inner = [rms * half / 2 for half in range(-2 * _REACH, 2 * _REACH + 1)]
    edges = sorted({low, high, *(edge for edge in inner if low < edge < high)})
    if len(edges) == 1:
        return (Bar(low=low, high=high, count=values.numel()),)
    between = torch.tensor(edges[1:-1], dtype=torch.float64)
    counts = torch.zeros(len(edges) - 1, dtype=torch.int64)
    for part in _parts(values):
        counts += torch.bincount(torch.bucketize(part.double(), between, right=True), minlength=len(counts))
    return tuple(
        Bar(low=left, high=right, count=int(count))
        for left, right, count in zip(edges, edges[1:], counts.tolist(), strict=False)
    )


def _parts(values: Tensor) -> Iterator[Tensor]:
    return iter(torch.split(values.reshape(-1), _SLAB))


def _result(
    path: str | Path,
    found: TensorRow,
    values: Tensor,
    scheme: Scheme,
    excerpt: GroupAnatomy,
    rules: tuple[RangeRow, ...],
    best: str | None,
    counts: tuple[int, ...],
    rows_measured: int,
) -> TensorInspection:
    rows, cols = values.shape
    ratio = outlier_ratio(values)
    low, high = (float(end) for end in torch.aminmax(values))
    return TensorInspection(
        zeropoint=zeropoint.__version__,
        path=str(path),
        name=found.name,
        shape=(rows, cols),
        stored=found.stored,
        scheme=scheme.label(),
        scale_dtype=scheme.scale_dtype,
        q_min=scheme.q_min,
        q_max=scheme.q_max,
        groups=scheme.groups(cols),
        low=low,
        high=high,
        rms=max(-low, high) / ratio if ratio > 0 else 0.0,
        outlier_ratio=ratio,
        excerpt=excerpt,
        rules=rules,
        best=best,
        rows_measured=rows_measured,
        histogram=histogram_of(values),
        codes=counts,
    )
