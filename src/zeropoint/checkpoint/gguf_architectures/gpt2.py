"""GPT-2: learned positions, q, k and v in one linear; weights are (rows, cols), which Hugging Face has transposed."""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import Architecture
from zeropoint.checkpoint.gguf_architectures._fields import HEADS, LAYER_EPS, Fields, base, equal_heads

OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
NORMS = {"attn_norm": "ln_1", "ffn_norm": "ln_2"}
LINEARS = {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
NAMES = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
}  # fmt: skip


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a GPT-2, which calls its sizes otherwise."""
    fields.require_known(LAYER_EPS, *HEADS)
    found = base(fields, "gpt2", "GPT2LMHeadModel")
    equal_heads(fields, found)
    return {
        **{NAMES.get(key, key): value for key, value in found.items() if key != "attention_dropout"},
        "activation_function": "gelu_new",
        "layer_norm_epsilon": fields.number(LAYER_EPS),
        # under its plain name, too, for the files beside the weights
        "max_position_embeddings": found["max_position_embeddings"],
    }


ARCHITECTURES = (
    Architecture(
        "gpt2",
        config,
        OUTER,
        NORMS | LINEARS,
        layers="transformer.h",
        transposed=tuple(LINEARS.values()),
    ),
)
