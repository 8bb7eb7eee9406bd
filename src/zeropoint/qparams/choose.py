"""A weight and a range rule -> scale and zero point of every group."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor

from zeropoint import find
from zeropoint.errors import InternalError, RecipeError, SchemeError
from zeropoint.qparams.from_range import from_range, require_finite
from zeropoint.qparams.grouping import check_scheme, check_shape, split, split_columns
from zeropoint.qparams.levels import fit
from zeropoint.types import QParams, Scheme


def choose_qparams(
    weight: Tensor,
    scheme: Scheme,
    rule: str,
    options: msgspec.Struct | None = None,
    importance: Tensor | None = None,
) -> QParams:
    """Return the scale and zero point that the range rule `rule` (a file of qparams/ranges) gives `weight`.

    weight: float32 (rows, cols); bfloat16 and float16 are converted. options: of that rule; None for its defaults.
    importance: float32 (cols,), >= 0, the mean square of each input column; rules that measure an error weigh it so.
    A scheme with a super_size begins its own search, for the least squared error, at the ranges of the rule.

    Raises: NonFiniteError for NaN or infinity; SchemeError for a scheme or a shape that is not allowed; RecipeError
    for a rule that has no file; InternalError for a negative importance. The messages do not have the weight's name,
    which is not known here.
    """
    check_scheme(scheme)
    rows, cols = check_shape(weight.shape)
    module = find.load("qparams.ranges", rule, error=RecipeError)
    require_finite(weight, "weights")
    per_value = None
    if importance is not None:
        _check_importance(importance, cols)
        per_value = split_columns(importance.float(), rows, scheme)  # (groups, size)
    chosen = module.Options() if options is None else options
    grouped = split(weight.float(), scheme)
    low, high = module.from_values(grouped, scheme, chosen, per_value)
    if scheme.super_size is not None:
        return fit(grouped, low, high, scheme, per_value)
    return from_range(low, high, scheme)


def _check_importance(importance: Tensor, cols: int) -> None:
    if importance.shape != (cols,):
        raise SchemeError(
            f"importance has shape {tuple(importance.shape)}, the weight {cols} columns; give one number per column"
        )
    require_finite(importance, "numbers of the importance")
    if bool(torch.any(importance < 0)):
        raise InternalError("the importance of a column is negative; it is a mean square, so at least 0")
