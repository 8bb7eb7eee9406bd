"""GPT-2: positions that are learned, layer norms, q, k and v in one linear, an MLP without a gate.

    x = wte[token] + wpe[position]
    x = x + c_proj(attention(q, k, v))          q, k, v = c_attn(norm(x))
    x = x + c_proj(gelu(c_fc(norm(x))))

Its files have every weight transposed, (cols, rows), as transformers' Conv1D holds it; integers are written as those of
all other models are, (rows, cols). Source: Radford et al. 2019, Language models are unsupervised multitask learners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.errors import ArchitectureError
from zeropoint.models import gpt_neox, llama
from zeropoint.models._values import flag, whole
from zeropoint.models.parts import Array, Block, Config, Ends, Flow, Ops, Stage, State, add_to_residual, branch

OTHER_NAMES = {
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}  # fmt: skip
DEFAULTS: Mapping[str, Any] = {
    "activation_function": "gelu_new", "max_position_embeddings": 1024, "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True, "scale_attn_weights": True,
}  # fmt: skip
INTEGERS = ("I8", "I32")
"""Of weights that are written here, which are (rows, cols)."""


def attention_input(block: Block, state: State) -> Array:
    return block.norm("ln_1", state.x)


def attend(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    return llama.attend(block, state, block.ops.split(outputs[0], (block.config.hidden_size,) * 3))


def value_rows(config: Config) -> slice:
    """Return the rows of c_attn that make the values."""
    return slice(2 * config.hidden_size, 3 * config.hidden_size)


def mlp_input(block: Block, state: State) -> Array:
    return block.norm("ln_2", state.x)


QKV = "attn.c_attn"
FLOW: Flow = (
    Stage((QKV,), "ln_1", attention_input, attend),
    Stage(("attn.c_proj",), QKV, branch, add_to_residual, values=True, fed_rows=value_rows),
    Stage(("mlp.c_fc",), "ln_2", mlp_input, gpt_neox.activate),
    Stage(("mlp.c_proj",), None, branch, add_to_residual),
)


class Model(llama.Model):
    """A GPT-2 decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW
    norms = ("ln_1", "ln_2")
    ends = Ends("transformer.wte", "transformer.ln_f", positions="transformer.wpe")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        own = {new: config[old] for old, new in OTHER_NAMES.items() if config.get(old) is not None}
        config = {**DEFAULTS, **config, **own, "num_key_value_heads": None, "head_dim": None}
        config["intermediate_size"] = whole(config, "n_inner", 4 * whole(config, "hidden_size"))
        if flag(config, "add_cross_attention"):
            raise ArchitectureError("config.json: add_cross_attention is True; that is not covered for a gpt2 model")
        read = llama.read_config(config, activation_key="activation_function", eps_key="layer_norm_epsilon")
        if read.heads * read.head_dim != read.hidden_size:
            raise ArchitectureError(f"config.json: n_embd {read.hidden_size} does not split into {read.heads} heads")
        read = replace(
            read, rope=None, transposed=True, learned_positions=True, layer_norm=True, attention_bias=True,
            mlp_bias=True, attention_scale=None if flag(config, "scale_attn_weights") else 1.0,
        )  # fmt: skip
        if not flag(config, "scale_attn_by_inverse_layer_idx"):
            return cls(read)
        scale = read.head_dim**-0.5 if read.attention_scale is None else read.attention_scale
        return cls(read, tuple(replace(read, attention_scale=scale / (index + 1)) for index in range(read.layers)))

    def block_name(self, index: int) -> str:
        return f"transformer.h.{index}"

    def has_bias(self, linear: str) -> bool:
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        *_, module, part, kind = ("", *name.split("."))
        shapes = {
            "c_attn": (3 * hidden, hidden),
            "c_fc": (inner, hidden),
            "c_proj": (hidden, inner if module == "mlp" else hidden),
            "wpe": (self.config.max_positions, hidden),
        }
        found = shapes.get(part)
        return super().shape(name) if found is None else found if kind == "weight" else found[:1]

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        linears = tuple(f".{name}.weight" for stage in FLOW for name in stage.linears)
        return {
            name: replace(info, shape=info.shape[::-1], transposed=True)
            if name.endswith(linears) and info.dtype not in INTEGERS
            else info
            for name, info in super().arranged(tensors).items()
        }

    def embed(self, ops: Ops, weights: Mapping[str, Array], tokens: Array, start: int = 0) -> Array:
        rows = ops.positions(tokens, weights[f"{self.ends.positions}.weight"], start)
        return ops.add(super().embed(ops, weights, tokens, start), rows)
