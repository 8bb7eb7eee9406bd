"""Phi-3 and Phi-4: Llama's blocks with q, k and v in one linear, gate and up in another; rope of a part of each head.

    qkv_proj = [q_proj; k_proj; v_proj]       gate_up_proj = [gate_proj; up_proj]       one below the other

They are quantized as they are stored: each row has its own scales, whichever part it belongs to.
Source: Abdin et al. 2024, arXiv:2404.14219.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.models import llama
from zeropoint.models._layers import window_of
from zeropoint.models.parts import Array, Block, Config, Flow, Stage, State, add_to_residual, branch

DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip


def attend(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    queries, keys = _widths(block.config)
    return llama.attend(block, state, block.ops.split(outputs[0], (queries, keys, keys)))


def gate(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    half = block.config.intermediate_size
    return llama.gate(block, state, block.ops.split(outputs[0], (half, half)))


def value_rows(config: Config) -> slice:
    """Return the rows of qkv_proj that make the values."""
    queries, keys = _widths(config)
    return slice(queries + keys, queries + 2 * keys)


def up_rows(config: Config) -> slice:
    """Return the rows of gate_up_proj that are not gated."""
    return slice(config.intermediate_size, 2 * config.intermediate_size)


FLOW: Flow = (
    Stage(("self_attn.qkv_proj",), "input_layernorm", llama.attention_input, attend, residual="reads"),
    Stage(
        ("self_attn.o_proj",),
        "self_attn.qkv_proj",
        branch,
        add_to_residual,
        residual="adds",
        values=True,
        fed_rows=value_rows,
    ),
    Stage(("mlp.gate_up_proj",), "post_attention_layernorm", llama.mlp_input, gate, residual="reads"),
    Stage(("mlp.down_proj",), "mlp.gate_up_proj", branch, add_to_residual, residual="adds", fed_rows=up_rows),
)


class Model(llama.Model):
    """A Phi-3 decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        read = llama.read_config(config, partial_rope=True)
        return cls(replace(read, window=window_of(config, None), attention_bias=False, mlp_bias=False))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        queries, keys = _widths(self.config)
        hidden, half = self.config.hidden_size, self.config.intermediate_size
        return {**super().shapes(), "qkv_proj": (queries + 2 * keys, hidden), "gate_up_proj": (2 * half, hidden)}


def _widths(config: Config) -> tuple[int, int]:
    """Return the features of all queries, and of all keys."""
    return config.heads * config.head_dim, config.kv_heads * config.head_dim
