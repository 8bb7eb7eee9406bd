"""The ladder: when a method cannot be applied to a layer, the next rung is taken, and said.

method as asked -> its own weaker settings -> rounding to nearest under the chosen ranges.
A rung is taken when the method raises RoundingError, or when its result has a larger output error than rounding to
nearest has: no method may be worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from zeropoint import find
from zeropoint.errors import RecipeError
from zeropoint.qparams.affine import dequantize
from zeropoint.rounding import RoundingError, rtn
from zeropoint.rounding.objective import output_error
from zeropoint.types import QParams, QTensor, Scheme, SecondMoment, Stats


@dataclass(frozen=True)
class Rounded:
    """One weight after rounding.

    nearest: what rounding to nearest makes of it with the same scales. rounding: the method that gave the codes.
    fallback: why it is not what was asked, or None. error: squared relative error of the layer's output (of the weight
    itself when there are no statistics).
    """

    qtensor: QTensor
    nearest: QTensor
    rounding: str
    fallback: str | None
    error: float


def aim(weight: Tensor, stats: Mapping[str, Stats], method: str, options: Any) -> tuple[Tensor, str | None]:
    """Return what is to be rounded, and why it is the weight itself although the method has a better aim; or None.

    weight: float32 (rows, cols), finite. stats: as for `round_weight`.
    """
    module = find.load("rounding", method, error=RecipeError)
    failures: list[str] = []
    for given_up, rung in _rungs(module, options):
        try:
            return module.target(weight, stats, rung), f"{given_up}: {failures[0]}" if given_up else None
        except RoundingError as failure:
            failures.append(str(failure))
    return weight, f"aims at the weight itself: {failures[-1]}"


def round_weight(
    weight: Tensor, qparams: QParams, scheme: Scheme, stats: Mapping[str, Stats], method: str, options: Any
) -> Rounded:
    """Round `weight` by `method`, or by the first rung below it that works.

    weight: float32 (rows, cols), finite. stats: by observer name, those of the layer's input.
    """
    moment = stats.get("second_moment")
    seen = moment.matrix if isinstance(moment, SecondMoment) and moment.count else None
    nearest = rtn.quantize(weight, qparams, scheme, stats, rtn.Options())
    total = output_error(weight, seen)
    nearest_error = _relative_error(nearest, weight, seen, total)
    if method == "rtn":
        return Rounded(nearest, nearest, "rtn", None, nearest_error)
    failures: list[str] = []
    module = find.load("rounding", method, error=RecipeError)
    for given_up, rung in _rungs(module, options):
        try:
            found: QTensor = module.quantize(weight, qparams, scheme, stats, rung)
        except RoundingError as failure:
            failures.append(str(failure))
            continue
        error = _relative_error(found, weight, seen, total)
        if error > nearest_error:
            failures.append(f"{method} error {error:.3g} is above rounding to nearest's {nearest_error:.3g}")
            break
        reason = f"{given_up}: {failures[0]}" if given_up else None
        return Rounded(found, nearest, method, reason, error)
    return Rounded(nearest, nearest, "rtn", f"rtn: {failures[-1]}", nearest_error)


def _rungs(module: ModuleType, options: Any) -> Iterator[tuple[str, Any]]:
    yield "", options
    yield from module.weaker(options)


def _relative_error(qtensor: QTensor, weight: Tensor, second_moment: Tensor | None, total: float) -> float:
    """Return the error of a rounded weight as a part of `total`, in the memory of what its codes stand for."""
    error = dequantize(qtensor.codes, qtensor.qparams, qtensor.scheme).sub_(weight)
    return output_error(error, second_moment) / total if total > 0 else 0.0
