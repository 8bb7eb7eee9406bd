"""Qwen3 with experts: every block has them, and the weights of a token's experts sum to 1, as in all that are released.

llama.cpp knows no blocks without experts among others, and always divides by the sum.
"""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, HEAD_NORMS, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import MAX_EXPERTS, READS, Fields, decoder

ROUTER = {"ffn_gate_inp": "mlp.gate"}
EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
}
KEYS = ("expert_count", "expert_used_count", "expert_feed_forward_length")


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Qwen3 with experts."""
    return {
        **decoder(fields, "qwen3_moe", "Qwen3MoeForCausalLM", *KEYS),
        "attention_bias": fields.has_biases(*READS, "o_proj"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": fields.count("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "num_experts": fields.count("expert_count", most=MAX_EXPERTS),
        "num_experts_per_tok": fields.count("expert_used_count", most=MAX_EXPERTS),
        "use_sliding_window": False,
    }


ARCHITECTURES = (Architecture("qwen3_moe", config, OUTER, ATTENTION | HEAD_NORMS | ROUTER, experts=EXPERTS),)
