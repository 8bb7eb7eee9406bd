"""What rounding a linear's input costs, as sums over tokens: on the input itself, and on the output.

The error of the input falls into two parts. A value is clipped when it lies more than half a step outside the grid
(and a thousandth: the end of a range may lie half a step outside, and float32 must not decide about it):

    c = x' - x where x is clipped, else 0        r = x' - x where it is not, else 0        x' - x = c + r

so that what is lost at the ends of the range, and what is lost between its steps, can be seen side by side: a wider
range makes c smaller and r larger. With W the weights, all relative to sum |W x|^2:

    output = sum |W (c + r)|^2      clipping = sum |W c|^2      rounding = sum |W r|^2

The parts add up to the whole but for the product of the two, which can have either sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropoint.qparams.inputs import round_input
from zeropoint.types import InputParams

_HALF_A_STEP = 0.501
_TOKENS = 2048  # in memory at once, beside their outputs


@dataclass(frozen=True)
class InputError:
    """What one way of rounding costs.

    clipped: share of the values. sqnr_db: of the input; None when nothing was lost, or all is 0. output, clipping,
    rounding: squared relative errors of the outputs, 0 when nothing was lost; infinite where outputs of 0 changed.
    """

    clipped: float
    sqnr_db: float | None
    output: float
    clipping: float
    rounding: float


def input_errors(
    batches: Iterable[tuple[Tensor, Tensor | None]], candidates: Sequence[InputParams], weights: Sequence[Tensor]
) -> list[InputError]:
    """Return what each of the candidates costs, in one pass.

    batches: tokens float32 (tokens, cols), and how often each counts, float64 (tokens,), or None for once. weights:
    float32 (rows, cols) each; without any, the errors of the output are 0.
    """
    sums = [_Sums() for _ in candidates]
    values = signal = outputs = 0.0
    for tokens, counts in batches:
        for start in range(0, len(tokens), _TOKENS):
            x = tokens[start : start + _TOKENS]
            count = torch.ones(len(x), dtype=torch.float64) if counts is None else counts[start : start + _TOKENS]
            values += float(count.sum()) * x.shape[1]
            signal += _energy(x, count)
            outputs += sum(_energy(x @ weight.T, count) for weight in weights)
            for params, one in zip(candidates, sums, strict=True):
                one.add(x, count, params, weights)
    return [one.result(values, signal, outputs) for one in sums]


def clipped_values(x: Tensor, params: InputParams) -> Tensor:
    """Return where x, of any shape, lies more than half a step outside the grid; nowhere with a dynamic scale."""
    if params.scale is None:
        return torch.zeros_like(x, dtype=torch.bool)
    codes = x.div(params.scale).add_(params.zero_point)
    return (codes < params.scheme.q_min - _HALF_A_STEP) | (codes > params.scheme.q_max + _HALF_A_STEP)


class _Sums:
    def __init__(self) -> None:
        self.clipped = self.noise = self.output = self.clipping = self.rounding = 0.0

    def add(self, x: Tensor, count: Tensor, params: InputParams, weights: Sequence[Tensor]) -> None:
        error = round_input(x, params).sub_(x)
        outside = clipped_values(x, params)
        self.clipped += float(outside.sum(dim=1).double() @ count)
        self.noise += _energy(error, count)
        hit = torch.nonzero(outside.any(dim=1)).flatten()  # few tokens: their product is all that clipping costs here
        of_clipping = error[hit] * outside[hit]
        error[hit] -= of_clipping
        for weight in weights:
            rounding = error @ weight.T
            clipping = of_clipping @ weight.T
            self.rounding += _energy(rounding, count)
            self.clipping += _energy(clipping, count[hit])
            rounding[hit] += clipping
            self.output += _energy(rounding, count)

    def result(self, values: float, signal: float, outputs: float) -> InputError:
        return InputError(
            clipped=self.clipped / values if values else 0.0,
            sqnr_db=10 * math.log10(signal / self.noise) if signal > 0 and self.noise > 0 else None,
            output=_relative(self.output, outputs),
            clipping=_relative(self.clipping, outputs),
            rounding=_relative(self.rounding, outputs),
        )


def _energy(rows: Tensor, count: Tensor) -> float:
    """Return sum_t count_t |row_t|^2. rows: float32 (tokens, features)."""
    return float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square() @ count)


def _relative(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0 if part == 0 else math.inf
