"""GPTQ as the paper writes it: equations 2 and 3 of arXiv:2210.17323, in float64, one column at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gptq(
    weight: Array, moment: Array, scale: Array, zero: Array, q_min: int, q_max: int, *, damping: float, act_order: bool
) -> Array:
    """Return codes (rows, cols). scale, zero: (rows, cols), one for each weight, fixed beforehand."""
    W = weight.astype(np.float64).copy()
    H = moment.astype(np.float64).copy()
    dead = np.diag(H) == 0
    H += damping * np.mean(np.diag(H)) * np.eye(len(H))
    H[dead, dead] = 1.0
    H_inv = np.linalg.inv(H)
    order = np.argsort(-np.diag(moment), kind="stable") if act_order else np.arange(len(H))
    codes = np.zeros_like(W)
    for j in order:
        codes[:, j] = np.clip(np.rint(W[:, j] / scale[:, j] + zero[:, j]), q_min, q_max)
        restored = scale[:, j] * (codes[:, j] - zero[:, j])
        W -= np.outer((W[:, j] - restored) / H_inv[j, j], H_inv[j])  # eq. 2: delta of the remaining weights
        H_inv -= np.outer(H_inv[:, j], H_inv[j]) / H_inv[j, j]  # eq. 3: remove column j from the inverse
        W[:, j] = restored
    return codes
