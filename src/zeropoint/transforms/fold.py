"""Divide the input of a stage by a scale per column, and multiply its weights by it: the function stays.

    x_j -> x_j / s_j       in what feeds the stage: a norm's gain and bias, or the rows and the bias of a linear
    W_ij -> W_ij s_j       in every linear that reads x

What feeds the stage must feed nothing else. With grouped-query attention a row of v_proj feeds one column of each head
of its group, and these columns share a scale.

Written as floats, gain / s is rounded, to 8 bits in bfloat16. So the gain is rounded first, and the weights take the
scale that it came to have, gain / written gain: what is written is the same function to float32's accuracy. Where a
weight on either side is itself written as a float, that way is closed, and scales become powers of two: exact.

A gain that is stored less an offset (Config.norm_offset) is divided with it: (gain + offset) / s - offset. No power of
two keeps that exact, so beside weights that are written as floats such a stage stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zeropoint.models.parts import FloatBlock, Flow, Rows, Stage

LOWEST, HIGHEST = 1e-4, 1e4
"""Scales outside are brought inside: a float16 gain of 1 stays a normal number, and no weight overflows."""


@dataclass(frozen=True)
class Fold:
    """Where the input scale of a stage goes. A channel is one output of the feeder.

    feeder: local name. rows: of it, where it is a linear. channels: how many these are. groups: (kv heads, heads per kv
    head, head_dim) if a channel feeds several columns, else None.
    """

    stage: Stage
    feeder: str
    rows: Rows
    channels: int
    groups: tuple[int, int, int] | None

    def largest(self, columns: Tensor) -> Tensor:
        """Return for each channel the largest of its columns: (cols,) -> (channels,)."""
        return columns if self.groups is None else columns.view(self.groups).amax(1).flatten()

    def spread(self, channels: Tensor) -> Tensor:
        """Return for each column the value of its channel: (channels,) -> (cols,)."""
        if self.groups is None:
            return channels
        kv_heads, _, head_dim = self.groups
        return channels.view(kv_heads, 1, head_dim).expand(self.groups).flatten()

    def apply(self, block: FloatBlock, scale: Tensor) -> FloatBlock:
        """Return the block with the scale, float32 (channels,), > 0, of the stage's input moved into its weights."""
        weights = [f"{name}.weight" for name in self.stage.linears]
        weight, bias = f"{self.feeder}.weight", f"{self.feeder}.bias"
        tensors = dict(block.tensors)
        scale = scale.clamp(LOWEST, HIGHEST)
        is_linear = tensors[weight].ndim == 2
        if any(_is_rounded(block, name) for name in (*weights, *([weight] if is_linear else []))):
            scale = torch.exp2(torch.log2(scale).round())
        offsets = {bias: 0.0, weight: 0.0 if is_linear else block.config.norm_offset}
        for name, offset in offsets.items():  # a norm's gain has the last word, a linear's bias the only one
            if name in tensors and tensors[name].ndim == 1:
                scale = _effective(tensors[name][self.rows], scale, block.dtypes[name], offset)
        for name, offset in offsets.items():
            if name in tensors:
                divisor = scale[:, None] if tensors[name].ndim == 2 else scale
                part = _divided(tensors[name][self.rows], divisor, block.dtypes.get(name), offset)
                tensors[name] = with_rows(tensors[name], self.rows, part)
        columns = self.spread(scale)
        for name in weights:
            tensors[name] = tensors[name] * columns
        return replace(block, tensors=tensors)


def find_fold(block: FloatBlock, flow: Flow, stage: Stage) -> Fold | str:
    """Return where the scale of the stage's input can go, or in a sentence why it can go nowhere."""
    feeder = stage.fed_by
    if feeder is None:
        return "no norm and no linear stands before it"
    others = [name for other in flow if other is not stage and other.fed_by == feeder for name in other.linears]
    if others:
        return f"{feeder} feeds {', '.join(others)} too"
    rows = stage.rows_of(block.config)
    channels = len(block.tensors[f"{feeder}.weight"][rows])
    kept = [name for name in stage.linears if _is_rounded(block, f"{name}.weight")]
    if block.config.norm_offset and kept and block.tensors[f"{feeder}.weight"].ndim == 1:
        return f"{feeder} is stored less {block.config.norm_offset:g}, so no scale is exact in {', '.join(kept)}"
    cols = block.tensors[f"{stage.linears[0]}.weight"].shape[1]
    if channels == cols:
        return Fold(stage, feeder, rows, channels, None)
    config = block.config
    groups = (config.kv_heads, config.heads // config.kv_heads, config.head_dim)
    if (channels, cols) == (config.kv_heads * config.head_dim, config.heads * config.head_dim):
        return Fold(stage, feeder, rows, channels, groups)
    return f"{feeder} has {channels} outputs for {cols} columns"


def with_rows(tensor: Tensor, rows: Rows, part: Tensor) -> Tensor:
    """Return the tensor with `part` in the place of some of its rows, or of all."""
    if len(part) == len(tensor):
        return part
    found = tensor.clone()
    found[rows] = part
    return found


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of the tensors that a transform put in the place of others."""
    return frozenset(name for name, tensor in after.items() if tensor is not before[name])


def _is_rounded(block: FloatBlock, name: str) -> bool:
    """Say whether a tensor is written in a float dtype that does not hold every float32 value."""
    return name in block.dtypes and block.dtypes[name] is not torch.float32


def _effective(values: Tensor, scale: Tensor, dtype: Any, offset: float) -> Tensor:
    """Return the scale that values + offset are divided by once what is written is rounded to `dtype`."""
    written = _divided(values, scale, dtype, offset) + offset
    values = values + offset
    usable = (values != 0) & (written != 0) & written.isfinite()
    # what is small beside the offset rounds to -offset, and the channel would be gone: it is not divided
    others = torch.where((values != 0) & (written == 0), 1.0, scale) if offset else scale
    return torch.where(usable, values / torch.where(usable, written, 1.0), others)


def _divided(values: Tensor, scale: Tensor, dtype: Any, offset: float) -> Tensor:
    """Return what is written for (values + offset) / scale, less the offset, as it comes back from `dtype`."""
    return _exact((values + offset) / scale - offset if offset else values / scale, dtype)


def _exact(values: Tensor, dtype: Any) -> Tensor:
    """Return the values as they come back from `dtype`; unchanged if it is None."""
    return values if dtype is None else values.to(dtype).float()
