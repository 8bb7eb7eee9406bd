"""What linears read, and what ranges make of it, for a terminal: tables, and histograms of characters.

    inputs_inspected(result)    what `zeropoint inspect --layer` measured, a paragraph for each layer

The histogram has a line for each power of two, so that a tail a thousand times as long as the bulk still fits; its bars
are logarithms of counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropoint.evaluation.results import Bar, InputInspection, InputRow, StaticRange
from zeropoint.report.terminal import _add, _bytes, _decibel, _duration, _plain
from zeropoint.types import MASSIVE_RATIO

BEST = "bold green"
BAR_WIDTH = 32
_EIGHTHS = " ▏▎▍▌▋▊▉█"
LEGEND = (
    "* least output error. clipped, held out: values outside the grid. SQNR: of the input, dB.\n"
    "output: relative error, and what clipping and rounding alone cost. halves: how far two halves' ranges differ"
)


def inputs_inspected(result: InputInspection) -> RenderableType:
    """Return a table, a histogram and what follows from them for each layer."""
    text = result.text
    title = (
        f"{_plain(result.path)}: inputs of {_plain(result.layer)}, {result.scheme}; "
        f"{text.windows - result.held_out_windows:,} windows of {text.length:,} tokens of {_plain(text.name)}, "
        f"{result.held_out_windows:,} more held out"
    )
    parts: list[RenderableType] = [Text(title, style="dim")]
    if text.note:
        parts.append(Text(_plain(text.note), style="dim"))
    for row in result.layers:
        parts += [Text(), *_layer(row, result)]
    cost = f"{_duration(result.elapsed_s)}, peak memory {_bytes(result.peak_memory_bytes)}"
    return Group(*parts, Text(), Text(cost, style="dim"))


def _layer(row: InputRow, result: InputInspection) -> list[RenderableType]:
    lines = [
        f"tokens: the largest magnitude of a token is {_number(row.token_median)} at the median, "
        f"{_number(row.token_p99)} at 99 %, {_number(row.token_largest)} at most",
        *_massive(row),
        *(f"not applied: {_plain(reason)}" for reason in row.skipped),
        *_advice(row, result),
    ]
    return [
        Text(f"{_plain(row.name)}  {row.shape[0]} x {row.shape[1]}", style="bold"),
        _ranges(row),
        Text(LEGEND, style="dim"),
        Text(),
        *histogram_lines(row.histogram, row.ranges),
        Text(),
        Text("\n".join(lines)),
    ]


def _ranges(row: InputRow) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("rule", no_wrap=True)
    for column in ("low", "high", "clipped", "held out", "SQNR", "output", "clipping", "rounding", "halves"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in row.ranges:
        best = one.rule == row.best
        cells = (
            f"{one.rule} *" if best else one.rule,
            "" if one.low is None else _number(one.low),
            "" if one.high is None else _number(one.high),
            _share(one.clipped),
            "" if one.low is None else _share(one.held_out),
            _decibel(one.sqnr_db),
            *(_share(math.sqrt(error)) for error in (one.output_error, one.clipping_error, one.rounding_error)),
            "" if one.disagreement is None else _share(one.disagreement),
        )
        _add(table, *cells, style=BEST if best else "")
    return table


def histogram_lines(bars: Sequence[Bar], ranges: Sequence[StaticRange]) -> list[RenderableType]:
    """Return a line for each bar, with the names of the rules whose range ends there."""
    most = max((bar.count for bar in bars), default=0)
    lines: list[RenderableType] = []
    for bar in bars:
        ends = [one.rule for one in ranges if _ends_in(bar, one)]
        filled = _bar(bar.count, most)
        line = f"{_number(bar.low):>9} .. {_number(bar.high):>8}  {filled:<{BAR_WIDTH}} {bar.count:>12,}"
        lines.append(Text.assemble(line, "  " + ", ".join(ends) if ends else "", overflow="ellipsis", no_wrap=True))
    return lines


def _ends_in(bar: Bar, one: StaticRange) -> bool:
    if one.low is None or one.high is None:
        return False
    return (one.low < 0 and bar.low <= one.low < bar.high) or (one.high > 0 and bar.low < one.high <= bar.high)


def _bar(count: int, most: int) -> str:
    """Return as many blocks, to an eighth, as the logarithm of count + 1 is of that of most + 1."""
    eighths = round(8 * BAR_WIDTH * math.log1p(count) / math.log1p(most)) if most else 0
    return _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _massive(row: InputRow) -> list[str]:
    if not row.massive:
        return []
    massive = sum(at.ratio >= MASSIVE_RATIO for at in row.massive)
    verdict = f"{massive} of them massive" if massive else "none of them massive"
    lines = [
        f"largest places, {verdict} (from {MASSIVE_RATIO:,.0f} times the median magnitude {_number(row.median)} on):",
        *(
            f"  {_number(at.value):>9}  position {at.position}, channel {at.channel}, {at.ratio:,.0f} times"
            for at in row.massive
        ),
    ]
    if row.first_token_ratio is not None:
        first = any(at.ratio >= MASSIVE_RATIO and at.position == 0 for at in row.massive)
        lines.append(
            f"first token: its largest magnitude is {row.first_token_ratio:.3g} times that of the others on average"
            + ("; it is a massive activation" if first else "")
        )
    return lines


def _advice(row: InputRow, result: InputInspection) -> list[str]:
    if row.best is None:
        return []
    best = next(one for one in row.ranges if one.rule == row.best)
    auto = "" if row.auto in (None, row.best) else f"; auto, which measures on 512 tokens, takes {row.auto}"
    lines = [f"best static rule: {row.best}{auto}"]
    dynamic = row.ranges[-1]
    if dynamic.output_error > 0:
        ratio = math.sqrt(best.output_error / dynamic.output_error)
        lines[0] += f"; its error is {ratio:.3g} times that of a dynamic scale"
    if best.disagreement is None:
        return [*lines, f"samples: halves are too small for {row.best} to say whether they are enough"]
    tolerance = f"{result.tolerance:.0%}".replace("%", " %")
    windows = result.text.windows - result.held_out_windows
    known = f"ranges of two halves of the {windows:,} samples differ by {_share(best.disagreement)}"
    if row.samples_to_add == 0:
        return [*lines, f"samples: enough; {known}, so that two calibrations like this one agree to {tolerance}"]
    return [
        *lines,
        f"samples: add about {_rounded(row.samples_to_add):,}; {known}, which shrinks with the root of their number, "
        f"and two calibrations shall agree to {tolerance}",
    ]


def _rounded(count: int) -> int:
    """Return the count with two digits that say something, rounded up: it is an estimate."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(share: float) -> str:
    """Return a percentage with two digits that say something."""
    if share == 0:
        return "0"
    return f"{100 * share:.2g} %" if 1e-5 <= share < 0.995 else f"{100 * share:.0f} %" if share >= 0.995 else "<0.001 %"
