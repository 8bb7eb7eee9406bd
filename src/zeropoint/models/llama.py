"""Llama 2 and 3, SmolLM, TinyLlama: pre-norm blocks, rotary grouped-query attention, a gated MLP.

    x = x + o_proj(attention(rope(q_proj(h)), rope(k_proj(h)), v_proj(h)))      h = rms_norm(x)
    x = x + down_proj(silu(gate_proj(h)) * up_proj(h))                          h = rms_norm(x)

Source: Touvron et al. 2023, arXiv:2302.13971 and arXiv:2307.09288.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.errors import ArchitectureError
from zeropoint.models._names import with_prefix
from zeropoint.models._values import flag, number, require_covered, whole
from zeropoint.models.parts import Array, Block, Config, Ends, Flow, Ops, Stage, State, add_to_residual, branch, norm
from zeropoint.models.rope import MAX_POSITIONS, Rope

MAX_LAYERS = 10_000
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
SAME_ACTIVATIONS: Mapping[str, str] = {
    "swish": "silu", "gelu_python": "gelu", "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh",
}  # fmt: skip
"""Other names of the same functions: gelu_fast has its constant with 10 digits, which float32 does not tell apart."""
NORMS = ("input_layernorm", "post_attention_layernorm")


def attention_input(block: Block, state: State) -> Array:
    return block.norm("input_layernorm", state.x)


def attend(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    return attend_heads(block, state, *split_heads(block, outputs))


def split_heads(block: Block, outputs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Return queries, keys and values in heads."""
    config, (q, k, v) = block.config, outputs
    split = block.ops.split_heads
    return split(q, config.heads), split(k, config.kv_heads), split(v, config.kv_heads)


def attend_heads(block: Block, state: State, q: Array, k: Array, v: Array) -> State:
    """Rotate queries and keys, which are in heads, and attend as the config of the block says."""
    config, ops = block.config, block.ops
    if config.rope is not None:
        start = state.past.length if state.past is not None else 0
        q, k = ops.rope(q, config.rope, start), ops.rope(k, config.rope, start)
    y = ops.attention(
        q, k, v, state.past, window=config.window, scale=config.attention_scale, softcap=config.attention_softcap
    )
    return replace(state, y=y)


def mlp_input(block: Block, state: State) -> Array:
    return block.norm("post_attention_layernorm", state.x)


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
    """A Llama-like decoder; see `zeropoint.models.parts.Model`.

    blocks: the config of each block, where they differ; else none. norms: of a block, local names.
    """

    config: Config
    blocks: tuple[Config, ...] = ()
    stages: ClassVar[Flow] = FLOW
    norms: ClassVar[tuple[str, ...]] = NORMS
    ends: ClassVar[Ends] = Ends()
    part: ClassVar[str | None] = None

    @cached_property
    def flow(self) -> Flow:
        return self.stages

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(read_config(config))

    def flow_of(self, index: int) -> Flow:
        return self.flow

    def config_of(self, index: int) -> Config:
        return self.blocks[index] if self.blocks else self.config

    def block_name(self, index: int) -> str:
        return f"model.layers.{index}"

    def block_tensors(self, index: int) -> tuple[str, ...]:
        linears = [name for stage in self.flow_of(index) for name in stage.linears]
        biased = [name for name in linears if self.has_bias(name)]
        local = [f"{name}.weight" for name in (*self.norms, *linears)]
        local += [f"{name}.bias" for name in (*(self.norms if self.config.layer_norm else ()), *biased)]
        return tuple(f"{self.block_name(index)}.{name}" for name in local)

    def has_bias(self, linear: str) -> bool:
        """Return whether a linear of the blocks, by its local name, has a bias."""
        return self.config.attention_bias if linear.startswith("self_attn.") else self.config.mlp_bias

    def shape(self, name: str) -> tuple[int, ...]:
        *_, part, kind = name.split(".")
        found = self.shapes().get(part, (self.config.hidden_size,))
        return found if kind == "weight" else found[:1]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight that is no vector of the residual stream, by the last part of its name."""
        config = self.config
        hidden, queries, keys = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
        return {
            "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
            "gate_proj": (config.intermediate_size, hidden), "up_proj": (config.intermediate_size, hidden),
            "down_proj": (hidden, config.intermediate_size),
            **{name.rpartition(".")[2]: (config.vocab_size, hidden) for name in (self.ends.embedding, self.ends.head)},
        }  # fmt: skip

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        return with_prefix(tensors, self.ends, self.block_name(0))

    def embed(self, ops: Ops, weights: Mapping[str, Array], tokens: Array, start: int = 0) -> Array:
        return ops.embed(tokens, weights[f"{self.ends.embedding}.weight"], self.config.embedding_factor)

    def head(self, ops: Ops, weights: Mapping[str, Array], x: Array) -> Array:
        config = self.config
        x = norm(ops, config, weights, self.ends.norm, x)
        logits = ops.linear(x, weights[f"{self.ends.head}.weight"], None)
        return logits if config.logit_softcap is None else ops.softcap(logits, config.logit_softcap)


def read_config(
    config: Mapping[str, Any],
    *covered: str,
    activation_key: str = "hidden_act",
    eps_key: str = "rms_norm_eps",
    partial_rope: bool = False,
) -> Config:
    """Return the numbers of a Llama-like config.json.

    covered: keys of `_values.UNCOVERED` that the caller reads. activation_key, eps_key: where the name of the
    activation, and what norms add to the mean square, are. partial_rope: whether partial_rotary_factor may be below 1.
    Raises: ArchitectureError naming a key that is missing or a value that would change the result and is not covered.
    """
    require_covered(config, *covered)
    heads, hidden = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    kv_heads = whole(config, "num_key_value_heads", heads)
    head_dim = whole(config, "head_dim", hidden // heads or None)
    if heads % kv_heads or head_dim % 2:
        raise ArchitectureError(
            f"config.json: {heads} heads in {kv_heads} groups of head_dim {head_dim}; "
            "the groups must divide the heads and head_dim must be even"
        )
    activation = config.get(activation_key, "silu")
    activation = SAME_ACTIVATIONS.get(str(activation), activation)
    if activation not in ACTIVATIONS:
        raise ArchitectureError(
            f"config.json: {activation_key} {activation!r} is not known; known are {', '.join(ACTIVATIONS)}"
        )
    rope = Rope.from_config(config, head_dim, partial=partial_rope)
    positions = whole(config, "max_position_embeddings", MAX_POSITIONS)
    return Config(
        model_type=str(config["model_type"]),
        hidden_size=hidden,
        intermediate_size=whole(config, "intermediate_size"),
        layers=whole(config, "num_hidden_layers", most=MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=whole(config, "vocab_size"),
        max_positions=positions if rope.longest is None else min(positions, rope.longest),
        norm_eps=number(config, eps_key, 1e-6),
        activation=activation,
        attention_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
        tied_embeddings=flag(config, "tie_word_embeddings"),
        rope=rope,
    )
