"""Rotary position embedding: which angle each pair of features turns by per position, for the rope types we know.

Source: Su et al. 2021, arXiv:2104.09864; the llama3 scaling: Llama 3.1 reference implementation, as in the
`rope_parameters` (or older `rope_scaling`) of config.json.
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

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotation of (x_i, x_{i + rotated/2}) by position * frequency_i.

    rotated: features of a head that are, its first ones; the others stay. theta: the base. scaling: the parameters of
    `rope_type`, hashable, sorted by name.
    """

    rotated: int
    theta: float
    rope_type: str = "default"
    scaling: tuple[tuple[str, float], ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], head_dim: int, *, partial: bool = False) -> Rope:
        """Read `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).

        partial: whether partial_rotary_factor may be below 1.
        Raises: ArchitectureError for a rope type that is not in ROPE_TYPES, a parameter that is missing or no number.
        """
        key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        found = table(config, key)
        rope_type = found.get("rope_type", found.get("type", "default"))
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
        wanted = {
            "default": (),
            "linear": ("factor",),
            "llama3": ("factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"),
        }[str(rope_type)]
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ArchitectureError(f"config.json: rope type {rope_type!r} lacks {', '.join(missing)}")
        theta = number(found if found.get("rope_theta") else config, "rope_theta", 10000.0)
        scaling = tuple((name, number(found, name)) for name in wanted)
        values = dict(scaling)
        if rope_type == "llama3" and not values["low_freq_factor"] < values["high_freq_factor"]:
            raise ArchitectureError("config.json: low_freq_factor of the rope must be below high_freq_factor")
        return cls(rotated, theta, str(rope_type), scaling)

    def frequencies(self) -> NDArray[np.float32]:
        """Return the angle per position of each pair of features in radians: float32 (rotated / 2,)."""
        exponent = np.arange(0, self.rotated, 2, dtype=np.float32) / np.float32(self.rotated)
        frequency: NDArray[np.float32] = (1.0 / np.power(np.float32(self.theta), exponent)).astype(np.float32)
        scaling = dict(self.scaling)
        if self.rope_type == "linear":
            frequency /= np.float32(scaling["factor"])
        if self.rope_type == "llama3":
            return _llama3(frequency, **scaling)
        return frequency


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
