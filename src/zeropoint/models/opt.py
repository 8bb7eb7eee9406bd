"""OPT: GPT-2's learned positions and layer norms, q, k and v apart, an MLP with relu.

    x = embed_tokens[token] + embed_positions[position + 2]
    x = x + out_proj(attention(q_proj(h), k_proj(h), v_proj(h)))      h = norm(x)
    x = x + fc2(relu(fc1(norm(x))))

The 350M model, with its norms behind the sublayers and a smaller embedding, is refused.
Source: Zhang et al. 2022, arXiv:2205.01068.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.errors import ArchitectureError
from zeropoint.models import gpt_neox, llama
from zeropoint.models._values import whole
from zeropoint.models.parts import Array, Block, Ends, Flow, Ops, Stage, State, add_to_residual, branch

FIRST_ROW = 2
"""The row of the table that is for position 0."""

DEFAULTS: Mapping[str, Any] = {"activation_function": "relu", "layer_norm_eps": 1e-5, "tie_word_embeddings": True}
ONLY: Mapping[str, object] = {
    "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
    "layer_norm_elementwise_affine": True,
}  # fmt: skip
"""What is covered of keys that change the blocks."""


def attention_input(block: Block, state: State) -> Array:
    return block.norm("self_attn_layer_norm", state.x)


def mlp_input(block: Block, state: State) -> Array:
    return block.norm("final_layer_norm", state.x)


FLOW: Flow = (
    Stage(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn_layer_norm",
        attention_input,
        llama.attend,
    ),
    Stage(("self_attn.out_proj",), "self_attn.v_proj", branch, add_to_residual, values=True),
    Stage(("fc1",), "final_layer_norm", mlp_input, gpt_neox.activate),
    Stage(("fc2",), None, branch, add_to_residual),
)


class Model(llama.Model):
    """An OPT decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW
    norms = ("self_attn_layer_norm", "final_layer_norm")
    ends = Ends(
        "model.decoder.embed_tokens", "model.decoder.final_layer_norm", positions="model.decoder.embed_positions"
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        for key, value in ONLY.items():
            if config.get(key, value) != value:
                raise ArchitectureError(f"config.json: {key} is {config[key]}; that is not covered for an opt model")
        config = {**DEFAULTS, **config, "num_key_value_heads": None, "head_dim": None}
        config["intermediate_size"] = whole(config, "ffn_dim")
        read = llama.read_config(config, activation_key="activation_function", eps_key="layer_norm_eps")
        if whole(config, "word_embed_proj_dim", read.hidden_size) != read.hidden_size:
            raise ArchitectureError(
                f"config.json: word_embed_proj_dim is {config['word_embed_proj_dim']} and hidden_size "
                f"{read.hidden_size}; an embedding of another width is not covered for an opt model"
            )
        if read.heads * read.head_dim != read.hidden_size:
            raise ArchitectureError(
                f"config.json: hidden_size {read.hidden_size} does not split into {read.heads} heads"
            )
        return cls(
            replace(read, rope=None, learned_positions=True, layer_norm=True, attention_bias=True, mlp_bias=True)
        )

    def block_name(self, index: int) -> str:
        return f"model.decoder.layers.{index}"

    def has_bias(self, linear: str) -> bool:
        return True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        return {
            **super().shapes(),
            "out_proj": (hidden, hidden),
            "fc1": (inner, hidden),
            "fc2": (hidden, inner),
            "embed_positions": (self.config.max_positions + FIRST_ROW, hidden),
        }

    def embed(self, ops: Ops, weights: Mapping[str, Array], tokens: Array, start: int = 0) -> Array:
        rows = ops.positions(tokens, weights[f"{self.ends.positions}.weight"], start + FIRST_ROW)
        return ops.add(super().embed(ops, weights, tokens, start), rows)
