"""Qwen3: norms of the heads of q and k."""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, HEAD_NORMS, MLP, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import MLP as MLP_LINEARS
from zeropoint.checkpoint.gguf_architectures._fields import READS, Fields, decoder


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Qwen3."""
    fields.require_no_biases(*MLP_LINEARS)
    return {
        **decoder(fields, "qwen3", "Qwen3ForCausalLM"),
        "attention_bias": fields.has_biases(*READS, "o_proj"),
        "use_sliding_window": False,
    }


ARCHITECTURES = (Architecture("qwen3", config, OUTER, ATTENTION | HEAD_NORMS | MLP),)
