r"""What a page promises: its commands and Python blocks, and the output that it shows for them.

```console
$ zeropoint recipes              a command; `\` at the end of a line goes on in the next one
w4a16  ...                       lines of its output, in order; what the page leaves out is left out
(exit code 2)                    where it is not 0
```

A ```python block is run as a program of its own; a ```text block right behind it is what it prints. All other blocks
only illustrate: ```py is an outline in Python, ```text what is not for here.

A line of the page must be found in the output, after the one before it, with the same words; numbers may differ by
TOLERANCE or by one in their last digit. Lines that tell of time, speed or memory are of the machine: their numbers are
not compared, nor are bars; spaces count as one. "..." inside a line stands for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

TOLERANCE = 0.05

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?:(?<![\w.])|(?<=\bx))-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\d)")
_OF_THE_MACHINE = re.compile(r"\bmemory\b|\btime\b|\bthreads?\b|\d(?: ms| s| min| h| GB/s)\b|tokens? per second|tok/s")
_DURATION = re.compile(r"\b\d+ h \d+ min\b|\b\d+ min \d+ s\b|\b[\d.]+ m?s\b")
_BARS = re.compile("[▏▎▍▌▋▊▉█━─]+")
_EXIT = re.compile(r"\(exit code (\d+)\)")


@dataclass(frozen=True)
class Step:
    """One command of the shell, or one program in Python, with the lines that the page shows of its output."""

    kind: str
    text: str
    shown: tuple[str, ...]
    exit_code: int
    line: int


def steps(page: str) -> Iterator[Step]:
    """Yield what is to be run, in the order of the page. Raises: ValueError for a console block without a command."""
    blocks = list(_FENCE.finditer(page))
    for block, after in pairwise([*blocks, None]):
        assert block is not None
        kind, body = block.group(1), block.group(2)
        line = page.count("\n", 0, block.start()) + 2
        if kind == "python":
            follows = after is not None and after.group(1) == "text" and not page[block.end() : after.start()].strip()
            yield Step(kind, body, _lines(after.group(2)) if follows and after else (), 0, line)
        elif kind == "console":
            yield from _commands(body, line)


def _commands(body: str, line: int) -> Iterator[Step]:
    if not body.startswith("$ "):
        raise ValueError(f"line {line}: a console block begins with a command, as in `$ zeropoint recipes`")
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, output = part.replace("\\\n", " ").partition("\n")
        found = _EXIT.search(output)
        yield Step("console", command, _lines(_EXIT.sub("", output)), int(found.group(1)) if found else 0, line)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if line.strip() not in ("", "..."))


def missing(shown: Sequence[str], output: str) -> str | None:
    """Return the first line of the page that the output does not have after the ones before it; None if there is none.

    Lines of the page that begin with "zeropoint: " are complaints, which have an order of their own.
    """
    at = {True: 0, False: 0}
    lines = output.splitlines()
    for wanted in shown:
        complaint = wanted.startswith("zeropoint: ")
        for index in range(at[complaint], len(lines)):
            if same(wanted, lines[index]):
                at[complaint] = index + 1
                break
        else:
            return wanted
    return None


def same(wanted: str, found: str) -> bool:
    """Say whether two lines have the same words, and numbers that are near enough."""
    wanted, found = (_DURATION.sub("1 s", " ".join(_BARS.sub(" ", line).split())) for line in (wanted, found))
    if "..." in wanted:
        return re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), found) is not None
    if _NUMBER.sub("#", wanted) != _NUMBER.sub("#", found):
        return False
    if _OF_THE_MACHINE.search(wanted):
        return True
    return all(_near(*pair) for pair in zip(_NUMBER.findall(wanted), _NUMBER.findall(found), strict=True))


def _near(wanted: str, found: str) -> bool:
    one, other = (float(number.replace(",", "")) for number in (wanted, found))
    mantissa, _, exponent = wanted.partition("e")
    digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(one - other) <= max(TOLERANCE * abs(one), 1.001 * digit * ("." in wanted or "e" in wanted))
