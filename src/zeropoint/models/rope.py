"""Rotary position embedding: which angle each pair of features turns by per position, for the rope types we know.

    linear      every frequency through `factor`
    llama3      the low frequencies through `factor`, the high ones as they are, a blend in between
    yarn        the same with other borders, and cosines and sines a little larger
    longrope    every frequency through a divisor of its own: short_factor, for texts of up to
                original_max_position_embeddings tokens; those for longer texts, long_factor, are not covered

They are the `rope_parameters` (since transformers 5), or `rope_theta` and `rope_scaling`, of config.json.
Source: Su et al. 2021, arXiv:2104.09864; Llama 3.1's reference implementation; Peng et al. 2023, arXiv:2309.00071
(yarn); Ding et al. 2024, arXiv:2402.13753 (longrope).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ArchitectureError
from zeropoint.models._values import number, table

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
MAX_POSITIONS = 2048
"""Of a config that does not say how long a text may be."""

CONTEXT = "original_max_position_embeddings"
FIRST_NAMES = ("su", "yarn")
"""What the first releases with long_factor and short_factor call longrope."""


@dataclass(frozen=True)
class Rope:
    """Rotation of (x_i, x_{i + rotated/2}) by position * frequency_i, and times `factor`.

    rotated: features of a head that are, its first ones; the others stay. theta: the base. scaling: the parameters of
    `rope_type`, hashable, sorted by name. divisors: of each frequency, or none. longest: the most tokens of a text that
    the frequencies are for; None for any number.
    """

    rotated: int
    theta: float
    rope_type: str = "default"
    scaling: tuple[tuple[str, float], ...] = ()
    divisors: tuple[float, ...] = ()
    factor: float = 1.0
    longest: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], head_dim: int, *, partial: bool = False) -> Rope:
        """Read `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).

        partial: whether partial_rotary_factor may be below 1.
        Raises: ArchitectureError for a rope type that is not in ROPE_TYPES, a parameter that is missing or no number.
        """
        found = table(config, "rope_parameters" if config.get("rope_parameters") else "rope_scaling")
        rope_type = found.get("rope_type") or found.get("type") or "default"
        if rope_type in FIRST_NAMES and "short_factor" in found:
            rope_type = "longrope"
        if rope_type not in ROPE_TYPES:
            raise ArchitectureError(
                f"config.json: rope type {str(rope_type)[:60]!r} is not known; known are {', '.join(ROPE_TYPES)}"
            )
        factors = [number(where, "partial_rotary_factor", 1.0) for where in (config, found)]
        if not partial and factors != [1.0, 1.0]:
            raise ArchitectureError(
                "config.json: partial_rotary_factor other than 1 is not covered by this architecture"
            )
        rotated = int(head_dim * (factors[1] if "partial_rotary_factor" in found else factors[0]))
        if not 2 <= rotated <= head_dim or rotated % 2:
            raise ArchitectureError(
                f"config.json: partial_rotary_factor says that {rotated} of {head_dim} features of a head are rotated; "
                "it must be an even number of them"
            )
        theta = number(found if found.get("rope_theta") else config, "rope_theta", 10000.0)
        if rope_type == "default":
            return cls(rotated, theta)
        if rope_type == "linear":
            return cls(rotated, theta, "linear", (("factor", _given(found, "factor", "linear")),))
        context = _context(config, found)
        if rope_type == "llama3":
            return cls(rotated, theta, "llama3", _llama3_scaling(found, context))
        factor = number(found, "factor", number(config, "max_position_embeddings", context) / context)
        if rope_type == "yarn":
            return cls(
                rotated, theta, "yarn", _yarn_scaling(found, factor, context, theta), factor=_grown(found, factor)
            )
        short, long = (_divisors(found, key, rotated // 2) for key in ("short_factor", "long_factor"))
        larger = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
        return cls(
            rotated,
            theta,
            "longrope",
            divisors=short,
            factor=number(found, "attention_factor", larger),
            longest=None if short == long else int(context),
        )

    def frequencies(self) -> NDArray[np.float32]:
        """Return the angle per position of each pair of features in radians: float32 (rotated / 2,)."""
        exponent = np.arange(0, self.rotated, 2, dtype=np.float32) / np.float32(self.rotated)
        length: NDArray[np.float32] = np.power(np.float32(self.theta), exponent)  # of a radian, in positions
        if self.divisors:
            with np.errstate(over="ignore"):  # of a pair that never turns
                length *= np.array(self.divisors, dtype=np.float32)
        frequency: NDArray[np.float32] = (1.0 / length).astype(np.float32)
        scaling = dict(self.scaling)
        if self.rope_type == "linear":
            frequency /= np.float32(scaling["factor"])
        if self.rope_type == "llama3":
            return _llama3(frequency, **scaling)
        if self.rope_type == "yarn":
            return _yarn(frequency, **scaling)
        return frequency


def _given(found: Mapping[str, Any], name: str, rope_type: str) -> float:
    """Return a parameter that must be there."""
    if name not in found:
        raise ArchitectureError(f"config.json: rope type {rope_type!r} lacks {name}")
    return number(found, name)


def _context(config: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Return the tokens of the context before it was made longer, from wherever config.json has them."""
    where = next((where for where in (config, found) if where.get(CONTEXT) is not None), None)
    if where is None:
        return number(config, "max_position_embeddings", MAX_POSITIONS, least=1.0)
    return number(where, CONTEXT, least=1.0)


def _llama3_scaling(found: Mapping[str, Any], context: float) -> tuple[tuple[str, float], ...]:
    low, high = (_given(found, f"{end}_freq_factor", "llama3") for end in ("low", "high"))
    if not low < high:
        raise ArchitectureError("config.json: low_freq_factor of the rope must be below high_freq_factor")
    factor = _given(found, "factor", "llama3")
    return ("factor", factor), ("high_freq_factor", high), ("low_freq_factor", low), (CONTEXT, context)


def _yarn_scaling(
    found: Mapping[str, Any], factor: float, context: float, theta: float
) -> tuple[tuple[str, float], ...]:
    """Return the factor and the border pairs: up to `first` they turn as before, from `last` on through the factor."""
    fast, slow = number(found, "beta_fast", 32.0), number(found, "beta_slow", 1.0)
    if not slow < fast or theta <= 1:
        raise ArchitectureError(
            "config.json: beta_slow of the rope must be below beta_fast, and rope_theta above 1 for rope type 'yarn'"
        )
    # the exponent, in parts of all pairs, of a frequency that turns so many times in the context
    first, last = (math.log(context / (2 * math.pi * turns)) / math.log(theta) for turns in (fast, slow))
    return ("factor", factor), ("first", first), ("last", last), ("whole", float(bool(found.get("truncate", True))))


def _grown(found: Mapping[str, Any], factor: float) -> float:
    """Return what yarn multiplies cosines and sines by."""

    def of(key: str) -> float:
        return 1 + 0.1 * (number(found, key) if key else 1.0) * math.log(factor) if factor > 1 else 1.0

    both = found.get("mscale") and found.get("mscale_all_dim")
    return number(found, "attention_factor", of("mscale") / of("mscale_all_dim") if both else of(""))


def _divisors(found: Mapping[str, Any], key: str, pairs: int) -> tuple[float, ...]:
    values = found.get(key)
    if not isinstance(values, list) or len(values) != pairs:
        raise ArchitectureError(
            f"config.json: {key} of the rope is not a list of {pairs} numbers, one for each pair of rotated features"
        )
    return tuple(number({key: value}, key, least=1e-6) for value in values)  # in float32, too, it is no 0


def _llama3(
    frequency: NDArray[np.float32],
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> NDArray[np.float32]:
    """Slow down the low frequencies by `factor`, keep the high ones, and blend linearly in between."""
    wavelength = 2 * math.pi / frequency
    turns = original_max_position_embeddings / wavelength
    blend = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    scaled: NDArray[np.float32] = ((1 - blend) * frequency / factor + blend * frequency).astype(np.float32)
    return scaled


def _yarn(
    frequency: NDArray[np.float32], *, factor: float, first: float, last: float, whole: float
) -> NDArray[np.float32]:
    """Slow down by `factor` the frequencies behind the pair `last`, keep those before `first`, blend in between.

    first, last: in parts of all pairs. whole: whether the borders are rounded outwards to whole pairs.
    """
    pairs = len(frequency)
    begin, end = first * pairs, last * pairs
    if whole:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, 2 * pairs - 1)
    slowed = np.clip((np.arange(pairs) - begin) / (end - begin if end != begin else 0.001), 0.0, 1.0)
    blended: NDArray[np.float32] = (frequency / factor * slowed + frequency * (1 - slowed)).astype(np.float32)
    return blended
