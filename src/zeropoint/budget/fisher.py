"""How much the model's output minds a change of one output of one linear: the diagonal of its Fisher information.

    F_r = mean over tokens of (d log p(y) / d z_r)^2        y drawn from the model's own distribution p

z_r is output r of a linear at one token, p the distributions of all the tokens behind it. If the outputs change by
independent errors d of mean 0, the distributions move by

    KL(p || p') = 1/2 sum over r of F_r E[d_r^2] + higher orders

which is what quantizing weights does as long as it does little: rounding errors of different rows are independent.

The model is run forwards once, what lies between two blocks is kept, and then block by block backwards. Memory holds
one block with its gradients, whatever the depth.

Source: Amari 1998 (natural gradient); y must be drawn, not taken from the text (Kunstner et al. 2019,
arXiv:1905.12558).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zeropoint.models.parts import Block, Flow
from zeropoint.observe.activations import Activations
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.runtime.ops_torch import DifferentiableOps
from zeropoint.runtime.weights import Weights
from zeropoint.threads import a_thread_each, map_each

_TOKENS = 128
"""Tokens whose logits are in memory at once, for each thread."""


@dataclass(frozen=True)
class Fisher:
    """embedded: of what enters the first block, float32 (hidden,). linears: by full name, float32 (rows,) each."""

    embedded: Tensor
    linears: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Tapped(Block):
    """A block that keeps what its linears give, by local name."""

    taps: dict[str, Tensor]

    def linear(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = super().linear(name, x)
        self.taps[name] = y
        return y


def fisher(
    weights: Weights, tokens: Tensor, *, seed: int, limit_bytes: int, progress: ProgressCallback | None = None
) -> Fisher:
    """Return the Fisher information of every linear of the blocks, and of what enters the first one.

    tokens: int64 (windows, length). seed: of the drawing. limit_bytes: of the activations that are in memory; what is
    more waits on disk.
    """
    model, ops = weights.model, DifferentiableOps()
    report = progress or (lambda step: None)
    layers, windows = model.config.layers, len(tokens)
    found: dict[str, Tensor] = {}
    with torch.inference_mode(), Activations(limit_bytes=limit_bytes) as between, a_thread_each() as pool:
        between.extend(weights.embed(ops, tokens, 1))  # slot b * windows + w: window w in front of block b
        for index in range(layers):
            block, flow = weights.block(index, ops), model.flow_of(index)
            report(Progress("fisher", index, 2 * layers))

            def onward(slot: int, block: Block = block, flow: Flow = flow) -> Tensor:
                x: Tensor = block.run(flow, between[slot].x)
                return x

            between.extend(map_each(pool, onward, range(index * windows, (index + 1) * windows)))
        with torch.inference_mode(False):  # what was made in inference mode takes no part in gradients
            ends = {name: tensor.clone() for name, tensor in weights.head(ops).items()}

        def at_the_end(window: int) -> Tensor:
            draw = torch.Generator().manual_seed(seed + window)
            return _slope_of_drawn(weights, ops, ends, between[layers * windows + window].x, draw)

        slopes = map_each(pool, at_the_end, range(windows))
        for index in reversed(range(layers)):
            report(Progress("fisher", 2 * layers - index - 1, 2 * layers))
            block, flow = weights.block(index, ops), model.flow_of(index)

            def through(pair: tuple[int, Tensor], block: Block = block, flow: Flow = flow) -> dict[str, Tensor]:
                return _pull_back(block, flow, between[pair[0]].x, pair[1])

            pulled = map_each(pool, through, enumerate(slopes, start=index * windows))
            slopes = [each.pop("") for each in pulled]
            for name in pulled[0]:
                squares = torch.stack([each[name] for each in pulled]).sum(0)
                found[f"{model.block_name(index)}.{name}"] = squares / tokens.numel()
        report(Progress("fisher", 2 * layers, 2 * layers))
        embedded = torch.stack([slope[0].square().sum(0) for slope in slopes]).sum(0) / tokens.numel()
    return Fisher(embedded, found)


def _slope_of_drawn(
    weights: Weights, ops: DifferentiableOps, ends: Mapping[str, Tensor], output: Tensor, draw: torch.Generator
) -> Tensor:
    """Return the gradient of log p(y) by the last block's output (1, time, hidden), summed over the tokens."""
    slopes = []
    with torch.inference_mode(False), torch.enable_grad():
        for rows in torch.split(output.flatten(0, -2), _TOKENS):
            x = rows.clone().requires_grad_()
            logits = weights.model.head(ops, ends, x)
            with torch.no_grad():
                p = torch.softmax(logits, dim=-1)
                drawn = torch.multinomial(p, 1, generator=draw)
                gradient = p.neg_().scatter_add_(-1, drawn, torch.ones_like(drawn, dtype=p.dtype))
            slopes.append(torch.autograd.grad(logits, x, gradient)[0])
    return torch.cat(slopes).view_as(output)


def _pull_back(block: Block, flow: Flow, x: Tensor, slope: Tensor) -> dict[str, Tensor]:
    """Return for one window the sum over tokens of g^2 for each linear, and under "" the gradient by the input."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {
            name: tensor.clone() if tensor.is_inference() else tensor.detach() for name, tensor in block.weights.items()
        }
        start = x.clone().requires_grad_()
        tapped = _Tapped(block.config, block.ops, leaves, {})
        output = tapped.run(flow, start)
        read = list(tapped.taps.items())
        gradients = torch.autograd.grad(output, [start, *(y for _, y in read)], slope.clone(), allow_unused=True)
    found = {"": gradients[0]}
    for (name, y), gradient in zip(read, gradients[1:], strict=True):
        found[name] = y.new_zeros(y.shape[-1]) if gradient is None else gradient.square().flatten(0, -2).sum(0)
    return found
