"""What a quantization will cost, before it starts: seconds by stage of the work, from the headers and one measurement.

Work is counted in multiply-adds times two (FLOP), which products of matrices make most of, and divided by what this
machine reaches in a product of float32 matrices, measured when the plan is made. What is no product, the search of
ranges and the loops over columns, is counted as so many FLOP for each weight: rough numbers, not held against runs yet.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from zeropoint.blocks import needs_shadow
from zeropoint.models.parts import linear_names
from zeropoint.recipe import Recipe, resolve
from zeropoint.refine import descent, distill, learned
from zeropoint.runtime.weights import Weights
from zeropoint.transforms.trial import WINDOWS

SIZE = 1024
"""Of the matrices whose product is timed."""

FLOP_PER_WEIGHT = {"range": 30_000, "gptq": 40_000, "trial": 4_000, "descent": 25_000}
"""What takes as long as so many FLOP for each weight: choosing ranges, GPTQ's columns, rounding for one trial of a
transform, a pass of the descent."""

TRIALS = 18
"""Trials of the search for the strengths of a block, about."""


@dataclass(frozen=True)
class Cost:
    """One stage of the work and about how long it will take."""

    stage: str
    seconds: float


def costs_of(weights: Weights, recipe: Recipe) -> tuple[Cost, ...]:
    """Return what the stages of a recipe will cost on this machine; of the weights only headers are read."""
    speed = product_speed()
    return tuple(Cost(stage, flop / speed) for stage, flop in _work(weights, recipe).items())


def product_speed() -> float:
    """Return FLOP per second of a product of float32 matrices: the best of a few tries of some 20 ms."""
    a = torch.randn(SIZE, SIZE)
    best = float("inf")
    for _ in range(5):
        started_s = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started_s)
    return 2 * SIZE**3 / best


def _work(weights: Weights, recipe: Recipe) -> dict[str, float]:
    """Return FLOP by stage."""
    plans = resolve(recipe, linear_names(weights.model))
    shapes = {name: weights.checkpoint.tensors[f"{name}.weight"].shape for name in plans}
    count = sum(shape[0] * shape[1] for name, shape in shapes.items() if plans[name] is not None)
    every = sum(shape[0] * shape[1] for shape in shapes.values())
    config, options = weights.model.config, recipe.calibration
    tokens = options.samples * options.length
    attention = 2 * config.layers * config.heads * config.head_dim * options.length  # of a token: half of what it sees

    def forward(count_: int) -> float:
        return float(count_) * (2 * every + attention)

    columns = [shapes[f"{weights.model.block_name(0)}.{stage.linears[0]}"][1] for stage in weights.model.flow]
    moments = float(tokens) * config.layers * sum(cols**2 for cols in columns)
    work: dict[str, float] = {}
    for choice in recipe.transforms:
        trial = forward(WINDOWS * options.length) + FLOP_PER_WEIGHT["trial"] * count
        work[choice.method] = forward(tokens) + TRIALS * trial
    rounding = recipe.rounding.method
    work[rounding] = forward(tokens) + moments + FLOP_PER_WEIGHT["range"] * count
    if rounding != "rtn":
        work[rounding] += FLOP_PER_WEIGHT["gptq"] * count
    if needs_shadow(plans, recipe):
        work[rounding] += forward(tokens) + 2 * moments
    batch = options.batch * options.length
    for choice in recipe.refine:
        found = choice.load_options("refine")
        if isinstance(found, descent.Options):
            work[choice.method] = float(found.passes) * FLOP_PER_WEIGHT["descent"] * count
        elif isinstance(found, learned.Options):
            work[choice.method] = 3 * found.steps * forward(batch) + forward(tokens)
        elif isinstance(found, distill.Options):
            head = 2 * config.vocab_size * config.hidden_size * batch
            work[choice.method] = found.steps * (4 * forward(batch) + 4 * head)
    return work
