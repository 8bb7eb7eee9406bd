"""GPTQ: round column by column, and let the columns still to come make up for the error of each.

With the second moment H = mean(x x^T) of the layer's input, rounding column j of W leaves the error
e = (w_j - q_j) / U_jj, and the best change of the columns not yet rounded is -e U_j,: , where U is upper triangular
with U^T U = (H + lambda I)^-1. Columns go in order of decreasing H_jj (act-order), because the first ones have the most
columns left to help them. The groups' scales are fixed beforehand ("static groups"), so the file keeps its columns in
place and needs no index. Work is done in blocks of columns: inside a block one column at a time, and once per block
one matrix product that carries the block's errors to all later columns.

inverse.py finds U. 1 / U_jj^2 is the part of a column's second moment that the later columns cannot make up for. The
error of the layer is the sum of (w_j - q_j)^2 / U_jj^2 over the rounding errors as they arise, so this, not H_jj, is
what the search for the scales weighs with; docs/log.md has what it gains.

Symbols of the paper: H second moment, U Cholesky factor, lambda damping.
Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1 and section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from zeropoint import _native
from zeropoint.qparams.statistics import of_type
from zeropoint.rounding import RoundingError
from zeropoint.rounding.inverse import inverse_of
from zeropoint.types import QParams, QTensor, Scheme, SecondMoment, Stats

NEEDS = ("second_moment",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The knobs of GPTQ.

    damping: lambda as a fraction of the mean diagonal of H. act_order: decreasing H_jj, or the columns' own order.
    block: columns between two matrix products; it changes the time, not the result beyond rounding of float32.
    """

    damping: Annotated[float, Meta(gt=0, le=1e6)] = 0.01
    act_order: bool = True
    block: Annotated[int, Meta(ge=1, le=65536)] = 128


def weaker(options: Options) -> Iterator[tuple[str, Options]]:
    """Yield what to try when H is not positive definite: damping x10 three times, then the columns' own order."""
    for power in (1, 2, 3):
        damping = options.damping * 10**power
        yield f"damping {damping:g}", msgspec.structs.replace(options, damping=damping)
    if options.act_order:
        yield "without act-order", msgspec.structs.replace(options, damping=options.damping * 1000, act_order=False)


def importance(stats: Mapping[str, Stats], options: Options) -> Tensor | None:
    """Return what a squared rounding error of each column costs: 1 / U_jj^2, float32 (cols,), 0 where H_jj is 0.

    None if no token was seen; H_jj if H is not positive definite, as for rounding to nearest.
    """
    moment = of_type(stats, "second_moment", SecondMoment)
    if moment.count == 0:
        return None
    try:
        inverse = inverse_of(moment, damping=options.damping, act_order=options.act_order)
    except RoundingError:
        return moment.matrix.diagonal()
    cost = torch.empty_like(inverse.cost)
    cost[inverse.order] = inverse.cost
    return cost.where(moment.matrix.diagonal() > 0, 0.0)


def quantize(weight: Tensor, qparams: QParams, scheme: Scheme, stats: Mapping[str, Stats], options: Options) -> QTensor:
    """Return the codes of `weight` that keep the layer's output near the float one.

    weight: float32 (rows, cols), finite. stats["second_moment"]: of the input, matrix float32 (cols, cols).
    Raises: RoundingError if no token was seen or the damped H is not positive definite.
    """
    moment = of_type(stats, "second_moment", SecondMoment)
    inverse = inverse_of(moment, damping=options.damping, act_order=options.act_order)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    codes[:, inverse.order] = _round_columns(weight, inverse.order, inverse.U, qparams, scheme, options.block)
    return QTensor(codes, qparams, scheme)


def target(weight: Tensor, stats: Mapping[str, Stats], options: Options) -> Tensor:
    """Return what is rounded: the weight itself."""
    return weight


def _round_columns(
    weight: Tensor, order: Tensor, factor: Tensor, qparams: QParams, scheme: Scheme, block: int
) -> Tensor:
    """Return the codes as int8 (rows, cols), columns in the order given. Works on transposes: a column is a row.

    weight: (rows, cols), columns in their own order. factor: U, in the order given.

    Inside a block native code goes from column to column (native/rounding.h); the rest of a block's work is a product.
    """
    rows, cols = weight.shape
    W = weight.T[order]  # (cols, rows), overwritten by the corrections and then by the errors
    scale = _by_group(qparams.scale, rows)
    zero = None if qparams.zero_point is None else _by_group(qparams.zero_point.float(), rows)
    group = (order // scheme.group_cols(cols)).to(torch.int32).numpy()
    codes = torch.empty(W.shape, dtype=torch.int8)
    for start in range(0, cols, block):
        end = min(start + block, cols)
        _native.round_columns(
            W[start:end].numpy(),
            factor[start:end, start:end].contiguous().numpy(),
            scale,
            zero,
            group[start:end],
            codes[start:end].numpy(),
            scheme.q_min,
            scheme.q_max,
        )
        if end < cols:
            W[end:].addmm_(factor[start:end, end:].T, W[start:end], alpha=-1)
    return codes.T


def _by_group(per_group: Tensor, rows: int) -> NDArray[np.float32]:
    """Return one number per group, (rows or 1, groups), as float32 (groups, rows)."""
    values: NDArray[np.float32] = per_group.expand(rows, -1).T.contiguous().numpy()
    return values
