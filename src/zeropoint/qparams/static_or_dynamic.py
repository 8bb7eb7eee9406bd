"""One scale from calibration for a linear's input, or one for each token where that would cost too much.

A recipe that asks for static scales may say when an input stays dynamic instead, with a reason that results show:

    a massive activation    a place of the windows with a value far above the others (observe/massive.py)
    a static error          sum_t n_t |W x'_t - W x_t|^2 / sum_t n_t |W x_t|^2 above a limit

The error is that of the outputs of all linears that share the input, over a sample of tokens (observe/sample.py) that
are rounded with the range that was chosen; the weights are the float ones. As one stage reads one input, its linears
change together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec
from torch import Tensor

from zeropoint.observe.massive import Place
from zeropoint.qparams import choose_input
from zeropoint.qparams.input_error import input_errors
from zeropoint.qparams.inputs import input_params
from zeropoint.qparams.statistics import of_type
from zeropoint.types import InputParams, InputScheme, Stats, TokenSample


@dataclass(frozen=True)
class ChosenInput:
    """How linears round the input that they share.

    fallback: why it is dynamic although a static scale was asked for, or None. error: squared relative error of the
    outputs with the static scale; None where it was not measured, or where outputs of 0 changed.
    """

    params: InputParams
    fallback: str | None = None
    error: float | None = None


def needs(rule: str, limit: float | None) -> frozenset[str]:
    """Return the names of the observers whose statistics `choose_static` wants. Raises: RecipeError."""
    return choose_input.needs(rule) | ({"sample"} if limit is not None else frozenset())


def choose_static(
    stats: Mapping[str, Stats],
    rule: str,
    options: msgspec.Struct | None,
    scheme: InputScheme,
    weights: Callable[[], Iterable[Tensor]],
    *,
    limit: float | None = None,
    massive: Place | None = None,
) -> ChosenInput:
    """Return the static scale that `rule` gives an input, or a dynamic one and why.

    stats, options, scheme: as `choose_input_range` takes them. weights: gives the float32 (rows, cols) of each linear
    that reads the input; asked only where outputs are measured. limit: of the error, from 0; None takes any. massive:
    a massive activation of the input that a static scale is not to serve.
    Raises: as `choose_input_range` and `input_params`.
    """
    dynamic = InputParams(replace(scheme, dynamic=True, symmetric=True))
    if massive is not None:
        where = f"position {massive.position}, channel {massive.channel}"
        value = f"{massive.value:.4g}, {massive.ratio:,.0f} times the median magnitude"
        return ChosenInput(dynamic, f"input stays dynamic: massive activation at {where}: {value}")
    found = choose_input.choose_input_range(stats, rule, options, scheme, weights())
    params = input_params(found.low, found.high, scheme)
    if limit is None:
        return ChosenInput(params)
    measured = next(one.error for one in found.candidates if one.rule == found.rule)
    static_error = _output_error(stats, params, weights) if measured is None else measured
    known = static_error if math.isfinite(static_error) else None
    if static_error <= limit:
        return ChosenInput(params, error=known)
    dynamic_error = _output_error(stats, dynamic, weights)
    reason = f"static error {static_error:.3g} is above the limit {limit:g}; with a scale per token {dynamic_error:.3g}"
    return ChosenInput(dynamic, f"input stays dynamic: {reason}", known)


def _output_error(stats: Mapping[str, Stats], params: InputParams, weights: Callable[[], Iterable[Tensor]]) -> float:
    """Return the squared relative error of the outputs, as the rule auto measures it."""
    sample = of_type(stats, "sample", TokenSample)
    (error,) = input_errors([(sample.rows, sample.weights)], [params], list(weights()))
    return error.output
