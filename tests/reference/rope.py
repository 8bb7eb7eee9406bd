"""The frequencies of ropes pair by pair, in float64, from the formulas of the papers.

Su et al. 2021, arXiv:2104.09864; Peng et al. 2023, arXiv:2309.00071 (yarn), with the borders in whole pairs as in the
authors' code; Ding et al. 2024, arXiv:2402.13753 (longrope), with the factor of Phi-3's code; llama3: Llama 3.1's
reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def plain(rotated: int, theta: float) -> list[float]:
    """Radians per position of each pair of features."""
    return [theta ** (-2 * pair / rotated) for pair in range(rotated // 2)]


def llama3(rotated: int, theta: float, said: Mapping[str, Any]) -> list[float]:
    """Slow pairs through the factor, quick ones as they are."""
    found = []
    for frequency in plain(rotated, theta):
        turns = said["original_max_position_embeddings"] * frequency / (2 * math.pi)
        kept = (turns - said["low_freq_factor"]) / (said["high_freq_factor"] - said["low_freq_factor"])
        kept = min(1.0, max(0.0, kept))
        found.append(kept * frequency + (1 - kept) * frequency / said["factor"])
    return found


def yarn(rotated: int, theta: float, said: Mapping[str, Any], context: float) -> tuple[list[float], float]:
    """The frequencies, and what cosines and sines are multiplied by."""

    def pair_of(turns: float) -> float:
        """The pair, as a real number, that turns so many times in the context."""
        return rotated * math.log(context / (2 * math.pi * turns)) / (2 * math.log(theta))

    first, last = pair_of(said.get("beta_fast", 32)), pair_of(said.get("beta_slow", 1))
    if said.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    if first == last:
        last += 0.001
    found = []
    for pair, frequency in enumerate(plain(rotated, theta)):
        kept = 1 - min(1.0, max(0.0, (pair - first) / (last - first)))
        found.append(kept * frequency + (1 - kept) * frequency / said["factor"])

    def grown(by: float) -> float:
        return 1 + 0.1 * by * math.log(said["factor"]) if said["factor"] > 1 else 1.0

    factor = grown(1.0)
    if said.get("mscale") and said.get("mscale_all_dim"):
        factor = grown(said["mscale"]) / grown(said["mscale_all_dim"])
    return found, said.get("attention_factor", factor)


def longrope(
    rotated: int, theta: float, divisors: Sequence[float], longer: float, context: float
) -> tuple[list[float], float]:
    """The frequencies, and what cosines and sines are multiplied by. longer: by how much the context was made so."""
    found = [frequency / divisor for frequency, divisor in zip(plain(rotated, theta), divisors, strict=True)]
    return found, math.sqrt(1 + math.log(longer) / math.log(context)) if longer > 1 else 1.0
