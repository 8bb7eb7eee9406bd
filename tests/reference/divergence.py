"""KL divergence, losses and agreement by their definitions, in float64, one token at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def compare(reference: Array, quantized: Array, targets: list[int]) -> tuple[Array, Array, Array, list[bool]]:
    """Return KL(reference || quantized), both losses, and whether the likeliest tokens are the same."""
    kl, nll_reference, nll_quantized, agrees = [], [], [], []
    for l, m, target in zip(reference, quantized, targets, strict=True):  # noqa: E741
        log_p, log_q = log_softmax(l), log_softmax(m)
        kl.append(np.sum(np.exp(log_p) * (log_p - log_q)))
        nll_reference.append(-log_p[target])
        nll_quantized.append(-log_q[target])
        agrees.append(bool(np.argmax(l) == np.argmax(m)))
    return np.array(kl), np.array(nll_reference), np.array(nll_quantized), agrees
