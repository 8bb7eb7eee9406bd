"""Llama, and what is converted as one: Mistral; with experts, Mixtral. Queries and keys have their rows interleaved.

A window of Mistral is not in the file, and llama.cpp has none. The weights of a token's experts sum to 1.
"""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, INTERLEAVED, MLP, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import MAX_EXPERTS, READS, Fields, decoder
from zeropoint.checkpoint.gguf_architectures._fields import MLP as MLP_LINEARS
from zeropoint.checkpoint.gguf_architectures._rope import ROPE_FREQS, with_llama3

ROUTER = {"ffn_gate_inp": "block_sparse_moe.gate"}
EXPERTS = {
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Llama."""
    return {
        **decoder(fields, "llama", "LlamaForCausalLM"),
        "attention_bias": fields.has_biases(*READS, "o_proj"),
        "mlp_bias": fields.has_biases(*MLP_LINEARS),
        "pretraining_tp": 1,
    }


def mixtral_config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Mixtral."""
    fields.require_no_biases(*READS, "o_proj")
    return {
        **decoder(fields, "mixtral", "MixtralForCausalLM", "expert_count", "expert_used_count"),
        "num_experts_per_tok": fields.count("expert_used_count", most=MAX_EXPERTS),
        "num_local_experts": fields.count("expert_count", most=MAX_EXPERTS),
        "sliding_window": None,
    }


ARCHITECTURES = (
    Architecture(
        "llama",
        config,
        OUTER,
        ATTENTION | MLP,
        swapped=INTERLEAVED,
        factors=(ROPE_FREQS,),
        with_factors=with_llama3,
    ),
    Architecture(
        "mixtral",
        mixtral_config,
        OUTER,
        ATTENTION | ROUTER,
        experts=EXPERTS,
        swapped=INTERLEAVED,
        factors=(ROPE_FREQS,),
        with_factors=with_llama3,
    ),
)
