"""Moving average: the ends of the range follow those of one batch after the other, and no single batch decides.

    m <- m + c (m_batch - m), from m = m of the first batch, each end by itself

What a batch is, observe/moving_average.py says: 256 of them, filled by the hash of each token, so that the range does
not depend on the order of the text. Batches without tokens are passed over. The largest values, which few batches
have, are clipped, the more the fewer tokens a batch has.

Source: Jacob et al. 2018, arXiv:1712.05877, section 3.1; c = 0.01 is the default of torch's observer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta
from torch import Tensor

from zeropoint.qparams.statistics import of_type
from zeropoint.types import BatchRanges, InputCandidate, InputRange, InputScheme, Stats

NEEDS = ("moving_average",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """c: how far the average goes towards each batch; with 1 only the last one counts."""

    c: Annotated[float, Meta(gt=0, le=1)] = 0.01


def from_stats(
    stats: Mapping[str, Stats], scheme: InputScheme, options: Options, weights: Iterable[Tensor] = ()
) -> InputRange:
    """Return the average range; 0, 0 before any token was seen. scheme, weights: not used; a wish of other rules."""
    batches = of_type(stats, "moving_average", BatchRanges)
    filled = batches.tokens > 0
    low, high = (_average(end[filled].tolist(), options.c) for end in (batches.low, batches.high))
    return InputRange(low, high, "moving_average", (InputCandidate("moving_average", low, high),))


def _average(ends: list[float], c: float) -> float:
    average = ends[0] if ends else 0.0
    for end in ends[1:]:
        average += c * (end - average)
    return average
