"""A quantized block whose scales, gains and codes can be moved by gradients, and is always what a file would hold.

    w = S (q - Z)       S = stored(S_0 (1 + a))       q = clamp(round(u))       gain = stored(gain_0 (1 + b))

On two levels (qparams/levels.py) it is d and d_min that change so, and their small integers stay. a and b, relative
changes, begin at 0. u, the latent of a code, begins as near to the float weight as it can and still
round to the code that is there: what the rounding before has decided clearly stays longest, what it left open moves
first. round and stored are passed over by gradients (straight-through, Bengio et al. 2013, arXiv:1308.3432), so that
what is judged in each step is the scale in its stored dtype and the code as an integer. A gain that is stored less an
offset (Config.norm_offset) is changed with it: stored((gain_0 + offset) (1 + b) - offset).

Gradients are taken window by window, each on one thread, and summed in the order of the windows: the same bytes come
out, however many threads there are. The rounding of inputs is left out of them, being an error of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zeropoint.models.parts import Block, Config, Flow, Ops
from zeropoint.qparams.affine import dequantize
from zeropoint.qparams.from_range import as_stored
from zeropoint.qparams.grouping import expand, split
from zeropoint.qparams.levels import as_half, qparams_of
from zeropoint.types import QParams, QTensor

EDGE = 0.49
"""How far from its code a latent may begin."""

LARGEST_CHANGE = 0.5
"""Scales and gains stay within these parts of what they were."""


class TunedLinear:
    """One quantized weight. aim: the float weight (rows, cols), if its codes may change too."""

    def __init__(self, qtensor: QTensor, aim: Tensor | None = None) -> None:
        self._qtensor = qtensor
        levels = qtensor.qparams.levels
        self.change = torch.zeros_like(qtensor.qparams.scale)  # a, (rows, groups)
        if levels is not None:
            self.change = torch.zeros(2, *levels.d.shape)  # of d and of d_min, (2, rows, supers)
        self.latent: Tensor | None = None  # u, (rows, cols)
        if aim is not None:
            codes = qtensor.codes.float()
            there = aim / self._per_value(qtensor.qparams.scale)
            if qtensor.qparams.zero_point is not None:
                there += self._per_value(qtensor.qparams.zero_point)
            self.latent = codes + (there - codes).clamp_(-EDGE, EDGE)

    @property
    def qparams(self) -> QParams:
        """Scales and zero points as the file would hold them."""
        qparams, scheme = self._qtensor.qparams, self._qtensor.scheme
        if qparams.levels is not None:
            d, d_min = qparams.levels.d, qparams.levels.d_min
            changed, changed_min = as_half(d * (1 + self.change[0])), as_half(d_min * (1 + self.change[1]))
            return qparams_of(
                replace(qparams.levels, d=torch.where(changed > 0, changed, d), d_min=changed_min), scheme
            )
        changed = as_stored(qparams.scale * (1 + self.change), scheme)
        return replace(qparams, scale=torch.where(changed > 0, changed, qparams.scale))

    @property
    def codes(self) -> Tensor:
        """The integers as they are now: float32 (rows, cols)."""
        scheme = self._qtensor.scheme
        if self.latent is None:
            return self._qtensor.codes.float()
        return self.latent.round().clamp_(scheme.q_min, scheme.q_max)

    def weight(self) -> Tensor:
        """Return what is multiplied with: float32 (rows, cols)."""
        return dequantize(self.codes, self.qparams, self._qtensor.scheme)

    def take(self, gradient: Tensor) -> None:
        """Turn the gradient of the weight into those of a and u, in their `grad`."""
        qparams, scheme = self._qtensor.qparams, self._qtensor.scheme
        levels = qparams.levels
        codes = self.codes
        if levels is not None:  # w = d k (q - q_min) - d_min m
            moved = self._per_group(gradient * (codes - scheme.q_min)) * levels.k
            lowered = self._per_group(gradient) * levels.m
            by_super = [torch.unflatten(part, 1, (levels.d.shape[1], -1)).sum(-1) for part in (moved, lowered)]
            self.change.grad = torch.stack([by_super[0] * levels.d, -by_super[1] * levels.d_min])
        else:
            offsets = codes if qparams.zero_point is None else codes - self._per_value(qparams.zero_point)
            self.change.grad = self._per_group(gradient * offsets).view_as(self.change).mul_(qparams.scale)
        if self.latent is not None:
            self.latent.grad = gradient * self._per_value(self.qparams.scale)

    def move_codes(self, rate: float) -> None:
        """Move every latent by `rate` against the sign of its gradient, at most half a step outside the grid."""
        if self.latent is not None and self.latent.grad is not None:
            scheme = self._qtensor.scheme
            self.latent.sub_(self.latent.grad.sign_(), alpha=rate).clamp_(scheme.q_min - 0.5, scheme.q_max + 0.5)

    def qtensor(self) -> QTensor:
        """Return the weight as it is now."""
        return replace(self._qtensor, codes=self.codes.to(torch.int8), qparams=self.qparams)

    def _per_group(self, values: Tensor) -> Tensor:
        """Return sums over groups: (rows, groups)."""
        return split(values, self._qtensor.scheme).values.sum(-1)

    def _per_value(self, per_group: Tensor) -> Tensor:
        return expand(per_group, *self._qtensor.shape, self._qtensor.scheme)


class TunedGain:
    """The gain of a norm: float32 values (channels,) that are written in `dtype`, less `offset`."""

    def __init__(self, values: Tensor, dtype: torch.dtype, offset: float = 0.0) -> None:
        self._values, self._dtype, self.offset = values, dtype, offset
        self.change = torch.zeros_like(values)  # b

    def weight(self) -> Tensor:
        """Return the gain as the file would hold it: float32 (channels,)."""
        return self.stored().float()

    def stored(self) -> Tensor:
        """Return the gain as it is written."""
        return (self._values * (1 + self.change) + self.offset * self.change).to(self._dtype)

    def take(self, gradient: Tensor) -> None:
        """Turn the gradient of the gain into that of b."""
        self.change.grad = gradient * (self._values + self.offset)

    def state(self) -> list[Tensor]:
        """Return a copy of what is tuned, for `restore`."""
        return [self.change.clone()]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Put back what `state` returned."""
        self.change.copy_(state[0])


class TunedBlock:
    """One block to be tuned.

    linears, gains: by local name ("mlp.up_proj", "input_layernorm"). fixed: its other tensors by local name with their
    endings ("self_attn.q_proj.bias"): float32, linears that stay float among them.
    """

    def __init__(
        self,
        config: Config,
        flow: Flow,
        linears: Mapping[str, TunedLinear],
        gains: Mapping[str, TunedGain],
        fixed: Mapping[str, Tensor],
    ) -> None:
        self.config, self.flow = config, flow
        self.linears, self.gains = dict(linears), dict(gains)
        self.fixed = dict(fixed)

    def parts(self) -> Iterator[tuple[str, TunedLinear | TunedGain]]:
        """Yield what can be tuned by the name of its weight."""
        yield from ((f"{name}.weight", linear) for name, linear in self.linears.items())
        yield from ((f"{name}.weight", gain) for name, gain in self.gains.items())

    def changes(self) -> list[Tensor]:
        """Return the relative changes of scales and gains."""
        return [part.change for _, part in self.parts()]

    def latents(self) -> list[Tensor]:
        """Return the latents of the codes that may change."""
        return [linear.latent for linear in self.linears.values() if linear.latent is not None]

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors of the block as they are now, float32, by local name."""
        return self.fixed | {name: part.weight() for name, part in self.parts()}

    def prepare(self, ops: Ops) -> Block:
        """Return the block as a file would hold it, ready to run."""
        weights = self.fixed | {f"{name}.weight": gain.weight() for name, gain in self.gains.items()}
        names = {f"{name}.weight" for stage in self.flow for name in stage.linears}
        prepared = {name: ops.prepare(tensor) if name in names else tensor for name, tensor in weights.items()}
        quantized = {f"{name}.weight": ops.prepare(linear.qtensor()) for name, linear in self.linears.items()}
        return Block(self.config, ops, prepared | quantized)

    def state(self) -> list[Tensor]:
        """Return a copy of all that is tuned, for `restore`."""
        return [tensor.clone() for tensor in (*self.changes(), *self.latents())]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Put back what `state` returned."""
        for tensor, value in zip((*self.changes(), *self.latents()), state, strict=True):
            tensor.copy_(value)

    def move_codes(self, rate: float) -> None:
        """Move every latent by `rate` against the sign of its gradient, at most half a step outside the grid."""
        for linear in self.linears.values():
            linear.move_codes(rate)

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """Turn the gradients of the weights, by the names of `weights`, into those of what is tuned."""
        for name, part in self.parts():
            part.take(gradients[name])


@dataclass(frozen=True)
class Pulled:
    """What one window says. x: the gradient of the block's input. weights: those of its weights, by local name."""

    x: Tensor
    weights: Mapping[str, Tensor]


def pull_back(
    block: TunedBlock, ops: Ops, weights: Mapping[str, Tensor], x: Tensor, cotangent: Callable[[Tensor], Tensor]
) -> Pulled:
    """Run the block on one window and bring the gradient of its output back to its input and its weights.

    ops: differentiable ones. weights: of `TunedBlock.weights`. x: float32 (1, time, hidden). cotangent: returns the
    gradient of what is to fall, with respect to the output that it is given.
    """
    with torch.inference_mode(False), torch.enable_grad():
        tuned = [name for name, _ in block.parts()]
        leaves = {
            name: tensor.clone() if tensor.is_inference() else tensor.detach() for name, tensor in weights.items()
        }
        start = x.clone().requires_grad_()
        for name in tuned:
            leaves[name].requires_grad_()
        output = Block(block.config, ops, leaves).run(block.flow, start)
        gradient = cotangent(output.detach())
        found = torch.autograd.grad(output, [start, *(leaves[name] for name in tuned)], gradient)
    return Pulled(found[0], dict(zip(tuned, found[1:], strict=True)))


def summed(pulled: Iterable[Pulled]) -> dict[str, Tensor]:
    """Return the gradients of the weights summed over windows, in their order; the first window's are overwritten."""
    total: dict[str, Tensor] = {}
    for each in pulled:
        for name, gradient in each.weights.items():
            total[name] = total[name].add_(gradient) if name in total else gradient
    return total


class RelativeSteps:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) on relative changes, its rate falling to 0 along half a cosine."""

    def __init__(self, changes: Sequence[Tensor], *, rate: float, steps: int) -> None:
        self._changes = changes
        self._optimizer = torch.optim.Adam(changes, lr=rate, betas=(0.9, 0.95), eps=1e-12)
        self._rate, self._steps, self._done = rate, steps, 0
        self.factor = 1.0
        """What is left of the rate after the times that it was halved."""

    def step(self) -> None:
        """Take one step along the gradients that the changes hold."""
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, self._done / self._steps)))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * self.factor * share
        self._optimizer.step()
        self._done += 1
        for change in self._changes:
            change.clamp_(-LARGEST_CHANGE, LARGEST_CHANGE)

    def halve(self) -> None:
        """Go on with half the rate."""
        self.factor /= 2
