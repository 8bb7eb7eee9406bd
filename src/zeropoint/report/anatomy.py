"""What quantization does to one tensor, for a terminal of 80 columns: formula, excerpt, rules, histograms.

tensor_inspected(result)    what `zeropoint inspect --tensor` found
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropoint.evaluation.results import GroupAnatomy, TensorInspection
from zeropoint.report.inputs import _EIGHTHS, BAR_WIDTH, BEST, _number, _share
from zeropoint.report.terminal import _add, _decibel, _plain

SHOWN = 8
"""Columns of the excerpt that are shown, beside its lowest and its highest value."""

BARS_OF_CODES = 16


def tensor_inspected(result: TensorInspection) -> RenderableType:
    """Return the steps from values to codes and back, and what the range rules make of the tensor."""
    parts: list[RenderableType] = [
        Text(
            f"{_plain(result.name)}  {result.shape[0]:,} x {result.shape[1]:,}, {_plain(result.stored)}", style="bold"
        ),
        Text(
            f"lowest {_number(result.low)}, highest {_number(result.high)}, rms {_number(result.rms)}; "
            f"the largest is {result.outlier_ratio:.3g} times the rms"
        ),
        Text(),
        Text("\n".join(_steps(result))),
        Text(),
        _excerpt(result.excerpt),
        *(Text(line) for line in _summary(result)),
        Text(),
    ]
    if result.rules:
        parts += [_rules(result), Text(_legend(result), style="dim"), Text()]
    else:
        why = "range rules choose S and Z for floats; this file has them. For a comparison inspect the float model."
        parts += [Text(why, style="dim"), Text()]
    parts += [Text("values, in halves of the rms:"), *_values(result), Text()]
    by = f" by {_plain(result.excerpt.rule)}" if result.excerpt.rule is not None else ""
    parts += [Text(f"codes{by}:"), *_codes(result)]
    return Group(*parts)


def _steps(result: TensorInspection) -> Iterator[str]:
    """Yield the formula, and the numbers of the excerpt's group put into it."""
    group, low, high = result.excerpt, result.q_min, result.q_max
    last = group.first_column + group.columns - 1
    where = f"row {group.row}, columns {group.first_column} to {last}"
    if result.groups > 1:
        where += f" (group {group.group} of {result.groups})"
    elif "tensor" in result.scheme:
        where += ", one scale for all rows"
    yield f"{where}, as {_plain(result.scheme)}, codes {low} to {high}"
    if group.rule is None or group.low is None or group.high is None or group.exact_scale is None:
        yield f"  S  = {_number(group.scale)}, from the file"
    else:
        yield f"  range by {_plain(group.rule)}: low = {_number(group.low)}, high = {_number(group.high)}"
        yield from _scale(result, group, group.low, group.high, group.exact_scale)
    if group.minimum is not None:
        yield f"  M  = {_number(group.minimum)}, from the file"
        yield f"  r' = S * (q - {low}) - M".replace("- -", "+ ")
        return
    if group.zero_point is None:
        yield "  Z  = 0: symmetric"
        yield f"  q  = clamp(round(r / S), {low}, {high})        r' = S * q"
        return
    if group.low is None:
        yield f"  Z  = {group.zero_point:g}, from the file"
    else:
        exact = f"{low} + {_number(-group.low / group.scale)}"
        yield f"  Z  = clamp(round({low} - low / S), {low}, {high}) = round({exact}) = {group.zero_point:g}"
    yield f"  q  = clamp(round(r / S + Z), {low}, {high})        r' = S * (q - Z)"


def _scale(result: TensorInspection, group: GroupAnatomy, low: float, high: float, exact: float) -> Iterator[str]:
    steps = result.q_max - result.q_min
    if low == high:
        yield "  S  = 1: nothing but zeros"
        return
    if group.zero_point is None:
        largest = max(-low, high)
        formula = f"max(|low|, |high|) / {steps / 2:g} = {_number(largest)} / {steps / 2:g}"
    else:
        formula = f"(high - low) / {steps} = {_number(high - low)} / {steps}"
    yield f"  S  = {formula} = {_number(exact)}; as {_plain(result.scale_dtype)} {group.scale:.6g}"


def _excerpt(group: GroupAnatomy) -> Table:
    """Return a line for each of the first values, and for the lowest and the highest."""
    shown = group.restored if group.values is None else group.values
    lowest, highest = (pick(range(len(shown)), key=shown.__getitem__) for pick in (min, max))
    marks = {lowest: "lowest", highest: "highest"} if shown[lowest] < shown[highest] else {}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 2), header_style="bold")
    position = "r / S" if group.zero_point is None else "r / S + Z"
    columns = ("column", "q", "r'") if group.values is None else ("column", "r", position, "q", "r'", "r' - r")
    for column in (*columns, ""):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for at in sorted({*range(min(SHOWN, len(shown))), *marks}):
        column, code, back = group.first_column + at, group.codes[at], group.restored[at]
        note = "stays float" if column in group.float_columns else marks.get(at, "")
        if group.values is None or group.positions is None:
            _add(table, str(column), str(code), _number(back), note)
            continue
        value = group.values[at]
        _add(
            table, str(column), _number(value), f"{group.positions[at]:.3f}", str(code), _number(back),
            _number(back - value), note,
        )  # fmt: skip
    return table


def _summary(result: TensorInspection) -> Iterator[str]:
    group = result.excerpt
    if group.values is None:
        return
    square = sum((back - value) ** 2 for back, value in zip(group.restored, group.values, strict=True))
    rms = math.sqrt(square / len(group.values))
    yield (
        f"rms error of the {len(group.values)} values {_number(rms)}; an error that is uniform in a step has "
        f"S / sqrt(12) = {_number(group.scale / math.sqrt(12))}"
    )


def _rules(result: TensorInspection) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("rule", no_wrap=True)
    for column in ("low", "high", "S", "Z", "clipped", "clipping", "rounding", "SQNR"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in result.rules:
        best = one.rule == result.best
        _add(
            table,
            f"{_plain(one.rule)} *" if best else one.rule,
            _number(one.low),
            _number(one.high),
            _number(one.scale),
            "0" if one.zero_point is None else str(one.zero_point),
            _share(one.clipped),
            _share(math.sqrt(one.clipping_error)),
            _share(math.sqrt(one.rounding_error)),
            _decibel(one.sqnr_db),
            style=BEST if best else "",
        )
    return table


def _legend(result: TensorInspection) -> str:
    measured = "the whole tensor"
    if result.rows_measured < result.shape[0]:
        measured = f"{result.rows_measured:,} of {result.shape[0]:,} rows"
    return (
        f"* highest SQNR (dB). low to Z: of the group above; the others: of {measured}.\n"
        "clipped: values outside the range of their group. clipping, rounding: relative errors\n"
        "of these and of the others"
    )


def _values(result: TensorInspection) -> list[RenderableType]:
    most = max((bar.count for bar in result.histogram), default=0)
    total = result.shape[0] * result.shape[1]
    return [
        _line(f"{_number(bar.low):>10} .. {_number(bar.high):>9}", bar.count, most, total) for bar in result.histogram
    ]


def _codes(result: TensorInspection) -> list[RenderableType]:
    each = -(-len(result.codes) // BARS_OF_CODES)
    counts = [sum(result.codes[at : at + each]) for at in range(0, len(result.codes), each)]
    most, total = max(counts, default=0), sum(counts)
    lines: list[RenderableType] = []
    for index, count in enumerate(counts):
        first = result.q_min + index * each
        last = min(first + each - 1, result.q_max)
        label = f"{first:>4}" if first == last else f"{first:>4} .. {last:>4}"
        lines.append(_line(f"{label:>23}", count, most, total))
    return lines


def _line(label: str, count: int, most: int, total: int) -> Text:
    """Return a bar whose length is the count, to an eighth of a character, and at least that for one value."""
    eighths = max(round(8 * BAR_WIDTH * count / most), 1) if count and most else 0
    bar = _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    share = _share(count / total) if total else "0"
    return Text(f"{label}  {bar:<{BAR_WIDTH}} {count:>11,}  {share:>8}", overflow="ellipsis", no_wrap=True)
