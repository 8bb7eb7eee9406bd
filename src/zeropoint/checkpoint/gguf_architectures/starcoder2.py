"""StarCoder 2: layer norms, an MLP without a gate, biases in every linear or in none.

The window is not in the file, and llama.cpp has none.
"""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import LAYER_EPS, READS, Fields, decoder

BLOCK = ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
LINEARS = (*READS, "o_proj", "c_fc", "c_proj")


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a StarCoder 2."""
    found = decoder(fields, "starcoder2", "Starcoder2ForCausalLM", eps_key=LAYER_EPS)
    del found["rms_norm_eps"]
    return {
        **found,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": fields.number(LAYER_EPS),
        "sliding_window": None,
        "use_bias": fields.has_biases(*LINEARS),
    }


ARCHITECTURES = (Architecture("starcoder2", config, OUTER, BLOCK),)
