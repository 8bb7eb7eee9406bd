"""Numbers and texts as a page shows them, and the tables that hold them: plain data, which templates/ lays out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zeropoint.evaluation.results import Bar
from zeropoint.report.terminal import _plain

DIGITS = 4
"""Of a number in a chart: what a pixel can show."""

MOST_PERCENT = 1e6

SIGNS = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u21e0"}
"""What stands for characters that cannot be seen."""


@dataclass(frozen=True)
class Column:
    """name: with its unit. number: whether its cells are numbers, aligned to the right."""

    name: str
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """text: as it is shown. value: by what the column is sorted; None: by the text. bar: length of a bar, in [0, 1].

    layer: the name of the layer that the cell opens, or None.
    """

    text: str
    value: float | None = None
    bar: float | None = None
    layer: str | None = None


@dataclass(frozen=True)
class Table:
    """caption: what it shows, which also names it to those who cannot see it. Each row has a cell for each column."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def sortable(self) -> bool:
        """Whether there is something to sort: rows of one kind, whose cells have values."""
        return len(self.rows) > 2 and any(cell.value is not None for row in self.rows for cell in row)


def words(*texts: str) -> tuple[Cell, ...]:
    """Return cells of text."""
    return tuple(Cell(plain(text)) for text in texts)


def plain(text: str) -> str:
    """Return the text with a sign in place of each character that cannot be printed."""
    return _plain(text)


def token(text: str) -> str:
    """Return a token so that its spaces and ends of lines are seen."""
    return plain("".join(SIGNS.get(c, "\u00b7" if c == " " else c) for c in text))


def passage(text: str) -> str:
    """Return a text in its lines; what ends a line is seen, too."""
    return lines(text.replace("\t", SIGNS["\t"]).replace("\n", f"{SIGNS[chr(10)]}\n"))


def lines(text: str) -> str:
    """Return lines of text with a sign in place of each character that cannot be printed."""
    return "\n".join(map(plain, text.split("\n")))


def counted(number: int, noun: str) -> str:
    """Return "1 layer", "1,200 layers"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def share(value: float) -> str:
    """Return a share as a percentage of two digits at least: 12.3 %, 0.10 %, 0.0021 %."""
    if abs(value) >= MOST_PERCENT / 100:
        return f"{value:.1e} times"
    percent = 100 * value
    if percent == 0:
        return "0 %"
    digits = max(1, 1 - math.floor(math.log10(abs(percent))))
    return f"{percent:.{digits}f} %" if digits < 8 else f"{percent:.1e} %"


def over(value: float, base: float) -> str:
    """Return the ratio as x0.420; a dash where there is nothing to divide by."""
    return f"x{value / base:.3f}" if base else "-"


def steps(bars: tuple[Bar, ...]) -> tuple[list[float], list[int]]:
    """Return the ends of the bars, rounded to what can be seen, and the counts between them; gaps are bars of 0."""
    edges: list[float] = []
    counts: list[int] = []
    for bar in bars:
        low, high = _rounded(bar.low), _rounded(bar.high)
        if not edges:
            edges.append(low)
        elif edges[-1] != low:
            edges.append(low)
            counts.append(0)
        edges.append(high)
        counts.append(bar.count)
    return edges, counts


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
