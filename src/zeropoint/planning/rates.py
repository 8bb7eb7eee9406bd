"""What this machine reaches with a model and a recipe: the real work on random weights of their shapes, for a while.

Each piece is done once in a round, and rounds follow one another until the time is up; the medians count, as what is
asked is how long a run will take, not how fast it could be. Pieces that run side by side in a run do so here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from zeropoint import find
from zeropoint.models.parts import FloatBlock, kinds_of_blocks
from zeropoint.planning.schemes import Plans, scope_of
from zeropoint.qparams.affine import fake_quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.recipe import Choice, LayerPlan, Recipe
from zeropoint.rounding.linear import round_linear
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.threads import a_thread_each, map_each
from zeropoint.types import Drift, QTensor, SecondMoment, Stats

PRODUCT_SIZE = 1024
"""Rows and columns of the matrices whose product is timed."""

SLAB_ROWS, SLAB_COLS = 256, 1024
"""The largest weight that is rounded for a measurement, for each thread."""

BLOCK_WEIGHTS, BLOCK_TOKENS = 1 << 26, 1024
"""The largest block, and the most tokens, that run for a measurement."""

PRODUCT, FORWARD, TRIAL = "product", "forward", "trial"


@dataclass(frozen=True)
class Rates:
    """seconds: of one unit of each piece.

    product: of a FLOP of a large float32 product. forward: of a token in a block with all it is made of; None where a
    block is too large to try. trial, the recipe's rounding, its layer-wise refinements: of a weight, by their names;
    rounding with its choice of ranges.
    """

    seconds: dict[str, float]

    def __getitem__(self, piece: str) -> float:
        return self.seconds[piece]

    def get(self, piece: str) -> float | None:
        """Return the seconds of a unit; None if it was not measured."""
        return self.seconds.get(piece)


def measure(weights: Weights, recipe: Recipe, plans: Plans, seconds: float) -> Rates:
    """Return what this machine reaches, after at least one round and about so many seconds."""
    plan = next((plan for plan in plans.values() if plan is not None), None)
    found: defaultdict[str, list[float]] = defaultdict(list)
    started_s = time.perf_counter()
    pieces = list(_pieces(weights, recipe, plan))
    round_s = 0.0
    with torch.inference_mode():
        while not found or time.perf_counter() - started_s + round_s <= seconds:
            began_s = time.perf_counter()
            for name, units, run in pieces:
                piece_s = time.perf_counter()
                run()
                found[name].append((time.perf_counter() - piece_s) / units)
            round_s = time.perf_counter() - began_s
    return Rates({name: median(times) for name, times in found.items()})


_Piece = tuple[str, float, Callable[[], object]]
"""Its name, how many units it does at once, and what does it."""


def _pieces(weights: Weights, recipe: Recipe, plan: LayerPlan | None) -> Iterator[_Piece]:
    a = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
    yield PRODUCT, 2 * PRODUCT_SIZE**3, lambda: a @ a
    block = _block(weights)
    if block is not None:
        ops = TorchOps(getattr(torch, recipe.calibration.dtype))
        flow = weights.model.flow
        prepared = block.prepare(ops, flow)
        length = min(recipe.calibration.length, BLOCK_TOKENS)
        x = torch.randn(max(1, min(recipe.calibration.batch, BLOCK_TOKENS // length)), length, block.config.hidden_size)
        yield FORWARD, x.shape[0] * x.shape[1], lambda: prepared.run(flow, x)
    if plan is not None:
        yield from _of_weights(weights, recipe, plan)


def _of_weights(weights: Weights, recipe: Recipe, plan: LayerPlan) -> Iterator[_Piece]:
    """Yield what is done with weights, as many at once as there are threads."""
    rows, cols = _slab_shape(weights, plan)
    random = torch.Generator().manual_seed(0)
    slabs = [0.02 * torch.randn(rows, cols, generator=random) for _ in range(torch.get_num_threads())]
    x = torch.randn(2 * cols, cols, generator=random) * torch.rand(cols, generator=random).exp()
    stats: dict[str, Stats] = {
        "second_moment": SecondMoment(x.T @ x / len(x), len(x)),
        "drift": Drift(torch.zeros(cols, cols), len(x)),
    }
    rounded = [round_linear(slab, plan, stats).rounded.qtensor for slab in slabs]
    count = sum(slab.numel() for slab in slabs)

    def side_by_side(function: Callable[[Tensor], object]) -> Callable[[], object]:
        def run() -> None:
            with a_thread_each() as pool:
                map_each(pool, function, slabs)

        return run

    yield recipe.rounding.method, count, side_by_side(lambda slab: round_linear(slab, plan, stats))
    if recipe.transforms:
        yield TRIAL, count, side_by_side(lambda slab: _trial(slab, plan))
    for choice in recipe.refine:
        if scope_of(choice) == "layer":
            yield choice.method, count, side_by_side(_refining(choice, rounded[0], stats))


def _trial(weight: Tensor, plan: LayerPlan) -> Tensor:
    scheme = plan.scheme.one_level()
    return fake_quantize(weight, choose_qparams(weight, scheme, "minmax"), scheme)


def _refining(choice: Choice, rounded: QTensor, stats: dict[str, Stats]) -> Callable[[Tensor], object]:
    module, options = find.load("refine", choice.method), choice.load_options("refine")
    return lambda slab: module.refine(slab, rounded, stats, options)


def _slab_shape(weights: Weights, plan: LayerPlan) -> tuple[int, int]:
    """Return the shape of a weight like those of the first block, but not larger than a measurement may take."""
    name = f"{weights.model.block_name(0)}.{weights.model.flow_of(0)[0].linears[0]}.weight"
    rows, cols = weights.checkpoint.tensors[name].shape
    size = plan.scheme.super_size or (plan.scheme.group_size if plan.scheme.granularity == "group" else None)
    cols = min(cols, SLAB_COLS)
    return min(rows, SLAB_ROWS), cols if size is None else max(size, cols - cols % size)


def _block(weights: Weights) -> FloatBlock | None:
    """Return a block of random weights in the model's shapes; None if it is too large to try."""
    index = kinds_of_blocks(weights.model)[0]
    name = weights.model.block_name(index)
    shapes = {each: weights.checkpoint.tensors[each].shape for each in weights.model.block_tensors(index)}
    if sum(torch.Size(shape).numel() for shape in shapes.values()) > BLOCK_WEIGHTS:
        return None
    random = torch.Generator().manual_seed(0)
    tensors = {
        each.removeprefix(f"{name}."): torch.randn(shape, generator=random).mul_(0.02) for each, shape in shapes.items()
    }
    return FloatBlock(name, weights.model.config_of(index), tensors, {})
