"""OLMo 2: Llama's blocks with norms behind the sublayers instead of before them, and norms of all of q and all of k.

    x = x + norm(o_proj(attention(rope(norm(q_proj(x))), rope(norm(k_proj(x))), v_proj(x))))
    x = x + norm(down_proj(silu(gate_proj(x)) * up_proj(x)))

Source: OLMo Team 2024, arXiv:2501.00656.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.models import gemma2, llama
from zeropoint.models.parts import Array, Block, Flow, Stage, State, branch

DEFAULTS: Mapping[str, Any] = {"rms_norm_eps": 1e-5}


def stream(block: Block, state: State) -> Array:
    """Enter a stage whose input is the residual stream itself."""
    return state.x


def attend(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    q, k, v = outputs
    return llama.attend(block, state, (block.norm("self_attn.q_norm", q), block.norm("self_attn.k_norm", k), v))


FLOW: Flow = (
    Stage(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), None, stream, attend),
    Stage(("self_attn.o_proj",), "self_attn.v_proj", branch, gemma2.add_attention, values=True),
    Stage(("mlp.gate_proj", "mlp.up_proj"), None, stream, llama.gate),
    Stage(("mlp.down_proj",), "mlp.up_proj", branch, gemma2.add_mlp),
)


class Model(llama.Model):
    """An OLMo 2 decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW
    norms = ("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.q_norm", "self_attn.k_norm")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(replace(llama.read_config({**DEFAULTS, **config}), mlp_bias=False))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found = super().shapes()
        return {**found, "q_norm": found["q_proj"][:1], "k_norm": found["k_proj"][:1]}
