"""Llama 2 and 3, SmolLM, TinyLlama: pre-norm blocks, rotary grouped-query attention, a gated MLP.

    x = x + o_proj(attention(rope(q_proj(h)), rope(k_proj(h)), v_proj(h)))      h = rms_norm(x)
    x = x + down_proj(silu(gate_proj(h)) * up_proj(h))                          h = rms_norm(x)

Source: Touvron et al. 2023, arXiv:2302.13971 and arXiv:2307.09288.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from zeropoint.errors import ArchitectureError
from zeropoint.models._values import flag, number, whole
from zeropoint.models.parts import Array, Block, Config, Flow, Ops, Stage, State, add_to_residual, branch
from zeropoint.models.rope import Rope

MAX_LAYERS = 10_000
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
NORMS = ("input_layernorm", "post_attention_layernorm")


def attention_input(block: Block, state: State) -> Array:
    return block.ops.rms_norm(state.x, block.weights["input_layernorm.weight"], block.config.norm_eps)


def attend(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    config, ops = block.config, block.ops
    start = state.past.length if state.past is not None else 0
    q, k, v = (
        ops.split_heads(x, n) for x, n in zip(outputs, (config.heads, config.kv_heads, config.kv_heads), strict=True)
    )
    q, k = ops.rope(q, config.rope, start), ops.rope(k, config.rope, start)
    return replace(state, y=ops.attention(q, k, v, state.past))


def mlp_input(block: Block, state: State) -> Array:
    return block.ops.rms_norm(state.x, block.weights["post_attention_layernorm.weight"], block.config.norm_eps)


def gate(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    gate_output, up_output = outputs
    return replace(state, y=block.ops.gated(gate_output, up_output, block.config.activation))


FLOW: Flow = (
    Stage(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "input_layernorm",
        attention_input,
        attend,
        residual="reads",
    ),
    Stage(("self_attn.o_proj",), "self_attn.v_proj", branch, add_to_residual, residual="adds", values=True),
    Stage(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm", mlp_input, gate, residual="reads"),
    Stage(("mlp.down_proj",), "mlp.up_proj", branch, add_to_residual, residual="adds"),
)


@dataclass(frozen=True)
class Model:
    """A Llama-like decoder; see `zeropoint.models.parts.Model`."""

    config: Config
    flow: ClassVar[Flow] = FLOW

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(read_config(config))

    def block_name(self, index: int) -> str:
        return f"model.layers.{index}"

    def block_tensors(self, index: int) -> tuple[str, ...]:
        biased = {"self_attn": self.config.attention_bias, "mlp": self.config.mlp_bias}
        linears = [name for stage in self.flow for name in stage.linears]
        local = [f"{name}.weight" for name in (*NORMS, *linears)]
        local += [f"{name}.bias" for name in linears if biased[name.split(".")[0]]]
        return tuple(f"{self.block_name(index)}.{name}" for name in local)

    def outer_tensors(self) -> tuple[str, ...]:
        head = () if self.config.tied_embeddings else ("lm_head.weight",)
        return ("model.embed_tokens.weight", "model.norm.weight", *head)

    def shape(self, name: str) -> tuple[int, ...]:
        config = self.config
        hidden, queries, keys = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
        shapes = {
            "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
            "gate_proj": (config.intermediate_size, hidden), "up_proj": (config.intermediate_size, hidden),
            "down_proj": (hidden, config.intermediate_size),
            "embed_tokens": (config.vocab_size, hidden), "lm_head": (config.vocab_size, hidden),
        }  # fmt: skip
        *_, part, kind = name.split(".")
        matrix = shapes.get(part)
        if matrix is None:
            return (hidden,)
        return matrix if kind == "weight" else matrix[:1]

    def embed(self, ops: Ops, weights: Mapping[str, Array], tokens: Array) -> Array:
        return ops.embed(tokens, weights["model.embed_tokens.weight"])

    def head(self, ops: Ops, weights: Mapping[str, Array], x: Array) -> Array:
        x = ops.rms_norm(x, weights["model.norm.weight"], self.config.norm_eps)
        return ops.linear(x, weights["lm_head.weight"], None)


def read_config(config: Mapping[str, Any]) -> Config:
    """Return the numbers of a Llama-like config.json.

    Raises: ArchitectureError naming a key that is missing or a value that would change the result and is not covered.
    """
    heads, hidden = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    kv_heads = whole(config, "num_key_value_heads", heads)
    head_dim = whole(config, "head_dim", hidden // heads or None)
    if heads % kv_heads or head_dim % 2:
        raise ArchitectureError(
            f"config.json: {heads} heads in {kv_heads} groups of head_dim {head_dim}; "
            "the groups must divide the heads and head_dim must be even"
        )
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ArchitectureError(
            f"config.json: hidden_act {activation!r} is not known; known are {', '.join(ACTIVATIONS)}"
        )
    return Config(
        model_type=str(config["model_type"]),
        hidden_size=hidden,
        intermediate_size=whole(config, "intermediate_size"),
        layers=whole(config, "num_hidden_layers", most=MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=whole(config, "vocab_size"),
        max_positions=whole(config, "max_position_embeddings", 2048),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        activation=activation,
        attention_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
        tied_embeddings=flag(config, "tie_word_embeddings"),
        rope=Rope.from_config(config, head_dim),
    )
