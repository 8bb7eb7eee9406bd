"""Outlier columns: what reaches a threshold is multiplied in floating point, and no scale has to cover it.

A few columns of what a linear reads are far larger than the others, in every token: one scale for all of them rounds
the others to nothing. With O the columns whose largest magnitude in calibration is at least the threshold

    y = W'[:, not O] Q(x[not O]) + W[:, O] x[O]

where W' and Q are what they would be for x and W with 0 in O: neither the scales of the weight nor those of the input
see these columns, GPTQ neither corrects them nor by them, and their codes stand for 0, so that a kernel may run over
all columns. LLM.int8 finds O anew for each batch; here it is fixed by calibration, so that each weight is stored once.
Source: Dettmers et al. 2022, arXiv:2208.07339, eq. 8; its threshold is 6.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zeropoint.qparams.statistics import of_type
from zeropoint.types import ChannelAbsMax, Drift, InputScheme, SecondMoment, Stats

NEEDS = frozenset({"channel_absmax"})
"""The observers that `outlier_columns` wants."""


def outlier_columns(stats: Mapping[str, Stats], scheme: InputScheme) -> tuple[int, ...]:
    """Return the columns that stay float, ascending; none where the scheme has no threshold.

    stats: of NEEDS where there is one; without tokens, there are no outliers.
    """
    if scheme.outlier_threshold is None:
        return ()
    return columns_from(of_type(stats, "channel_absmax", ChannelAbsMax).values, scheme.outlier_threshold)


def columns_from(largest: Tensor, threshold: float) -> tuple[int, ...]:
    """Return the columns whose largest magnitude, (cols,), is at least the threshold, ascending."""
    return tuple(torch.nonzero(largest >= threshold).flatten().tolist())


def zeroed(values: Tensor, columns: Sequence[int]) -> Tensor:
    """Return `values` (..., cols) with 0 in these columns: a copy, if there are any."""
    if not columns:
        return values
    return values.index_fill(-1, torch.tensor(columns, dtype=torch.long), 0)


def without(stats: Mapping[str, Stats], columns: Sequence[int]) -> Mapping[str, Stats]:
    """Return the statistics with the second moment and the drift of an input that holds 0 in these columns.

    The very same where there are none: what is known of a moment stays known.
    """
    if not columns:
        return stats
    return {
        name: replace(found, matrix=zeroed(zeroed(found.matrix, columns).T, columns).T)
        if isinstance(found, SecondMoment | Drift)
        else found
        for name, found in stats.items()
    }
