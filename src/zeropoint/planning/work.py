"""How long the stages of a run will take: their operations, in units whose time on this machine was measured.

Products of matrices, forward passes and second moments are counted in FLOP or in tokens, what is done with each weight
in weights (rates.py). What is left, starting, reading, writing and verifying, is counted in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import torch

from zeropoint.evaluation.size import stored_bytes
from zeropoint.models.parts import Stage, kinds_of_blocks, linear_names
from zeropoint.planning.rates import FORWARD, PRODUCT, SLAB_COLS, TRIAL, Rates, measure
from zeropoint.planning.schemes import Plans, has_shadow, needed
from zeropoint.recipe import Recipe
from zeropoint.refine import distill, learned
from zeropoint.runtime.weights import Weights
from zeropoint.transforms.trial import WINDOWS

TRIALS = 18
"""Trials of the search for the strengths of a block, about."""

GRADIENT_FORWARDS = 4.0
"""Forward passes that a gradient takes as long as: forward, and backward for the input and the weights; the weights put
together from their codes."""

PRODUCT_FLOP = 4.4
"""Of a weight and a column of H: GPTQ's corrections 1, and three errors of the output by 9/16 of a product each."""

OTHER, OTHER_S, OTHER_BYTES_PER_S = "read, write, verify", 3.0, 2e8
"""The stage that is left: the start of the process that verifies, and what is read, hashed and written."""


def seconds_by_stage(weights: Weights, recipe: Recipe, plans: Plans, bench_s: float) -> tuple[tuple[str, float], ...]:
    """Return about how long each stage of the work will take on this machine, by name, in their order.

    bench_s: how long the machine may be measured. Of the weights only headers are read.
    """
    recipe.check()
    return tuple(_stages(weights, recipe, plans, measure(weights, recipe, plans, bench_s)))


def _stages(weights: Weights, recipe: Recipe, plans: Plans, rates: Rates) -> Iterator[tuple[str, float]]:
    model, options = weights.model, recipe.calibration
    config = model.config
    shapes = {name: weights.checkpoint.tensors[f"{name}.weight"].shape for name in linear_names(model)}
    block = model.block_name(kinds_of_blocks(model)[0])
    of_block = [(stage, [shapes[f"{block}.{name}"] for name in stage.linears]) for stage in model.flow]
    every = config.layers * sum(stage.share(config) * sum(map(math.prod, its)) for stage, its in of_block)
    count = sum(math.prod(shape) for name, shape in shapes.items() if plans[name] is not None)
    statistics = needed(plans)
    tokens = options.samples * options.length

    def forward_s(tokens_: float) -> float:
        """Seconds of so many tokens through all blocks."""
        measured = rates.get(FORWARD)
        if measured is not None:
            return tokens_ * config.layers * measured
        attention = 2 * config.layers * config.heads * config.head_dim * options.length  # half of what a token sees
        return tokens_ * (2 * every + attention) * rates[PRODUCT]

    squares = sum(stage.share(config) * its[0][1] ** 2 for stage, its in of_block if not stage.router)
    moment_s = tokens * config.layers * squares * rates[PRODUCT]
    products_s = config.layers * sum(_products(stage, shapes, block) for stage in model.flow) * rates[PRODUCT]
    for choice in recipe.transforms:
        trial_s = forward_s(WINDOWS * options.length) + count * rates[TRIAL]
        yield choice.method, forward_s(tokens) + TRIALS * trial_s
    rounding = recipe.rounding.method
    rounding_s = count * rates[rounding] if count else 0.0
    if "second_moment" in statistics:
        rounding_s += forward_s(tokens + options.held_out * options.length) + moment_s + products_s
    if has_shadow(plans, recipe):
        rounding_s += forward_s(tokens) + 2 * moment_s
    yield rounding, rounding_s
    batch = options.batch * options.length
    for choice in recipe.refine:
        found: msgspec.Struct = choice.load_options("refine")
        if isinstance(found, learned.Options):
            yield choice.method, GRADIENT_FORWARDS * found.steps * forward_s(batch) + forward_s(tokens)
        elif isinstance(found, distill.Options):
            head_s = 2 * config.vocab_size * config.hidden_size * batch * rates[PRODUCT]
            yield choice.method, found.steps * GRADIENT_FORWARDS * (forward_s(batch) + head_s)
        elif rates.get(choice.method) is not None:
            yield choice.method, count * rates[choice.method]
    yield OTHER, OTHER_S + stored_bytes(weights.checkpoint.tensors) / OTHER_BYTES_PER_S


def _products(stage: Stage, shapes: Mapping[str, tuple[int, ...]], block: str) -> float:
    """Return the FLOP of the inverse of H, and of products with both beyond those of the slabs of rates.py."""
    linears = [shapes[f"{block}.{name}"] for name in stage.linears]
    cols = linears[0][1]
    each = PRODUCT_FLOP * max(0, cols - SLAB_COLS) * sum(rows * cols for rows, cols in linears)
    alone = torch.get_num_threads() if len(linears) == 1 else 1  # one linear is worked on by one thread
    return 2 * cols**3 + each * alone
