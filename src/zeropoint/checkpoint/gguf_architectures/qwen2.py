"""Qwen2 and Qwen2.5: q, k and v have biases, and nothing else has."""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, MLP, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import MLP as MLP_LINEARS
from zeropoint.checkpoint.gguf_architectures._fields import READS, Fields, decoder
from zeropoint.errors import CheckpointError


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Qwen2."""
    if not fields.has_biases(*READS) or fields.has_biases("o_proj", *MLP_LINEARS):
        raise CheckpointError(
            f"{fields.path}: q, k and v of a Qwen2 have a bias and no other linear has, and here they do not"
        )
    return {**decoder(fields, "qwen2", "Qwen2ForCausalLM"), "use_sliding_window": False}


ARCHITECTURES = (Architecture("qwen2", config, OUTER, ATTENTION | MLP),)
