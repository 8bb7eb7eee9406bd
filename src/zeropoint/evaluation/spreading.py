"""How the values of one linear are spread: bars of its weight and of its input, its codes, and where the error is.

Bars are as wide as a power of two, so that every value is in the one whose ends it lies between, and have 0 as an end.
They reach as far as 99.9 % of the values do; the first and the last one hold what lies beyond.

With w the weight, w' what it came back as, S and Z of its group, the squared error is split into

    clipped = sum (w' - w)^2 / sum w^2  over the w with w / S + Z outside [q_min - 1/2, q_max + 1/2]
    rounded = the same over all others

with float64 sums; which side a value is on is decided in float32, as its code is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeropoint import _native
from zeropoint.evaluation.layers import WeightError
from zeropoint.evaluation.results import Bar, Channel, Spreading
from zeropoint.observe.glance import Glance
from zeropoint.types import QTensor, Scheme

REACH = 0.999
"""Share of the values that lie between the outermost bars."""

HALF = 24
"""Bars on each side of 0 at most, and more than half of it, without the outermost."""

LOUD = 8
"""Channels that are named."""

_RUNS, _RUN = 32, 64
"""Of large tensors so many runs of so many values say how wide the bars of all are."""


@dataclass(frozen=True)
class InputSpreading:
    """What Spreading has of an input, which several linears may share."""

    inputs: tuple[Bar, ...] = ()
    loud: tuple[Channel, ...] = ()


def input_spreading(glance: Glance) -> InputSpreading:
    """Return how an input is spread; nothing where no token was seen."""
    return InputSpreading(bars(glance.sample), loud(glance.mean_squares()))


def spreading(
    weight: Tensor, restored: Tensor, qtensor: QTensor, error: WeightError, seen: InputSpreading
) -> Spreading:
    """Return how one linear is spread.

    weight, restored: float32 (rows, cols), the float one and what `qtensor` stands for. error: between the two. seen:
    of its input.
    """
    clipped, rounded = split_error(weight, restored, qtensor, error)
    return Spreading(
        weights=bars(weight),
        code_low=qtensor.scheme.q_min,
        codes=code_counts(qtensor.codes, qtensor.scheme),
        clipped_error=clipped,
        rounded_error=rounded,
        inputs=seen.inputs,
        loud=seen.loud,
    )


def code_counts(codes: Tensor, scheme: Scheme) -> tuple[int, ...]:
    """Return how often each code from q_min to q_max is used. codes: int8 (rows, cols)."""
    counts = np.zeros(256, np.int64)
    _native.count_codes(codes.contiguous().numpy(), counts)
    return tuple(counts[scheme.q_min + 128 : scheme.q_max + 129].tolist())


def split_error(weight: Tensor, restored: Tensor, qtensor: QTensor, error: WeightError) -> tuple[float, float]:
    """Return the squared error of the weights outside their grids and of the others, relative to sum w^2; 0 of zeros.

    weight, restored: float32 (rows, cols). error: between the two.
    """
    if not error.signal:
        return 0.0, 0.0
    rows, cols = weight.shape
    scheme, qparams = qtensor.scheme, qtensor.qparams
    groups = qparams.scale.shape[1]
    # per tensor one scale is repeated for every row
    scale, zero = (
        None if each is None else each.float().expand(rows, groups).contiguous().numpy()
        for each in (qparams.scale, qparams.zero_point)
    )
    assert scale is not None
    clipped = _native.clipped(
        weight.contiguous().numpy(),
        restored.contiguous().numpy(),
        scale,
        zero,
        scheme.group_cols(cols),
        scheme.q_min,
        scheme.q_max,
    )
    return clipped / error.signal, max(0.0, error.noise - clipped) / error.signal


def bars(values: Tensor) -> tuple[Bar, ...]:
    """Return how values, float32 of any shape and finite, are spread: without the empty bars at the ends."""
    flat = values.contiguous().flatten()
    if not len(flat):
        return ()
    lowest, highest = (float(end) for end in torch.aminmax(flat))
    width, half = _widths(flat, max(-lowest, highest))
    counts = np.zeros(2 * half + 2, np.int64)
    _native.count_bars(flat.numpy(), 1 / width, counts)
    ends = [width * at for at in range(-half, half + 1)]
    ends = [min(ends[0], width * math.floor(lowest / width)), *ends]
    ends = [*ends, max(ends[-1], width * (math.floor(highest / width) + 1))]
    filled = np.flatnonzero(counts)
    return tuple(Bar(low=ends[at], high=ends[at + 1], count=int(counts[at])) for at in range(filled[0], filled[-1] + 1))


def _widths(flat: Tensor, largest: float) -> tuple[float, int]:
    """Return the width of the bars and how many are between 0 and REACH, by a sample of the values."""
    few = np.abs(_few(flat.numpy()))
    at = min(len(few) - 1, math.floor(REACH * len(few)))
    reach = float(np.partition(few, at)[at]) or largest
    if reach == 0:
        return 1.0, 1
    # float32 has to hold 1 / width too
    width = 2.0 ** min(120, max(-120, math.ceil(math.log2(reach / HALF))))
    return width, max(1, min(HALF, math.ceil(reach / width)))


def _few(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a sample of values that has none of them twice: a run from a random place of each of _RUNS equal parts."""
    part = len(values) // _RUNS
    if part < 4 * _RUN:
        return values
    # runs, as a value by itself is waited for; random, as places at equal distances can be of the same few columns
    starts = np.arange(_RUNS) * part + (np.random.PCG64(0).random_raw(_RUNS) % (part - _RUN + 1)).astype(np.int64)
    found: NDArray[np.float32] = values[(starts[:, None] + np.arange(_RUN)).ravel()]
    return found


def loud(mean_squares: NDArray[np.float64] | None) -> tuple[Channel, ...]:
    """Return the largest columns of an input, and their root mean squares relative to the median one; () if that is 0.

    mean_squares: float64 (cols,), or None if none was seen.
    """
    if mean_squares is None:
        return ()
    size = np.sqrt(mean_squares)
    median = float(np.median(size))
    if median == 0:
        return ()
    order = np.argsort(-size, kind="stable")[:LOUD]
    return tuple(Channel(index=int(at), ratio=float(f"{size[at] / median:.4g}")) for at in order)
