"""GPTQ's loop over columns with torch, in the order of the native one: bit for bit what that gives."""

from __future__ import annotations

import torch
from torch import Tensor

from zeropoint.qparams.affine import nearest_codes, values_of
from zeropoint.qparams.grouping import expand
from zeropoint.types import QParams, Scheme


def round_columns(
    weight: Tensor, order: Tensor, factor: Tensor, qparams: QParams, scheme: Scheme, block: int
) -> Tensor:
    """Return the codes as int8 (rows, cols), columns in the order given. Works on transposes: a column is a row.

    weight: (rows, cols), columns in their own order.
    """
    rows, cols = weight.shape
    W = weight.T[order]  # (cols, rows), overwritten by the corrections
    scale = expand(qparams.scale, rows, cols, scheme)[:, order].T.contiguous()
    zero = None
    if qparams.zero_point is not None:
        zero = expand(qparams.zero_point, rows, cols, scheme)[:, order].T.float().contiguous()
    codes = torch.empty_like(W)
    error = W.new_empty(min(block, cols), rows)
    for start in range(0, cols, block):
        end = min(start + block, cols)
        for j in range(start, end):
            zero_point = None if zero is None else zero[j]
            codes[j] = nearest_codes(W[j], scale[j], zero_point, scheme)
            torch.sub(W[j], values_of(codes[j], scale[j], zero_point), out=error[j - start]).div_(factor[j, j])
            if j + 1 < end:
                # one rounding, as by fma: float64 holds the product exactly
                moved = torch.outer(factor[j, j + 1 : end].double(), error[j - start].double())
                W[j + 1 : end] = (W[j + 1 : end].double() - moved).float()
        if end < cols:
            W[end:].addmm_(factor[start:end, end:].T, error[: end - start], alpha=-1)
    return codes.T.to(torch.int8)
