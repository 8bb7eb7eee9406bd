"""Gemma 3, its text model: norms of the heads, a window in all but every sixth block, which have a rope of their own.

The base of that rope is in newer files only; it is 10,000, and nothing scales it. The 27B is told by its 62 blocks.
"""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import HEAD_NORMS, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import DEFAULT_THETA, Fields, sliding
from zeropoint.checkpoint.gguf_architectures.gemma import gemma
from zeropoint.checkpoint.gguf_architectures.gemma2 import BLOCK, WINDOW, query_scalar

LOCAL_THETA = "rope.freq_base_swa"
BLOCKS_OF_27B = 62


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Gemma 3."""
    found = gemma(fields, "gemma3_text", "Gemma3ForCausalLM", *WINDOW, LOCAL_THETA, "final_logit_softcapping")
    window = fields.count_or_none("attention.sliding_window")
    local = {"rope_theta": fields.number(LOCAL_THETA, DEFAULT_THETA), "rope_type": "default"}
    return {
        **found,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": fields.number_or_none("final_logit_softcapping"),
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": sliding(fields, every=1 if window is None else 6),
        "query_pre_attn_scalar": query_scalar(found, BLOCKS_OF_27B),
        "rope_parameters": {"full_attention": found["rope_parameters"], "sliding_attention": local},
        "sliding_window": 4096 if window is None else window,
    }


ARCHITECTURES = (Architecture("gemma3_text", config, OUTER, BLOCK | HEAD_NORMS, added=1.0),)
