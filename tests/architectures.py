"""Tiny random models of every architecture in models/, as transformers saves them, made without a download.

make(folder, "qwen2", "late windows")      -> transformers' model, in float32, and the folder it is in
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.5],
    "long_factor": [1.0, 2.0, 7.0],
}
"""For 6 of the 12 features of a head. 128 positions, made of 100: texts of 90 tokens are short ones."""

VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gemma": {
        "plain": {"head_dim": 12},
        "untied, biased": {"head_dim": 20, "tie_word_embeddings": False, "attention_bias": True},
    },
    "gemma2": {
        "no caps, untied, biased": {
            "head_dim": 20,
            "sliding_window": 33,
            "layer_types": ["full_attention", "sliding_attention"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
        "capped": {
            "head_dim": 12,
            "sliding_window": 20,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
        },
    },
    "gemma3_text": {
        "plain": {"head_dim": 12, "sliding_window": 33, "sliding_window_pattern": 2},
        "capped logits, scaled rope": {
            "head_dim": 20,
            "sliding_window": 20,
            "layer_types": ["full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 30,
            "final_logit_softcapping": 20.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    },
    "gpt_neox": {
        "one after the other": {
            "use_parallel_residual": False,
            "num_attention_heads": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "attention_bias": False,
        },
        "plain": {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}},
    },
    "gpt2": {
        "scaled by layer, untied": {
            "scale_attn_by_inverse_layer_idx": True,
            "n_inner": 80,
            "activation_function": "relu",
            "tie_word_embeddings": False,
        },
        "unscaled": {"scale_attn_weights": False},
        "plain": {},
    },
    "llama": {
        "plain": {},
        "tied": {"tie_word_embeddings": True},
        "biased": {"attention_bias": True, "mlp_bias": True},
        "one kv head": {"num_key_value_heads": 1},
        "no grouping": {"num_key_value_heads": 4},
        "wide heads": {"head_dim": 24},
        "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
        "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "yarn rope": {"rope_parameters": YARN_ROPE},
        "gelu": {"hidden_act": "gelu_pytorch_tanh"},
    },
    "mistral": {
        "no window": {"sliding_window": None, "head_dim": 12},
        "window of one": {"sliding_window": 1},
        "window": {"sliding_window": 33},
    },
    "mixtral": {
        "window": {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 33},
        "plain": {"num_local_experts": 4},
    },
    "olmo2": {
        "one kv head": {"num_key_value_heads": 1, "head_dim": 20},
        "biased": {"attention_bias": True, "tie_word_embeddings": True},
    },
    "opt": {
        "untied": {"ffn_dim": 80, "word_embed_proj_dim": 48, "tie_word_embeddings": False},
        "plain": {"ffn_dim": 80, "word_embed_proj_dim": 48, "activation_function": "gelu"},
    },
    "phi3": {
        "plain": {"num_key_value_heads": 4},
        "longrope, of a part": {
            "rope_parameters": {**LONG_ROPE, "partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 100,
        },
        "window, rope of a part": {"sliding_window": 33, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
    },
    "qwen2": {
        "plain": {},
        "yarn rope": {"rope_parameters": {**YARN_ROPE, "beta_fast": 4.0, "truncate": False}},
        "late windows": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
        "layer types": {
            "use_sliding_window": True,
            "sliding_window": 70,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    },
    "qwen3": {
        "plain": {"head_dim": 20},
        "biased": {"attention_bias": True, "tie_word_embeddings": True},
        "biased, late windows": {
            "attention_bias": True,
            "head_dim": 12,
            "use_sliding_window": True,
            "sliding_window": 20,
            "max_window_layers": 1,
        },
    },
    "qwen3_moe": {
        "every second without experts": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 12,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 20,
        },
        "first without experts": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 12,
            "mlp_only_layers": [1],
        },
        "weights of a part": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 12},
        "plain": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "head_dim": 20,
            "tie_word_embeddings": True,
        },
    },
    "smollm3": {
        "every second without rope": {"no_rope_layer_interval": 2, "attention_bias": True},
        "windows": {
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 20,
            "tie_word_embeddings": False,
        },
    },
    "starcoder2": {
        "no bias": {"use_bias": False},
        "window, untied": {"sliding_window": 33, "tie_word_embeddings": False},
    },
}
"""By model_type, then by what a variant is about. Windows are shorter than the texts of the tests, 90 tokens."""


def make(folder: Path, model_type: str, variant: str, **changes: Any) -> Any:
    """Write a model and return it: far from its initialization, so that a wrong gain or angle moves the logits.

    changes: keys of config.json.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **VARIANTS[model_type][variant], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    return model
