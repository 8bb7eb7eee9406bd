"""Qwen3: the blocks are Llama's with an RMS norm of each head of queries and keys, before they are rotated.

Source: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.models import llama, qwen2
from zeropoint.models.parts import Array, Block, Flow, State

DEFAULTS: Mapping[str, Any] = {**qwen2.DEFAULTS, "head_dim": 128}


def attend(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    q, k, v = llama.split_heads(block, outputs)
    return llama.attend_heads(block, state, block.norm("self_attn.q_norm", q), block.norm("self_attn.k_norm", k), v)


FLOW: Flow = (replace(llama.FLOW[0], leave=attend), *llama.FLOW[1:])


class Model(llama.Model):
    """A Qwen3 decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW
    norms = (*llama.NORMS, "self_attn.q_norm", "self_attn.k_norm")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        read = replace(llama.read_config({**DEFAULTS, **config}), mlp_bias=False)
        return cls(read, qwen2.windowed(config, read))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(), "q_norm": (self.config.head_dim,), "k_norm": (self.config.head_dim,)}
