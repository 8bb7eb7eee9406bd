"""GPT-NeoX and Pythia: attention and MLP side by side on the same stream, layer norms, no gate, rope of part of a head.

    x = x + dense(attention(rope(q), rope(k), v)) + dense_4h_to_h(gelu(dense_h_to_4h(norm(x))))     q, k, v of norm(x)

With use_parallel_residual = false the MLP reads the stream that attention has been added to. q, k and v are one linear,
head by head: the rows of a head's q, then of its k, then of its v. Source: Black et al. 2022, arXiv:2204.06745.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.errors import ArchitectureError
from zeropoint.models import llama
from zeropoint.models._values import flag
from zeropoint.models.parts import Array, Block, Config, Ends, Flow, Stage, State, add_to_residual, branch

DEFAULTS: Mapping[str, Any] = {"hidden_act": "gelu", "use_parallel_residual": True, "attention_bias": True}


def attend(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    config, ops = block.config, block.ops
    heads = ops.split_heads(outputs[0], config.heads)
    return llama.attend_heads(block, state, *ops.split(heads, (config.head_dim,) * 3))


def value_rows(config: Config) -> list[int]:
    """Return the rows of query_key_value that make the values."""
    size = config.head_dim
    return [3 * size * head + 2 * size + row for head in range(config.heads) for row in range(size)]


def add_now_or_later(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    """Leave attention: what it has made waits until the MLP, which reads the same stream, is behind us, too."""
    if not block.config.parallel:
        return add_to_residual(block, state, outputs)
    return replace(state, y=None, waiting=outputs[0])


def activate(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    return replace(state, y=block.ops.activate(outputs[0], block.config.activation))


def add_all(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    if state.waiting is None:
        return add_to_residual(block, state, outputs)
    add = block.ops.add
    return replace(state, x=add(state.x, add(outputs[0], state.waiting)), y=None, waiting=None)


QKV = "attention.query_key_value"
FLOW: Flow = (
    Stage((QKV,), "input_layernorm", llama.attention_input, attend),
    Stage(("attention.dense",), QKV, branch, add_now_or_later, values=True, fed_rows=value_rows),
    Stage(("mlp.dense_h_to_4h",), "post_attention_layernorm", llama.mlp_input, activate),
    Stage(("mlp.dense_4h_to_h",), None, branch, add_all),
)


class Model(llama.Model):
    """A GPT-NeoX decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW
    ends = Ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        named = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}  # before transformers 5
        older = {new: config[old] for old, new in named.items() if config.get(old) is not None}
        config = {"partial_rotary_factor": 0.25, **older, **config}
        config["num_key_value_heads"] = config.get("num_attention_heads")
        read = llama.read_config(config, eps_key="layer_norm_eps", partial_rope=True)
        if read.heads * read.head_dim != read.hidden_size:
            raise ArchitectureError(
                f"config.json: {read.heads} heads of head_dim {read.head_dim} and hidden_size {read.hidden_size}; in a "
                "gpt_neox model the heads make up the hidden size"
            )
        return cls(replace(read, layer_norm=True, mlp_bias=True, parallel=flag(config, "use_parallel_residual")))

    def block_name(self, index: int) -> str:
        return f"gpt_neox.layers.{index}"

    def has_bias(self, linear: str) -> bool:
        return self.config.attention_bias if linear.startswith("attention.") else self.config.mlp_bias

    def shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        return {
            **super().shapes(),
            "query_key_value": (3 * hidden, hidden),
            "dense": (hidden, hidden),
            "dense_h_to_4h": (inner, hidden),
            "dense_4h_to_h": (hidden, inner),
        }
