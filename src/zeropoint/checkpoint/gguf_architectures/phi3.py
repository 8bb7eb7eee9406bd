"""Phi-3 and Phi-4: q, k and v in one linear, gate and up in another, as in Hugging Face; rope of a part of each head.

The window is in the file, 0 for none; llama.cpp does not use it, transformers does.
"""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import HEADS, RMS_EPS, ROPE, Fields, base, part, rope
from zeropoint.checkpoint.gguf_architectures._rope import LONG, SHORT, with_longrope
from zeropoint.errors import CheckpointError

BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
WINDOW, CONTEXT, FACTOR = "attention.sliding_window", "rope.scaling.original_context_length", "rope.scaling.attn_factor"


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Phi-3."""
    fields.require_known(*HEADS, *ROPE, RMS_EPS, WINDOW, FACTOR)
    fields.require_no_biases(*LINEARS)
    found = base(fields, "phi3", "Phi3ForCausalLM")
    heads, hidden = found["num_attention_heads"], found["hidden_size"]
    size = fields.count("attention.key_length", hidden // heads)
    if fields.count("attention.value_length", size) != size or size * heads != hidden:
        raise CheckpointError(
            f"{fields.path}: {heads} heads of {size} features, or of another number, do not make up the hidden size "
            f"{hidden}, which is not covered"
        )
    rope_parameters = {**rope(fields), "partial_rotary_factor": part(fields.rotated(size), size)}
    factor = fields.number_or_none(FACTOR)
    if factor is not None:
        rope_parameters["attention_factor"] = factor
    return {
        "pad_token_id": None,  # what transformers takes where the key is missing is beyond a small vocabulary
        **found,
        "head_dim": size,
        "hidden_act": "silu",
        "num_key_value_heads": fields.count("attention.head_count_kv", heads),
        "original_max_position_embeddings": fields.count(CONTEXT, found["max_position_embeddings"]),
        "rms_norm_eps": fields.number(RMS_EPS),
        "rope_parameters": rope_parameters,
        "sliding_window": fields.count_or_none(WINDOW),
    }


ARCHITECTURES = (Architecture("phi3", config, OUTER, BLOCK, factors=(LONG, SHORT), with_factors=with_longrope),)
