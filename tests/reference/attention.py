"""Causal attention of one sequence, literally, in float64: scores s = scale q . k, capped to c tanh(s / c), softmax."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def attention(
    q: Floats, k: Floats, v: Floats, *, window: int | None, scale: float | None, softcap: float | None
) -> Floats:
    """Return (time, heads * head_dim) of q (heads, time, head_dim), and k and v (kv heads, time, head_dim)."""
    heads, time, head_dim = q.shape
    shared = heads // len(k)
    found = np.zeros((time, heads, head_dim))
    for h in range(heads):
        for t in range(time):
            weights = {}
            for p in range(t + 1):
                if window is not None and p <= t - window:
                    continue
                score = float(q[h, t] @ k[h // shared, p]) * (1 / math.sqrt(head_dim) if scale is None else scale)
                weights[p] = math.exp(score if softcap is None else softcap * math.tanh(score / softcap))
            for p, weight in weights.items():
                found[t, h] += weight / sum(weights.values()) * v[h // shared, p]
    return found.reshape(time, -1)
