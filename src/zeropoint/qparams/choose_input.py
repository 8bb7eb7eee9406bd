"""A linear's input and a range rule -> the static range [low, high] of its integers.

    needs("mse")                                              -> {"histogram"}: what to observe
    choose_input_range(stats, "mse", None, scheme, weights)   -> InputRange; `input_params` makes S and Z of it

The rules are the files of qparams/ranges, by their from_histogram, and of qparams/input_ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType

import msgspec
from torch import Tensor

from zeropoint import find
from zeropoint.errors import RecipeError
from zeropoint.qparams.inputs import as_weight_scheme
from zeropoint.qparams.statistics import of_type
from zeropoint.types import Histogram, InputCandidate, InputRange, InputScheme, Stats

FOLDER = "qparams.input_ranges"


def input_rules() -> tuple[str, ...]:
    """Return the names of all rules that give the range of an input, sorted."""
    return find.choices(FOLDER)


def load_input_rule(rule: str) -> ModuleType:
    """Return the rule's file. Raises: RecipeError, naming those that exist, if there is none."""
    known = input_rules()
    if rule not in known:
        raise RecipeError(
            f"no range rule for inputs is called {rule!r}; there are {', '.join(known)}{find.nearest(rule, known)}"
        )
    return find.load(FOLDER, rule)


def needs(rule: str) -> frozenset[str]:
    """Return the names of the observers whose statistics `choose_input_range` wants. Raises: RecipeError."""
    module = load_input_rule(rule)
    # what a rule of weights needs, it needs for weights
    return frozenset(module.NEEDS) if hasattr(module, "from_stats") else frozenset({"histogram"})


def choose_input_range(
    stats: Mapping[str, Stats],
    rule: str,
    options: msgspec.Struct | None,
    scheme: InputScheme,
    weights: Iterable[Tensor] = (),
) -> InputRange:
    """Return the range that `rule` gives an input with these statistics.

    stats: of the observers `needs(rule)`, more do no harm. options: of that rule; None for its defaults. weights:
    float32 (rows, cols) of each linear that reads the input, for rules that measure outputs ("auto").
    Raises: RecipeError for a rule that has no file; SchemeError if the rule cannot be applied to these statistics;
    InternalError if some are missing.
    """
    module = load_input_rule(rule)
    chosen = module.Options() if options is None else options
    if hasattr(module, "from_stats"):
        found: InputRange = module.from_stats(stats, scheme, chosen, weights)
        return found
    histogram = of_type(stats, "histogram", Histogram)
    low, high = module.from_histogram(histogram, as_weight_scheme(scheme), chosen)
    return InputRange(low, high, rule, (InputCandidate(rule, low, high),))
