"""Auto: of several rules the one whose range changes the layer's output least, measured.

No rule is best for all layers: what an outlier is worth depends on the weights that it meets. So every candidate's
range rounds a sample of the tokens (observe/sample.py), the layer's weights multiply it, and the smallest

    sum_t n_t |W x'_t - W x_t|^2 / sum_t n_t |W x_t|^2        n_t: how many tokens the sample's token t stands for

wins; of equal ones the first. All candidates come from the same pass over the text. A rule that cannot be applied, as
entropy to a histogram with few filled bins, is named in `skipped`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from torch import Tensor

from zeropoint import find
from zeropoint.errors import InternalError, RecipeError, SchemeError
from zeropoint.qparams.choose_input import choose_input_range, needs
from zeropoint.qparams.input_error import input_errors
from zeropoint.qparams.inputs import input_params
from zeropoint.qparams.statistics import of_type
from zeropoint.types import InputCandidate, InputRange, InputScheme, Stats, TokenSample

RULES = ("minmax", "moving_average", "percentile", "mse", "entropy")
NEEDS = tuple(sorted({"sample"}.union(*(needs(rule) for rule in RULES))))


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """rules: the candidates, each with its default options."""

    rules: tuple[str, ...] = RULES

    def __post_init__(self) -> None:
        """Refuse, by a RecipeError, a rule that is no candidate, or none at all."""
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown or not self.rules:
            got = f"{unknown[0]!r} is none" if unknown else "there is none"
            near = find.nearest(unknown[0], RULES) if unknown else ""
            raise RecipeError(f"candidates of the range rule auto: {got}; allowed are {', '.join(RULES)}{near}")


def from_stats(
    stats: Mapping[str, Stats], scheme: InputScheme, options: Options, weights: Iterable[Tensor] = ()
) -> InputRange:
    """Return the best range and all that were measured.

    weights: float32 (rows, cols) of each linear that reads the input; their outputs count as one.
    Raises: InternalError without weights; SchemeError if no rule can be applied.
    """
    weights = list(weights)
    if not weights:
        raise InternalError("the range rule auto measures outputs; it needs the weights that the input meets")
    found: list[InputRange] = []
    skipped: list[str] = []
    for rule in options.rules:
        try:
            found.append(choose_input_range(stats, rule, None, scheme, weights))
        except SchemeError as error:
            skipped.append(f"{rule}: {error}")
    if not found:
        raise SchemeError(f"no candidate of the range rule auto can be applied: {'; '.join(skipped)}")
    sample = of_type(stats, "sample", TokenSample)
    params = [input_params(one.low, one.high, scheme) for one in found]
    errors = [error.output for error in input_errors([(sample.rows, sample.weights)], params, weights)]
    candidates = tuple(
        InputCandidate(one.rule, one.low, one.high, error) for one, error in zip(found, errors, strict=True)
    )
    best = min(candidates, key=lambda one: one.error or 0.0)
    return InputRange(best.low, best.high, best.rule, candidates, tuple(skipped))
