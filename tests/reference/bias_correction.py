"""Bias correction by its definition, in float64, from the tokens themselves (Nagel et al. 2019, arXiv:1906.04721)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def corrected_bias(bias: Array, weight: Array, restored: Array, inputs: Array, rounded: Array) -> Array:
    """Return the bias less the mean, over tokens, of what the output gained. inputs, rounded: (tokens, cols)."""
    corrected = bias.copy()
    for row in range(len(bias)):
        errors = [restored[row] @ after - weight[row] @ before for before, after in zip(inputs, rounded, strict=True)]
        corrected[row] -= sum(errors) / len(errors)
    return corrected
