"""Stage 5b, ROUND: one weight, its scales and the statistics of its input become integers. One file per method.

A method is a file with

    NEEDS: tuple of observer names       the statistics of the input that it cannot do without
    Options                              its knobs, a frozen msgspec.Struct with defaults
    importance(stats, options)           what a squared rounding error of each column costs, for the scales
    target(weight, stats, options)       what is rounded instead of the weight: the weight itself, or a better aim
    weaker(options)                      yields (what was given up, weaker options): the first rungs of the ladder
    quantize(weight, qparams, scheme, stats, options) -> QTensor

and raises RoundingError when the numbers do not allow it; `ladder.round_weight` then takes the next rung, by name.
"""

from __future__ import annotations

NOT_CAPABILITIES = ("inverse", "ladder", "linear", "objective")


class RoundingError(ArithmeticError):
    """The method cannot be applied to this layer; the ladder catches it, the reason stands in the result."""
