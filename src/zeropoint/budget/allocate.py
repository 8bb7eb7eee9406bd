"""Which form each unit gets: the least loss within a size, or the least size within a loss. Exactly, not greedily.

    minimize    sum over units u and forms f of a_uf x_uf
    subject to  sum of b_uf x_uf <= limit for every b,    sum over f of x_uf = 1 for each u,    x_uf in {0, 1}

with a the losses and b the bytes, or the other way round: a multiple-choice knapsack. HiGHS solves it by branch and
bound (scipy.optimize.milp); the linear relaxation leaves at most two units between two forms, so that this is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import InternalError

GAP = 1e-6
"""The relative difference from the best that counts as the best."""

INFEASIBLE = 2
"""The status by which milp says that nothing fits."""


@dataclass(frozen=True)
class Limit:
    """What a choice may cost in all. costs: >= 0, for each unit one number for each form."""

    costs: Sequence[Sequence[float]]
    most: float


def least(aims: Sequence[Sequence[float]], limits: Sequence[Limit]) -> tuple[int, ...] | None:
    """Return for each unit the number of its form, so that the aims sum to the least within all limits.

    aims: >= 0, for each unit one number for each form. None if no choice stays within the limits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    aim = _flat(aims)
    counts = [len(row) for row in aims]
    of_unit = np.repeat(np.arange(len(counts)), counts)
    one_each = csr_array((np.ones(len(aim)), (of_unit, np.arange(len(aim)))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:  # solvers want numbers near one; the best choice does not depend on the unit
        scale = abs(limit.most) or 1.0
        constraints.append(LinearConstraint(_flat(limit.costs)[None] / scale, -np.inf, limit.most / scale))
    found = milp(
        aim / (float(aim.max()) or 1.0),
        integrality=np.ones(len(aim)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": GAP},
    )
    if found.status == INFEASIBLE:
        return None
    if found.x is None:
        raise InternalError(f"the choice of forms failed: {found.message}")
    ends = np.cumsum(counts)
    return tuple(int(np.argmax(found.x[end - count : end])) for end, count in zip(ends, counts, strict=True))


def _flat(table: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array([value for row in table for value in row], np.float64)
