"""Divisors of the rope's frequencies, which a GGUF file has as tensors: llama3's scaling, and Phi-3's longrope."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROPE_FREQS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def with_llama3(config: dict[str, Any], factors: Mapping[str, NDArray[np.float32]], path: Path) -> dict[str, Any]:
    """Return the config with llama3's rope scaling, which a GGUF file holds as one divisor per frequency.

    Raises: CheckpointError if there is no such scaling that gives these divisors.
    """
    rope, divisors = config["rope_parameters"], factors[ROPE_FREQS].reshape(-1)
    if divisors.size == config["head_dim"] // 2 and rope["rope_type"] == "default":
        if (divisors == 1).all():
            return config
        scaling = llama3_scaling(divisors, rope["rope_theta"])
        if scaling is not None:
            return {**config, "rope_parameters": {**rope, **scaling}}
    raise CheckpointError(
        f"{path}: {ROPE_FREQS} changes the rotary embedding in a way that is not llama3's rope scaling; "
        "give the Hugging Face folder that the file was converted from"
    )


def with_longrope(config: dict[str, Any], factors: Mapping[str, NDArray[np.float32]], path: Path) -> dict[str, Any]:
    """Return the config with longrope: divisors for short texts, others for long ones.

    Raises: CheckpointError if one of the two is missing, or another rope is scaled already.
    """
    if factors.keys() != {LONG, SHORT} or config["rope_parameters"]["rope_type"] != "default":
        raise CheckpointError(
            f"{path}: {', '.join(sorted(factors))} without the other divisors, or with another rope scaling, is not "
            "covered; give the Hugging Face folder that the file was converted from"
        )
    rope = {
        **config["rope_parameters"],
        "rope_type": "longrope",
        "long_factor": factors[LONG].reshape(-1).tolist(),
        "short_factor": factors[SHORT].reshape(-1).tolist(),
    }
    return {**config, "rope_parameters": rope}


def llama3_scaling(
    factors: NDArray[np.float32], theta: float, default_context: int = 8192
) -> dict[str, str | float | int] | None:
    """Return the rope_parameters that `factors` were made from, or None if no parameters give these factors.

    factors: float32 (head_dim / 2,), the divisor of each frequency: llama.cpp's rope_freqs.weight, all that it keeps of
    a scaling of type llama3. There, with x the turns of a frequency in the original context,
    1 / factors = blend + (1 - blend) / factor,  blend = clip((x - low) / (high - low), 0, 1):
    a straight line between its ends, so that `factor` is the largest divisor and two points on the line give the rest.
    Only ratios of low, high and the context matter; low is 1, as in every Llama.
    Source: Llama 3.1's reference implementation (apply_scaling).
    """
    import numpy as np

    half, factor = len(factors), float(factors.max(initial=1.0))
    if not (np.isfinite(factors).all() and (factors >= 1).all() and factor > 1 and theta > 1):
        return None
    frequency = theta ** -(np.arange(half, dtype=np.float64) / half)
    blend = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    inside = (blend > 1e-4) & (blend < 1 - 1e-4)
    candidates = [(4.0, default_context)]  # every Llama's; needed where too few frequencies fall on the line
    if inside.sum() > 1:
        slope, start = np.polyfit(frequency[inside], blend[inside], 1)
        if start < 0 < slope:
            candidates.append((round(1 - 1 / start, 3), round(-2 * math.pi * slope / start)))
    for high, context in candidates:
        expected = np.clip((context * frequency / (2 * math.pi) - 1) / max(high - 1, 1e-9), 0, 1)
        if np.allclose(expected, blend, rtol=0, atol=1e-5):  # float32 divisors are good to 1e-6
            return {
                "rope_type": "llama3",
                "factor": round(factor, 4),
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None
