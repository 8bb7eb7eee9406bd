"""OLMo 2: norms behind the sublayers and none before them, norms of all of q and all of k."""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, HEAD_NORMS, MLP, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import MLP as MLP_LINEARS
from zeropoint.checkpoint.gguf_architectures._fields import READS, Fields, decoder

NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
BEFORE = ("attn_norm", "ffn_norm")
BLOCK = {llama: theirs for llama, theirs in ATTENTION.items() if llama not in BEFORE} | NORMS | HEAD_NORMS | MLP


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of an OLMo 2. A window is OLMo 3's, which goes by the same name in llama.cpp: refused."""
    fields.require_no_biases(*MLP_LINEARS)
    return {
        **decoder(fields, "olmo2", "Olmo2ForCausalLM"),
        "attention_bias": fields.has_biases(*READS, "o_proj"),
    }


ARCHITECTURES = (Architecture("olmo2", config, OUTER, BLOCK),)
