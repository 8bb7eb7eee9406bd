"""Bias correction: what rounding changes in the mean of a layer's output, its bias takes back.

    b' = b - (W' E[x'] - W E[x])

with W' what the codes stand for, x' the input as it is rounded (x itself where it stays float), and the means over the
tokens of the calibration. The mean error of every output is 0 then on these tokens, but for the rounding of b' to the
dtype that it is stored in; how far single tokens lie from the mean does not change. Only a layer that has a bias can be
corrected: a reader that makes the model from config.json has no place for another one.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2, eq. 14 to 17, whose E[x] is the mean over a text here, and
where the input may be rounded, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from zeropoint.observe import channel_mean
from zeropoint.qparams.inputs import round_input
from zeropoint.types import InputParams

NEEDS = ("channel_mean",)

_SLAB_VALUES = 1 << 20
"""Values of a weight that are in float64 at once."""


def rounded_means(inputs: Iterable[Tensor], ways: Iterable[InputParams]) -> Mapping[InputParams, Tensor]:
    """Return E[x'] for each way of rounding: float64 (cols,).

    inputs: float32 (..., cols), batch by batch.
    """
    observers = {params: channel_mean.Observer() for params in ways}
    if observers:
        for x in inputs:
            rows = x.flatten(0, -2)  # (tokens, cols)
            for params, observer in observers.items():
                observer.update(round_input(rows, params))
    return {params: observer.result().values for params, observer in observers.items()}


def corrected_bias(bias: Tensor, weight: Tensor, restored: Tensor, mean: Tensor, rounded_mean: Tensor) -> Tensor:
    """Return b', float64 (rows,).

    bias: (rows,), any float dtype. weight, restored: W and W', float32 (rows, cols). mean, rounded_mean: E[x] and
    E[x'], float64 (cols,).
    """
    return bias.double() - (_product(restored, rounded_mean) - _product(weight, mean))


def _product(weight: Tensor, vector: Tensor) -> Tensor:
    """Return the product in float64, without a copy of the whole weight."""
    step = max(1, _SLAB_VALUES // max(1, weight.shape[1]))
    return torch.cat([rows.double() @ vector for rows in torch.split(weight, step)])
