"""Stage 5c, REFINE: codes and scales that are there become better ones; the bytes of the file stay as many.

A method is a file with

    SCOPE: "layer", "block" or "model"     what it works on at once
    Options                                its knobs, a frozen msgspec.Struct with defaults
    refine(...)                            by its scope:

    layer    refine(aim, qtensor, stats, options) -> QTensor               right after the rounding of a linear
    block    refine(block, samples, options, *, ops, gradient_ops, seed) -> Outcome         a tuned.TunedBlock, in place
    model    refine(blocks, student, options, *, gradient_ops, seed, progress) -> Outcome   all of them, in place

and never ends above where it began, by what it is judged by. (bias_correction.py is asked for by a key of its own.)
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_CAPABILITIES = ("bias_correction", "tuned")


@dataclass(frozen=True)
class Outcome:
    """error_before, error_after: what the method is judged by, on held-out windows. steps: how many it took."""

    error_before: float
    error_after: float
    steps: int
