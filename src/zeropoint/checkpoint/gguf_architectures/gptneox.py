"""GPT-NeoX and Pythia: all of q, then all of k, then all of v, where Hugging Face has them head by head.

Its activation is not in the file. llama.cpp computes GELU with tanh; here it is GELU itself, as in what was converted.
"""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import Architecture, Swapped
from zeropoint.checkpoint.gguf_architectures._fields import (
    HEADS,
    LAYER_EPS,
    ROPE,
    Fields,
    base,
    equal_heads,
    part,
    rope,
)

OUTER = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
HEAD_BY_HEAD = Swapped((3, "num_attention_heads", -1), (0, 1))


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a GPT-NeoX."""
    fields.require_known(LAYER_EPS, *HEADS, *ROPE, "use_parallel_residual")
    found = base(fields, "gpt_neox", "GPTNeoXForCausalLM")
    size = equal_heads(fields, found)
    return {
        **found,
        "attention_bias": fields.has_biases("query_key_value", "dense"),
        "hidden_act": "gelu",
        "layer_norm_eps": fields.number(LAYER_EPS),
        "rope_parameters": {**rope(fields), "partial_rotary_factor": part(fields.rotated(size), size)},
        "use_parallel_residual": fields.flag("use_parallel_residual", default=True),
    }


ARCHITECTURES = (
    Architecture(
        "gpt_neox",
        config,
        OUTER,
        BLOCK,
        layers="gpt_neox.layers",
        head="embed_out",
        swapped={"attention.query_key_value": HEAD_BY_HEAD},
    ),
)
