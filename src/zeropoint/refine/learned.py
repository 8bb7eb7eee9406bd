"""Learned rounding: the codes, scales and gains of a block are moved until its output is nearer to the float block's.

GPTQ decides column by column and linear by linear. Here all codes of a block are free at once, each in a latent u that
is rounded (tuned.py), and signed gradients move them: u <- u - rate * sign(dL/du), the rate falling to 0. Scales and
gains move by Adam. The codes of the rounding before are where it starts.

    L = mean over tokens of |y'_t - y_t|^2 / |y_t|^2

y: what the float model has behind the block, with float blocks before it. y': of the quantized block behind quantized
ones, so that it also makes up for them. Each token counts relative to its own size, as the next norm sees it.

Windows are drawn with a seed. A part of them is held out, and every `every` steps the block is judged on it. A better
state is kept; from a worse one it goes back to the best, the start at first, and on with half the rates, until that has
happened `patience` times in a row. So the block never ends above its start on the held-out windows.

Source: Cheng et al. 2023, arXiv:2309.05516 (AutoRound), whose start is the float weight, and which bounds u; and
Nagel et al. 2020, arXiv:2004.10568.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.models.parts import Block, Flow, Ops
from zeropoint.refine import Outcome
from zeropoint.refine.tuned import Pulled, RelativeSteps, TunedBlock, pull_back, summed
from zeropoint.threads import a_thread_each, map_each

SCOPE = "block"

_Rate = Annotated[float, Meta(ge=0, le=1)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The knobs of learned rounding.

    steps: at most so many, one batch of the calibration each. reach: how far, in steps between codes, a latent can
    move in all; 0 leaves the codes. scale_rate: relative change of a scale or gain in a step, at first; 0 leaves them.
    every: steps between two judgements. patience: judgements in a row without a better state, after which it is over.
    held_out: the share of the batches that are judged on.
    """

    steps: Annotated[int, Meta(ge=1, le=100_000)] = 60
    reach: Annotated[float, Meta(ge=0, le=100)] = 0.06
    scale_rate: _Rate = 0.001
    every: Annotated[int, Meta(ge=1)] = 15
    patience: Annotated[int, Meta(ge=1)] = 3
    held_out: Annotated[float, Meta(gt=0, le=0.5)] = 0.125


@dataclass(frozen=True)
class Sample:
    """One batch of windows at a block. x: what the quantized blocks before it give, (windows, time, hidden).

    y: what the float model has behind the block, in the same shape.
    """

    x: Tensor
    y: Tensor


def refine(
    block: TunedBlock, samples: Sequence[Sample], options: Options, *, ops: Ops, gradient_ops: Ops, seed: int
) -> Outcome:
    """Tune the block in place.

    samples: read again and again, so they may come from the disk. ops: what the model is judged with. gradient_ops:
    differentiable ones.
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(samples), generator=random).tolist()
    count = max(1, round(len(samples) * options.held_out))
    held_out, used = order[:count], order[count:] or order
    scales = RelativeSteps(block.changes(), rate=options.scale_rate, steps=options.steps)
    with a_thread_each() as pool:

        def judged() -> float:
            prepared = block.prepare(ops)
            return sum(map_each(pool, lambda i: _loss(prepared, block.flow, samples[i]), held_out)) / len(held_out)

        best = start = judged()
        kept, stale = block.state(), 0
        for step in range(options.steps):
            sample = samples[used[int(torch.randint(len(used), (), generator=random))]]
            block.take(_gradients(block, sample, gradient_ops, pool))
            scales.step()
            block.move_codes(scales.factor * 2 * options.reach / options.steps * (1 - step / options.steps))
            if (step + 1) % options.every and step + 1 < options.steps:
                continue
            error = judged()
            if error < best:
                best, kept, stale = error, block.state(), 0
                continue
            stale += 1
            if stale == options.patience:
                break
            block.restore(kept)
            scales.halve()
    block.restore(kept)
    return Outcome(start, best, step + 1)


def _gradients(block: TunedBlock, sample: Sample, ops: Ops, pool: ThreadPoolExecutor) -> dict[str, Tensor]:
    """Return the gradients of L over one batch with respect to the weights of the block."""
    weights = block.weights()
    tokens = sample.x.shape[0] * sample.x.shape[1]

    def of_window(window: tuple[Tensor, Tensor]) -> Pulled:
        x, y = window
        return pull_back(block, ops, weights, x, lambda output: _slope(output, y, tokens))

    return summed(map_each(pool, of_window, zip(torch.split(sample.x, 1), torch.split(sample.y, 1), strict=True)))


def _slope(output: Tensor, y: Tensor, tokens: int) -> Tensor:
    """Return dL/dy', in the shape of `output`; tokens: over which L is a mean."""
    return (output - y).mul_(2 / tokens).div_(_size(y))


def _loss(block: Block, flow: Flow, sample: Sample) -> float:
    """Return L of one batch."""
    squares = (block.run(flow, sample.x) - sample.y).square().sum(-1, keepdim=True)
    return float((squares / _size(sample.y)).mean(dtype=torch.float64))


def _size(y: Tensor) -> Tensor:
    """Return |y_t|^2 of each token, 1 where it is 0: (windows, time, 1)."""
    square = y.square().sum(-1, keepdim=True)
    return torch.where(square > 0, square, 1.0)
