"""Activations <-> integers: a scale for each token when it comes, or one for all that was fixed by calibration.

    dynamic   S_t = max_k |x_tk| / ((q_max - q_min) / 2)  q = clamp(round(x / S_t), q_min, q_max)  x' = S_t q
    static    S, Z of a range from statistics          q = clamp(round(x / S + Z), q_min, q_max)  x' = S (q - Z)

The divisor of a dynamic scale is that of compressed-tensors, 127.5, as it is for symmetric weights (from_range.py), so
that a reader of the file computes the same integers. All of it in float32. Outlier columns (outliers.py) stay as they
are, and the scale is that of the others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.outliers import zeroed
from zeropoint.types import InputParams, InputScheme, Scheme


def input_params(low: float, high: float, scheme: InputScheme) -> InputParams:
    """Return the static parameters whose grid covers [low, high].

    Raises: NonFiniteError, SchemeError: as `from_range`.
    """
    found = from_range(torch.tensor([[low]]), torch.tensor([[high]]), as_weight_scheme(scheme))
    zero_point = 0 if found.zero_point is None else int(found.zero_point)
    return InputParams(scheme, float(found.scale), zero_point)


def as_weight_scheme(scheme: InputScheme) -> Scheme:
    """Return the scheme of a tensor with one scale and the same codes, for what is written against `Scheme`."""
    return Scheme(scheme.bits, scheme.symmetric, "tensor", None, scale_dtype="float32")


def round_input(x: Tensor, params: InputParams) -> Tensor:
    """Return x (..., cols), float32, as it comes back from its integers; outlier columns as they are."""
    if params.outliers:
        columns = list(params.outliers)
        rounded = round_input(zeroed(x, columns), replace(params, outliers=()))
        rounded[..., columns] = x[..., columns]
        return rounded
    scheme = params.scheme
    if params.scale is None:
        # a token of zeros stays zeros, whatever its scale
        scale = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True) / ((scheme.q_max - scheme.q_min) / 2)
        scale = torch.where(scale == 0, 1.0, scale)
        return x.div(scale).round_().clamp_(scheme.q_min, scheme.q_max).mul_(scale)
    codes = x.div(params.scale).add_(params.zero_point).round_().clamp_(scheme.q_min, scheme.q_max)
    return codes.sub_(params.zero_point).mul_(params.scale)
