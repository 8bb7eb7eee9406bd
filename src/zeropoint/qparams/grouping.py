"""Which values of a weight share one scale: the only owner of shapes, and of what a scheme may say.

A weight (rows, cols) becomes (rows, groups, size), so that everything about a group is a reduction over the last
dimension and everything per group broadcasts with one `unsqueeze(-1)`. A last group that is shorter than the others
is filled up with zeros: zero lies in every range and is exact in every grid, so the filling changes no extreme and
no error. Rules that count values (percentile, entropy) leave it out with `valid`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from zeropoint.errors import SchemeError
from zeropoint.types import Granularity, ScaleDtype, Scheme


@dataclass(frozen=True)
class Grouped:
    """A weight cut into the pieces that share one scale.

    values: (rows, groups, size), in the dtype of the weight; per tensor (1, 1, rows * cols). A view of the weight
        unless the last group had to be filled up.
    valid: bool (groups, size), False on the filling.
    """

    values: Tensor
    valid: Tensor


def check_scheme(scheme: Scheme) -> None:
    """Raise SchemeError, saying what is allowed, for a scheme that no tensor can have."""
    if scheme.bits not in range(2, 9):
        raise SchemeError(f"bits = {scheme.bits!r}: integers have 2 to 8 bits")
    if scheme.granularity not in get_args(Granularity):
        raise SchemeError(f"granularity = {scheme.granularity!r}: use one of {', '.join(get_args(Granularity))}")
    if scheme.scale_dtype not in get_args(ScaleDtype):
        raise SchemeError(f"scale_dtype = {scheme.scale_dtype!r}: use one of {', '.join(get_args(ScaleDtype))}")
    if scheme.scale_bits is not None and not 2 <= scheme.scale_bits <= 24:
        raise SchemeError(f"scale_bits = {scheme.scale_bits}: use 2 to 24, or None for all that the dtype has")
    if scheme.granularity == "group":
        if scheme.group_size is None:
            raise SchemeError("granularity = 'group' needs a group_size, such as 64; or use granularity = 'channel'")
        if scheme.group_size < 1:
            raise SchemeError(f"group_size = {scheme.group_size}: a group has at least one column")
    if scheme.super_size is not None:
        _check_super(scheme, scheme.super_size)


def _check_super(scheme: Scheme, size: int) -> None:
    whole = scheme.granularity == "group" and scheme.group_size and size % scheme.group_size == 0
    if scheme.symmetric or not whole or scheme.scale_dtype != "float16" or scheme.scale_bits is not None:
        raise SchemeError(
            f"super_size = {size}: scales on two levels go with symmetric = false, "
            "scale_dtype = 'float16', no scale_bits, and granularity = 'group' with a group_size that divides it"
        )


def check_shape(shape: torch.Size) -> tuple[int, int]:
    """Return (rows, cols) of a weight. Raises: SchemeError unless it has two dimensions and at least one value."""
    if len(shape) != 2 or 0 in shape:
        raise SchemeError(f"got a tensor of shape {tuple(shape)}: a weight is (rows, cols), each at least 1")
    return shape[0], shape[1]


def split(weight: Tensor, scheme: Scheme) -> Grouped:
    """Cut `weight` (rows, cols), any dtype, into its groups.

    Raises: SchemeError for a scheme that is not allowed, or a weight that is empty or not two-dimensional.
    """
    check_scheme(scheme)
    rows, cols = check_shape(weight.shape)
    if scheme.granularity == "tensor":
        flat = weight.reshape(1, 1, rows * cols)
        return Grouped(flat, torch.ones((), dtype=torch.bool).expand(1, rows * cols))
    groups, size, filling = _layout(cols, scheme)
    filled = pad(weight, (0, filling)) if filling else weight
    valid = torch.unflatten(torch.arange(groups * size) < cols, 0, (groups, size))
    return Grouped(torch.unflatten(filled, 1, (groups, size)), valid)  # (rows, groups, size)


def split_columns(per_column: Tensor, rows: int, scheme: Scheme) -> Tensor:
    """Cut one number per column, (cols,), like the rows of a weight: (groups, size), with 0 on the filling.

    Per tensor, where all rows share one group, the numbers are repeated for each of the `rows`: (1, rows * cols).
    """
    check_scheme(scheme)
    (cols,) = per_column.shape
    if scheme.granularity == "tensor":
        return per_column.repeat(rows).unsqueeze(0)
    groups, size, filling = _layout(cols, scheme)
    return torch.unflatten(pad(per_column, (0, filling)), 0, (groups, size))


def join(values: Tensor, rows: int, cols: int) -> Tensor:
    """Undo `split`: (rows, groups, size) or (1, 1, rows * cols) -> (rows, cols), without the filling; a view."""
    return values.reshape(rows, -1)[:, :cols]


def expand(per_group: Tensor, rows: int, cols: int, scheme: Scheme) -> Tensor:
    """Repeat one number per group, (rows or 1, groups), for every value of its group: (rows, cols).

    A view where one scale covers a whole row or the whole tensor; a copy where there are several groups to a row.
    Raises: SchemeError when `per_group` does not have one number per group.
    """
    check_per_group(per_group, rows, cols, scheme)
    groups = per_group.shape[1]
    if groups == 1:
        return per_group.expand(rows, cols)
    _, size, _ = _layout(cols, scheme)
    return per_group.repeat_interleave(size, dim=1)[:, :cols]


def check_per_group(per_group: Tensor, rows: int, cols: int, scheme: Scheme) -> None:
    """Raise SchemeError unless `per_group` has one number for each group of a (rows, cols) weight."""
    expected = (1 if scheme.granularity == "tensor" else rows, scheme.groups(cols))
    if tuple(per_group.shape) != expected:
        raise SchemeError(
            f"got {tuple(per_group.shape)} scales or zero points for a weight of shape ({rows}, {cols}) "
            f"quantized as {scheme.label()}, which has {expected}"
        )


def _layout(cols: int, scheme: Scheme) -> tuple[int, int, int]:
    """Return (groups, size, filling), where groups * size = cols + filling."""
    groups = scheme.groups(cols)
    size = scheme.group_cols(cols)
    return groups, size, groups * size - cols
