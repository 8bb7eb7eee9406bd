"""Float blocks of tiny models, with what a transform is told about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.models.parts import FloatBlock, Flow, Stage, State
from zeropoint.observe.walk import look_ahead
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.transforms.trial import Trial
from zeropoint.types import InputScheme, Scheme, Stats

W8 = Scheme(8, True, "channel", None)
PER_TOKEN = InputScheme()
OPS = TorchOps()


@dataclass(frozen=True)
class Made:
    """block: the first of a tiny Llama. x: what enters it."""

    block: FloatBlock
    flow: Flow
    x: Tensor

    def output(self, block: FloatBlock | None = None, x: Tensor | None = None) -> Tensor:
        return (block or self.block).prepare(OPS, self.flow).run(self.flow, self.x if x is None else x)

    def inputs(self) -> dict[Stage, Tensor]:
        """What the linears of each stage read: (tokens, cols)."""
        block, state, found = self.block.prepare(OPS, self.flow), State(self.x), {}
        for stage in self.flow:
            found[stage] = stage.enter(block, state).flatten(0, 1).clone()
            state = block.finish(stage, state)
        return found

    def stats(self, needs: Iterable[str] = ("channel_absmax",)) -> Mapping[Stage, Mapping[str, Stats]]:
        block = self.block.prepare(OPS, self.flow)
        return look_ahead(block, 0, self.flow, [State(self.x)], frozenset(needs))

    def linears(self) -> list[str]:
        return [name for stage in self.flow for name in stage.linears]

    def trial(self, inputs: InputScheme | None = PER_TOKEN, scheme: Scheme = W8) -> Trial:
        names = self.linears()
        return Trial(self.block, self.flow, OPS, [self.x], dict.fromkeys(names, scheme), dict.fromkeys(names, inputs))

    def with_outliers(self, size: float) -> Made:
        """The same block with a few channels of both norms, of v and of up that are `size` times larger."""
        tensors = dict(self.block.tensors)
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.v_proj", "mlp.up_proj"):
            for part in (f"{name}.weight", f"{name}.bias"):
                if part in tensors:
                    tensors[part] = tensors[part].clone()
                    tensors[part][[1, 7]] *= size
        return replace(self, block=replace(self.block, tensors=tensors))


def make(folder: Path, *, kept: Iterable[str] = (), tokens: int = 40, norm_offset: float = 0.0, **sizes: Any) -> Made:
    """kept: linears that stay float. norm_offset: that of the config; `sizes` are those of tiny.make_llama."""
    weights = Weights(open_checkpoint(make_llama(folder, layers=1, **sizes)))
    dtype = getattr(torch, sizes.get("dtype", "float32"))
    flow = weights.model.flow
    become_integers = {f"{name}.weight" for stage in flow for name in stage.linears if name not in kept}
    local = [name.removeprefix("model.layers.0.") for name in weights.model.block_tensors(0)]
    block = weights.float_block(0, {name: dtype for name in local if name not in become_integers})
    block = replace(block, config=replace(block.config, norm_offset=norm_offset))
    x = torch.randn(2, tokens, weights.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    return Made(block, flow, x)
