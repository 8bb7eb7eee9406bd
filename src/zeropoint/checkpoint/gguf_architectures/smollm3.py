"""SmolLM3: Llama's tensors, interleaved rows too; every fourth block does not rotate, which is not in the file."""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, INTERLEAVED, MLP, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import MLP as MLP_LINEARS
from zeropoint.checkpoint.gguf_architectures._fields import READS, Fields, decoder

ROTATES_NOT = 4


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a SmolLM3."""
    return {
        **decoder(fields, "smollm3", "SmolLM3ForCausalLM"),
        "attention_bias": fields.has_biases(*READS, "o_proj"),
        "mlp_bias": fields.has_biases(*MLP_LINEARS),
        "no_rope_layer_interval": ROTATES_NOT,
        "use_sliding_window": False,
    }


ARCHITECTURES = (Architecture("smollm3", config, OUTER, ATTENTION | MLP, swapped=INTERLEAVED),)
