"""Regular expressions from outside: those that could take for ever are refused before they are used.

A backtracking matcher tries, at worst, every way in which a pattern can lie on a text. How many there are can be read
off the pattern, with n for the length of the text:

    literal, class, anchor     1                  ab      product
    a*  a+  a{2,}              n + 1              a|b     sum
    a{2,5}                     5 - 2 + 1          a?      1 + ways of a
    (...){0,m}                 1 + w + w^2 + ... + w^m, where w > 1 are the ways of what is repeated

So (a+)+ has n^n ways and is refused, as is what cannot be counted so: backreferences, conditions, calls, comments in
the pattern. Names of layers and pieces of text need none of that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

LENGTH = 64
"""n: longer than the names of layers."""

MAX_WAYS = 10**8
"""Four repeats one after another, and some alternatives: a second for the names of a large model."""

MAX_CHARS = 10_000
MAX_REPEATS = 1000


class PatternError(ValueError):
    """Why a pattern is not used, the end of a sentence."""


def compile_quick(targets: Iterable[str]) -> dict[str, re.Pattern[str]]:
    """Return the patterns behind "re:", compiled, by target; the other targets are left out.

    Raises: PatternError for what is no pattern, or all of them together, if they could take for ever.
    """
    found = {}
    for target in targets:
        if target.startswith("re:"):
            try:
                found[target] = re.compile(target[3:] if len(target) <= MAX_CHARS else "")
            except (re.error, ValueError, OverflowError, RecursionError) as error:
                raise PatternError(f"{target[:80]!r} is no regular expression: {error}") from error
    _require_quick({target: target[3:] for target in found}, nested_classes=False)
    return found


def require_quick(patterns: Iterable[str]) -> None:
    """Refuse patterns of Oniguruma, as the tokenizers package has them, that could take for ever.

    Raises: PatternError.
    """
    _require_quick({pattern: pattern for pattern in patterns}, nested_classes=True)


def _require_quick(patterns: Mapping[str, str], *, nested_classes: bool) -> None:
    """Refuse patterns, by what they are called, that together are too many.

    nested_classes: whether "[" in a class begins another one.
    """
    total = 0.0
    for name, pattern in patterns.items():
        total += _Reader(name, pattern, nested_classes).ways()
        if total > MAX_WAYS:
            raise PatternError(
                f"{name[:80]!r} can lie on a name in too many ways, and trying them takes too long; "
                "write it with fewer repeats, and none inside another"
            )


class _Reader:
    """Reads a pattern from left to right and counts. Numbers are floats, which stop at infinity."""

    def __init__(self, name: str, pattern: str, nested_classes: bool) -> None:
        self._name = name
        if len(pattern) > MAX_CHARS:
            raise PatternError(f"{name[:80]!r}... has {len(pattern)} characters; {MAX_CHARS} are allowed")
        self._pattern, self._nested, self._at, self._depth = pattern, nested_classes, 0, 0

    def ways(self) -> float:
        """Return the ways of the whole pattern."""
        found = self._alternatives()
        if self._at < len(self._pattern):
            raise self._error("an unmatched ')'")
        return found

    def _alternatives(self) -> float:
        self._depth += 1
        if self._depth > 50:
            raise self._error("groups more than 50 deep")
        total, ways = 0.0, 1.0
        while self._at < len(self._pattern) and self._peek() != ")":
            if self._take("|"):
                total, ways = total + ways, 1.0
            else:
                ways *= self._repeated(self._atom())
        self._depth -= 1
        return total + ways

    def _atom(self) -> float:
        if self._take("("):
            return self._group()
        if self._take("["):
            self._class()
        elif self._take("\\"):
            escaped = self._peek()
            if escaped in "123456789kg":
                raise self._error("a backreference")
            self._at += 1
            if escaped in "pPNxu" and self._take("{"):
                self._skip_to("}")
        else:
            self._at += 1
        return 1.0

    def _group(self) -> float:
        opening = re.compile(r"\?(?:P?<\w+>|'\w+'|[:=!>]|<[=!]|[a-wyz-]*(?P<more>:|(?P<flags>\))))").match(
            self._pattern, self._at
        )
        if opening is not None:
            self._at = opening.end()
            if opening["flags"]:
                return 1.0
        elif self._peek() == "?":
            raise self._error("a group that is none of (?:...), (?=...), (?!...), (?<=...), (?<!...), (?>...), (?i)")
        ways = self._alternatives()
        if not self._take(")"):
            raise self._error("a '(' that is never closed")
        return ways

    def _class(self) -> None:
        depth = 1
        self._take("^")
        self._take("]")  # the first one is a character
        while depth:
            char = self._peek()
            self._at += 1
            if char == "\\":
                self._at += 1
            elif char == "[" and self._nested:
                depth += 1
            elif char == "]":
                depth -= 1

    def _repeated(self, ways: float) -> float:
        """Return the ways of an atom with the quantifier that follows it, if one does."""
        found = re.compile(r"(?P<sign>[*+?])[?+]?|\{(?P<low>[0-9]*)(?P<comma>,?)(?P<high>[0-9]*)\}\??").match(
            self._pattern, self._at
        )
        if found is None or found[0].startswith("{}"):
            return ways
        self._at = found.end()
        if self._at < len(self._pattern) and self._peek() in "*+?":
            raise self._error("a repeat of a repeat")
        low, high = _limits(found)
        if max(low, high) > MAX_REPEATS:
            raise self._error(f"more than {MAX_REPEATS} repeats")
        if ways == 1:
            return max(high - low, 0) + 1.0
        return sum(ways**count for count in range(high + 1)) if high * math.log10(ways) < 9 else math.inf

    def _skip_to(self, end: str) -> None:
        found = self._pattern.find(end, self._at)
        if found < 0:
            raise self._error(f"no {end!r}")
        self._at = found + 1

    def _peek(self) -> str:
        if self._at >= len(self._pattern):
            raise self._error("no end")
        return self._pattern[self._at]

    def _take(self, char: str) -> bool:
        taken = self._pattern.startswith(char, self._at)
        self._at += taken
        return taken

    def _error(self, what: str) -> PatternError:
        return PatternError(f"{self._name[:80]!r} has {what} at character {self._at + 1}, which is not supported")


def _limits(found: re.Match[str]) -> tuple[int, int]:
    """Return how often a quantifier repeats, at least and at most; LENGTH for ever."""
    match found["sign"]:
        case "?":
            return 0, 1
        case "*" | "+":
            return 0, LENGTH
    low = int(found["low"][:6] or 0)
    if not found["comma"]:
        return low, low
    return low, int(found["high"][:6] or max(LENGTH, low))  # six digits are more than MAX_REPEATS
