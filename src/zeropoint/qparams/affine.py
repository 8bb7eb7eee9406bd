"""Values <-> integers, given scale and zero point.

    q = clamp(round(r / S + Z), q_min, q_max)          r' = S * (q - Z), or on two levels S * (q - q_min) - M

r / S is a true division in float32 (multiplying by 1 / S moves ties, and 1 / S of a denormal S is infinite), and
round is half to even: bit for bit what compressed-tensors computes. 0.0 becomes Z and comes back as 0.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zeropoint.qparams.from_range import require_finite
from zeropoint.qparams.grouping import check_per_group, check_shape, join, split
from zeropoint.qparams.levels import minimum_of
from zeropoint.types import QParams, QTensor, Scheme


def quantize(weight: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Return the integers nearest to `weight`: int8 (rows, cols) in [q_min, q_max].

    weight: float32 (or bfloat16, float16) (rows, cols). qparams: of `scheme`, one scale per group.
    Raises: NonFiniteError for NaN or infinity; SchemeError when qparams do not fit the weight.
    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1.
    """
    rows, cols = check_shape(weight.shape)
    _check(qparams, rows, cols, scheme)
    require_finite(weight, "values")
    grouped = split(weight.float(), scheme).values  # (rows, groups, size)
    codes = nearest_codes(grouped, *_per_value(qparams), scheme)
    return join(codes, rows, cols).to(torch.int8).contiguous()


def dequantize(codes: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Return the values that `codes` stand for: float32 (rows, cols).

    codes: int8 (rows, cols). qparams: of `scheme`. Raises: SchemeError when qparams do not fit the codes.
    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1.
    """
    rows, cols = check_shape(codes.shape)
    _check(qparams, rows, cols, scheme)
    grouped = split(codes, scheme).values.float()  # (rows, groups, size)
    if qparams.levels is not None:  # as readers of the blocks compute it: rounded once, in the subtraction
        minimum = minimum_of(qparams.levels).unsqueeze(-1)
        values = grouped.sub_(scheme.q_min).mul_(qparams.scale.unsqueeze(-1)).sub_(minimum)
        return join(values, rows, cols).contiguous()
    return join(values_of(grouped, *_per_value(qparams), out=grouped), rows, cols).contiguous()


def restore(q: QTensor) -> Tensor:
    """Return the weight that a linear multiplies with: float32 (rows, cols), its float columns in their places."""
    values = dequantize(q.codes, q.qparams, q.scheme)
    if q.outliers is not None and q.input is not None:
        values[:, list(q.input.outliers)] = q.outliers.float()
    return values


def fake_quantize(weight: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Return `weight` as it comes back from its integers, float32 (rows, cols): dequantize(quantize(weight)).

    Raises: as `quantize`.
    """
    return dequantize(quantize(weight, qparams, scheme), qparams, scheme)


def nearest_codes(
    values: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: Scheme, *, out: Tensor | None = None
) -> Tensor:
    """Return clamp(round(values / scale + zero_point)) as float32, all three broadcast; nothing is checked.

    The elementwise core, for loops that have checked their input once: a column of GPTQ, a candidate of a search.
    out: where to put it, float32 of the result's shape.
    """
    codes = torch.div(values, scale, out=out)
    if zero_point is not None:
        codes += zero_point
    return codes.round_().clamp_(scheme.q_min, scheme.q_max)


def values_of(codes: Tensor, scale: Tensor, zero_point: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """Return scale * (codes - zero_point), all three broadcast.

    codes: float32, integers. out: where to put it, float32 of the result's shape; may be `codes`.
    """
    if zero_point is None:
        return torch.mul(codes, scale, out=out)
    return torch.sub(codes, zero_point, out=out).mul_(scale)


def _per_value(qparams: QParams) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point as (rows, groups, 1), to be broadcast over the values of a group."""
    zero_point = qparams.zero_point
    return qparams.scale.unsqueeze(-1), None if zero_point is None else zero_point.unsqueeze(-1)


def _check(qparams: QParams, rows: int, cols: int, scheme: Scheme) -> None:
    check_per_group(qparams.scale, rows, cols, scheme)
    if qparams.zero_point is not None:
        check_per_group(qparams.zero_point, rows, cols, scheme)
