"""How far one weight is from its original, as numbers that practitioners read.

With W the weight, W' what its codes stand for, E = W' - W and H the mean of x x^T over the tokens the layer reads:

    SQNR            10 log10(sum W^2 / sum E^2), dB: about 6 more for each bit
    cosine          sum W W' / sqrt(sum W^2 sum W'^2)
    max abs error   the largest |E|
    output error    tr(E H E^T) / tr(W H W^T): what the layer's output loses, squared and relative
    outlier ratio   max |W| / sqrt(mean W^2), of the whole tensor

The outlier ratio is the standard deviations between zero and the largest weight, taken around zero because the grid is:
about 4 to 5 for normally distributed weights of a linear, sqrt(size) at most. Sums are float64, a few rows at a time,
so that a large layer needs no copies of itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zeropoint import _native
from zeropoint.errors import InternalError
from zeropoint.qparams.from_range import require_finite
from zeropoint.rounding.objective import relative_output_error

CHUNK_VALUES = 1 << 20
"""Values of a weight in one sum: 4 MB where they have to be converted to float32, 8 MB in float64."""


@dataclass(frozen=True)
class WeightError:
    """What one weight lost.

    signal, noise: sum W^2 and sum E^2. sqnr_db: None when nothing was lost, or when the weight is all zeros. cosine: in
    [-1, 1]; of two zero weights 1.
    max_abs: in the unit of the weight. output: squared relative error of the layer's output; None without statistics.
    """

    signal: float
    noise: float
    sqnr_db: float | None
    cosine: float
    max_abs: float
    output: float | None


def weight_error(weight: Tensor, restored: Tensor, second_moment: Tensor | None = None) -> WeightError:
    """Return how far `restored` is from `weight`.

    weight, restored: float32, bfloat16 or float16, of one shape. second_moment: float32 (cols, cols), of what the layer
    reads; it takes float32 weights (rows, cols).
    Raises: NonFiniteError if either holds NaN or infinity; InternalError if the shapes differ.
    """
    if weight.shape != restored.shape:
        raise InternalError(f"a weight {tuple(weight.shape)} cannot be compared with one of {tuple(restored.shape)}")
    found = error_of_slabs([(weight, restored)])
    if second_moment is None:
        return found
    return replace(found, output=relative_output_error(weight, restored, second_moment))


def error_of_slabs(slabs: Iterable[tuple[Tensor, Tensor]]) -> WeightError:
    """Return how far a weight is from its original that comes in parts: pairs of the original and what it became."""
    signal = noise = product = restored_signal = largest = 0.0
    for weight, restored in slabs:
        for w, r in zip(_chunks(weight, torch.float32), _chunks(restored, torch.float32), strict=True):
            sums = _native.lost(w.numpy(), r.numpy())
            signal, noise, product = signal + sums[0], noise + sums[1], product + sums[2]
            restored_signal, largest = restored_signal + sums[3], max(largest, sums[4])
        if not math.isfinite(signal + restored_signal):
            require_finite(weight, "values of the weight")
            require_finite(restored, "values of the quantized weight")
    norms = math.sqrt(signal) * math.sqrt(restored_signal)
    return WeightError(
        signal=signal,
        noise=noise,
        sqnr_db=10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None,
        cosine=max(-1.0, min(1.0, product / norms)) if norms > 0 else float(signal == restored_signal),
        max_abs=largest,
        output=None,
    )


def outlier_ratio(weight: Tensor) -> float:
    """Return the largest magnitude of a tensor over its root mean square: 1 if all are equal, 0 if all are zero.

    weight: any float dtype and shape, at least one value. Raises: NonFiniteError for NaN or infinity.
    """
    signal = largest = 0.0
    for values in _chunks(weight, torch.float64):
        signal += float(values @ values)
        largest = max(largest, float(values.abs().max()))
    if not math.isfinite(signal):
        require_finite(weight, "values of the weight")
    return largest / math.sqrt(signal / weight.numel()) if signal > 0 else 0.0


def _chunks(values: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the values in order, as vectors of at most CHUNK_VALUES."""
    return (chunk.to(dtype) for chunk in torch.split(values.reshape(-1), CHUNK_VALUES))
