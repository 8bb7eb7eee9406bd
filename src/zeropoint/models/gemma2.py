"""Gemma 2: a norm before and one behind each sublayer, capped scores and logits, a window in every other block.

    x = x + norm(o_proj(attention(rope(q_proj(h)), rope(k_proj(h)), v_proj(h))))     h = norm(x)
    x = x + norm(down_proj(gelu(gate_proj(h)) * up_proj(h)))                         h = norm(x)

with norms, gains and embedding as in gemma.py. Scores are multiplied by query_pre_attn_scalar^-0.5 and, like the
logits, capped: c tanh(s / c). Source: Gemma Team 2024, arXiv:2408.00118.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.models import gemma, llama
from zeropoint.models._layers import layer_types, window_of, with_window
from zeropoint.models._values import number, positive_or_none
from zeropoint.models.parts import Array, Block, Config, Flow, Stage, State, branch

NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")

DEFAULTS: Mapping[str, Any] = {
    **gemma.DEFAULTS,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def add_attention(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    return add_normed(block, state, outputs[0], "post_attention_layernorm")


def mlp_input(block: Block, state: State) -> Array:
    return block.norm("pre_feedforward_layernorm", state.x)


def add_mlp(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    return add_normed(block, state, outputs[0], "post_feedforward_layernorm")


def add_normed(block: Block, state: State, y: Array, norm: str) -> State:
    """Add the norm called `norm` of y to the residual stream."""
    return replace(state, x=block.ops.add(state.x, block.norm(norm, y)), y=None)


FLOW: Flow = (
    llama.FLOW[0],
    Stage(("self_attn.o_proj",), "self_attn.v_proj", branch, add_attention, values=True),
    Stage(("mlp.gate_proj", "mlp.up_proj"), "pre_feedforward_layernorm", mlp_input, llama.gate, residual="reads"),
    Stage(("mlp.down_proj",), "mlp.up_proj", branch, add_mlp),
)


class Model(llama.Model):
    """A Gemma 2 decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW
    norms = NORMS

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        read = replace(
            read_config(config, "attn_logit_softcapping", "final_logit_softcapping"),
            attention_softcap=positive_or_none(config, "attn_logit_softcapping"),
            logit_softcap=positive_or_none(config, "final_logit_softcapping"),
        )
        types = layer_types(config, read.layers, lambda index: index % 2 == 0)
        return cls(read, with_window(read, types, window_of(config, 4096)))


def read_config(config: Mapping[str, Any], *covered: str) -> Config:
    """Return what Gemma 2 and 3 have in common. covered: keys that the caller reads. Raises: ArchitectureError."""
    read = llama.read_config(config, *covered, activation_key="hidden_activation")
    return replace(
        gemma.scaled(config, read), attention_scale=number(config, "query_pre_attn_scalar", 256.0, least=1e-6) ** -0.5
    )
