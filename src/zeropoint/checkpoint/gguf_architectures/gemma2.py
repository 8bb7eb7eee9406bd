"""Gemma 2: norms behind the sublayers, capped scores and logits, a window in every other block; gains as in gemma.py.

What scores are multiplied by is not in the file: llama.cpp tells the 27B, which has another one, by its 46 blocks.
"""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, MLP, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import Fields, sliding
from zeropoint.checkpoint.gguf_architectures.gemma import TIED, gemma

BLOCK = ATTENTION | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
} | MLP  # fmt: skip
WINDOW = ("attention.sliding_window", "attention.sliding_window_pattern")
BLOCKS_OF_27B = 46


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Gemma 2."""
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    found = gemma(fields, "gemma2", "Gemma2ForCausalLM", *WINDOW, *caps)
    return {
        **found,
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": fields.number("final_logit_softcapping", 30.0),
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": sliding(fields, every=2),
        "query_pre_attn_scalar": query_scalar(found, BLOCKS_OF_27B),
        "sliding_window": fields.count("attention.sliding_window", 4096),
    }


def query_scalar(found: dict[str, Any], blocks_of_27b: int) -> int:
    """Return that of which scores are divided by the root: the features of a head, or what a 27B has."""
    if found["num_hidden_layers"] == blocks_of_27b:
        return int(found["hidden_size"] // found["num_attention_heads"])
    return int(found["head_dim"])


ARCHITECTURES = (Architecture("gemma2", config, TIED, BLOCK, added=1.0),)
