"""Measurements in turns: A B C, A B C, ..., so that a machine that gets slower meanwhile is slower for all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Runs:
    """One number from each round. Higher is better: a rate."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return median(self.values)

    def over(self, other: Runs) -> tuple[float, float, float]:
        """Return the ratio of the medians, and the lowest and the highest ratio of one round."""
        ratios = [a / b for a, b in zip(self.values, other.values, strict=True)]
        return self.median / other.median, min(ratios), max(ratios)


def in_turns(rates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Runs]:
    """Call every function once in each of the rounds; each returns a rate. A round before them is not counted."""
    found: dict[str, list[float]] = {name: [] for name in rates}
    for turn in range(rounds + 1):
        for name, rate in rates.items():
            value = rate()
            if turn:
                found[name].append(value)
        print(f"round {turn}/{rounds}", file=sys.stderr, flush=True)
    return {name: Runs(tuple(values)) for name, values in found.items()}
