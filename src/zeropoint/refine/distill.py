"""Distillation: scales and gains of the whole model are moved until its next tokens are those of the float model.

    L = mean over tokens of KL(p_t || p'_t)        p: the float model's distribution of the next token, p': the other's

The codes stay, and so does the format. Only this sees that the errors of different blocks can cancel, and which of them
reach the output at all; a few dozen steps of Adam on relative changes (tuned.py) are enough.

Memory holds one block as floats, whatever the depth: forward, only what lies between two blocks is kept; backward,
each block is run once more. Windows are drawn with a seed. Every `every` steps the model is judged on windows that
nothing has learned from: a better state is kept, from a worse one it goes back and on with half the rate.

Source: distilling a quantized model's own teacher is in Polino et al. 2018, arXiv:1802.05668; tuning nothing but scales
end to end in Chen et al. 2024, arXiv:2407.11062 (EfficientQAT), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.models.parts import Block, Model, Ops
from zeropoint.refine import Outcome
from zeropoint.refine.tuned import Pulled, RelativeSteps, TunedBlock, TunedGain, pull_back, summed
from zeropoint.threads import a_thread_each, map_each

SCOPE = "model"

_TOKENS = 128
"""Tokens whose logits are in memory at once, for each thread."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The knobs of distillation.

    steps: at most so many, one batch of the calibration each. rate: relative change of a scale or gain in a step, at
    first. every: steps between two judgements. patience: judgements without a better state before it is over.
    """

    steps: Annotated[int, Meta(ge=1, le=100_000)] = 20
    rate: Annotated[float, Meta(ge=0, le=1)] = 0.002
    every: Annotated[int, Meta(ge=1)] = 10
    patience: Annotated[int, Meta(ge=1)] = 2


class Windows:
    """Windows of text at both ends of the blocks.

    starts: the embedded windows, (windows, time, hidden) for each batch. goals: what the float model's last block makes
    of them, in the same shapes.
    """

    def __init__(self, starts: Sequence[Tensor], goals: Sequence[Tensor]) -> None:
        self.starts, self.goals = starts, goals

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Head:
    """What makes logits of the last block's output.

    norm_name: the gain of the last norm. norm: it, to be tuned. tensors: of the float model, by name: all that
    `Model.head` reads; the weight of the head is float32 (vocabulary, hidden).
    """

    model: Model
    norm_name: str
    norm: TunedGain
    tensors: Mapping[str, Tensor]

    def logits(self, ops: Ops, x: Tensor, norm: Tensor) -> Tensor:
        """Return the logits (..., vocabulary) of x (..., hidden). ops: differentiable ones."""
        logits: Tensor = self.model.head(ops, {**self.tensors, self.norm_name: norm}, x)
        return logits

    def float_logits(self, ops: Ops, x: Tensor) -> Tensor:
        """Return the same with the last norm of the float model."""
        logits: Tensor = self.model.head(ops, self.tensors, x)
        return logits


def refine(
    blocks: Sequence[TunedBlock],
    head: Head,
    learned_from: Windows,
    held_out: Windows,
    options: Options,
    *,
    gradient_ops: Ops,
    seed: int,
    progress: Callable[[int, int], None],
) -> Outcome:
    """Tune all blocks and the last norm in place.

    learned_from, held_out: batches of windows; read again and again. gradient_ops: differentiable ones. progress: told
    the steps done and the steps in all.
    """
    random = torch.Generator().manual_seed(seed)
    parts: list[TunedBlock | TunedGain] = [*blocks, head.norm]
    changes = [change for block in blocks for change in block.changes()] + [head.norm.change]
    moves = RelativeSteps(changes, rate=options.rate, steps=options.steps)

    def state() -> list[list[Tensor]]:
        return [part.state() for part in parts]

    with a_thread_each() as pool:
        student = _Student(blocks, head, gradient_ops, pool)
        best = start = student.divergence(held_out)
        kept, stale = state(), 0
        for step in range(options.steps):
            index = int(torch.randint(len(learned_from), (), generator=random))
            student.pull(learned_from.starts[index], learned_from.goals[index])
            moves.step()
            progress(step + 1, options.steps)
            if (step + 1) % options.every and step + 1 < options.steps:
                continue
            error = student.divergence(held_out)
            if error < best:
                best, kept, stale = error, state(), 0
                continue
            stale += 1
            if stale == options.patience:
                break
            for part, values in zip(parts, kept, strict=True):
                part.restore(values)
            moves.halve()
    for part, values in zip(parts, kept, strict=True):
        part.restore(values)
    return Outcome(start, best, step + 1)


class _Student:
    """The quantized model, forwards and backwards, a window on each thread."""

    def __init__(self, blocks: Sequence[TunedBlock], head: Head, ops: Ops, pool: ThreadPoolExecutor) -> None:
        self._blocks, self._head, self._ops, self._pool = blocks, head, ops, pool

    def pull(self, starts: Tensor, goals: Tensor) -> None:
        """Leave in all that is tuned the gradient of L over one batch. starts, goals: (windows, time, hidden)."""
        tokens = starts.shape[0] * starts.shape[1]
        states = [list(torch.split(starts, 1))]
        for block in self._blocks:
            states.append(self._run(block, states[-1]))
        norm = self._head.norm.weight()

        def of_end(pair: tuple[Tensor, Tensor]) -> Pulled:
            return self._slope(*pair, norm, tokens)

        pulled = map_each(self._pool, of_end, zip(states.pop(), torch.split(goals, 1), strict=True))
        self._head.norm.take(summed(pulled)["norm"])
        for block in reversed(self._blocks):
            pulled = self._pull_block(block, states.pop(), [each.x for each in pulled])
            block.take(summed(pulled))

    def _pull_block(self, block: TunedBlock, inputs: Iterable[Tensor], slopes: Iterable[Tensor]) -> list[Pulled]:
        """Return what each window says. inputs, slopes: of the block's input and output, window by window."""
        weights = block.weights()

        def of_window(pair: tuple[Tensor, Tensor]) -> Pulled:
            x, slope = pair
            return pull_back(block, self._ops, weights, x, lambda _: slope)

        return map_each(self._pool, of_window, zip(inputs, slopes, strict=True))

    def divergence(self, windows: Windows) -> float:
        """Return L."""
        total, tokens = 0.0, 0
        norm = self._head.norm.weight()
        for starts, goals in zip(windows.starts, windows.goals, strict=True):
            x = list(torch.split(starts, 1))
            for block in self._blocks:
                x = self._run(block, x)
            pairs = zip(x, torch.split(goals, 1), strict=True)
            total += sum(map_each(self._pool, lambda pair: self._divergence(*pair, norm), pairs))
            tokens += starts.shape[0] * starts.shape[1]
        return total / tokens

    def _run(self, block: TunedBlock, inputs: Sequence[Tensor]) -> list[Tensor]:
        ready = Block(block.config, self._ops, block.weights())
        return map_each(self._pool, lambda x: ready.run(block.flow, x), inputs)

    def _slope(self, output: Tensor, goal: Tensor, norm: Tensor, tokens: int) -> Pulled:
        """Return the gradient of one window's part of L with respect to the last block's output and the last norm."""
        with torch.inference_mode(False), torch.enable_grad():
            gain = norm.clone().requires_grad_()
            slopes = []
            for rows, wanted in zip(_chunks(output), _chunks(goal), strict=True):
                x = rows.clone().requires_grad_()
                logits = self._head.logits(self._ops, x, gain)
                with torch.no_grad():
                    p = torch.softmax(self._head.float_logits(self._ops, wanted.clone()), dim=-1)
                    gradient = torch.softmax(logits, dim=-1).sub_(p).div_(tokens)
                slopes.append(torch.autograd.grad(logits, (x, gain), gradient))
            x_slope = torch.cat([slope[0] for slope in slopes]).view_as(output)
            return Pulled(x_slope, {"norm": torch.stack([slope[1] for slope in slopes]).sum(0)})

    def _divergence(self, output: Tensor, goal: Tensor, norm: Tensor) -> float:
        """Return the summed KL of one window."""
        total = 0.0
        for rows, wanted in zip(_chunks(output), _chunks(goal), strict=True):
            log_q = torch.log_softmax(self._head.logits(self._ops, rows, norm), dim=-1)
            log_p = torch.log_softmax(self._head.float_logits(self._ops, wanted), dim=-1)
            total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
        return total


def _chunks(window: Tensor) -> tuple[Tensor, ...]:
    return torch.split(window.flatten(0, -2), _TOKENS)
