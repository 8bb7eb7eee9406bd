"""The Cholesky factor of the inverse of H: what GPTQ rounds with, in the memory of one matrix beside H.

    U upper triangular,  U^T U = (H + lambda I)^-1,  columns in the order in which they are rounded

It comes from one factorization instead of two and an inverse: H + lambda I = R R^T with R upper triangular, from the
last column to the first, and U = R^-1. Both are done in place, a panel of columns or rows at a time, and the products
that carry a panel to the others are all the work there is; LAPACK's functions would need a copy for each step, and H of
a wide layer is as large as all else that a run holds. What was found for an H stays with it, for all linears that share
it.

Products are cut into pieces of fixed sizes, each computed by one thread: the number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zeropoint.rounding import RoundingError
from zeropoint.threads import a_thread_each, map_each
from zeropoint.types import SecondMoment

_PANEL = 256
"""Rows or columns at once."""

_PIECE = 1024
"""Rows, or columns, of what one thread computes at once."""


@dataclass(frozen=True)
class Inverse:
    """order: int64 (cols,), the columns as they are rounded. U: float32 (cols, cols), upper triangular, in that order.

    cost: R_jj^2 = 1 / U_jj^2, float32 (cols,), in that order: the part of each column's second moment that the later
    columns cannot make up for.
    """

    order: Tensor
    U: Tensor
    cost: Tensor


def inverse_of(moment: SecondMoment, *, damping: float, act_order: bool) -> Inverse:
    """Return U for H with lambda = damping times the mean of its diagonal.

    act_order: columns in the order of decreasing H_jj, or their own. A dead column (H_jj = 0) gets H_jj = 1: it is
    rounded to nearest and neither gives nor takes corrections.
    Raises: RoundingError if no token was seen or the damped H is not positive definite.
    """
    if moment.count == 0:
        raise RoundingError("no calibration token reached it")
    key = (damping, act_order)
    found = moment.known.get(key)
    if not isinstance(found, Inverse):
        moment.known.clear()  # another one is for other knobs, and as large
        found = moment.known[key] = _inverse(moment.matrix, damping, act_order=act_order)
    return found


def _inverse(H: Tensor, damping: float, *, act_order: bool) -> Inverse:
    diagonal = H.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(len(diagonal))
    A = torch.empty_like(H)
    for start in range(0, len(A), _PANEL):
        A[start : start + _PANEL] = H[order[start : start + _PANEL]][:, order]
    added = A.diagonal()
    dead = added == 0
    added.add_(damping * float(diagonal.mean()))
    added[dead] = 1.0
    with a_thread_each() as pool:
        if not _factorize(A, pool):
            raise RoundingError(f"H is not positive definite with damping {damping:g}")
        cost = A.diagonal().square()
        _invert(A, pool)
    return Inverse(order, A, cost)


def _factorize(A: Tensor, pool: ThreadPoolExecutor) -> bool:
    """Put R, upper triangular with R R^T = A, in the place of A; say whether there is one.

    A: float32 (cols, cols), symmetric. Only its upper triangle is read.
    """
    for end in range(len(A), 0, -_PANEL):
        panel = slice(max(0, end - _PANEL), end)
        map_each(pool, partial(_carry, A, panel), _pieces(0, end))
        root = _reversed_root(A[panel, panel])
        if root is None:
            return False
        A[panel, panel] = root
        map_each(pool, partial(_solve, A, panel, root), _pieces(0, panel.start))
        A[panel, : panel.start] = 0
    return True


def _pieces(start: int, stop: int) -> Iterator[slice]:
    return (slice(first, min(first + _PIECE, stop)) for first in range(start, stop, _PIECE))


def _carry(A: Tensor, panel: slice, rows: slice) -> None:
    """Take from some rows of a panel what the panels to its right, which are done, stand for."""
    A[rows, panel].addmm_(A[rows, panel.stop :], A[panel, panel.stop :].T, alpha=-1)


def _solve(A: Tensor, panel: slice, root: Tensor, rows: slice) -> None:
    """Put X with X R^T = A in the place of some rows of a panel. root: R of the panel's own rows."""
    A[rows, panel] = torch.linalg.solve_triangular(root.T, A[rows, panel], upper=False, left=False)


def _reversed_root(square: Tensor) -> Tensor | None:
    """Return R, upper triangular with R R^T = `square`, of which the upper triangle is read; None if there is none."""
    lower, info = torch.linalg.cholesky_ex(square.triu().flip(0, 1))  # reads its lower triangle
    root: Tensor = lower.flip(0, 1)
    smallest = float(root.diagonal().min())
    return None if int(info) or not 0 < smallest < float("inf") else root


def _invert(R: Tensor, pool: ThreadPoolExecutor) -> None:
    """Put R^-1 in the place of R, upper triangular."""
    cols = len(R)
    for start in range((cols - 1) // _PANEL * _PANEL, -1, -_PANEL):
        panel = slice(start, min(start + _PANEL, cols))
        own = torch.linalg.solve_triangular(R[panel, panel], torch.eye(panel.stop - start), upper=True)
        right = R[panel, panel.stop :].clone()
        map_each(pool, partial(_multiply, R, panel, own, right), _pieces(panel.stop, cols))
        R[panel, panel] = own


def _multiply(R: Tensor, panel: slice, own: Tensor, right: Tensor, columns: slice) -> None:
    """Find some columns of a panel of the inverse; the rows below it are inverted, and zero below their diagonal.

    own: the inverse of the panel's own columns. right: what R has to the right of them.
    """
    rows = slice(panel.stop, columns.stop)
    R[panel, columns] = own @ (right[:, : rows.stop - rows.start] @ R[rows, columns]).neg_()
