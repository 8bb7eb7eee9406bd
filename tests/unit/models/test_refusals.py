"""What would change the result and is not covered is refused by its key."""

from __future__ import annotations

from typing import Any

import pytest

from zeropoint.errors import ArchitectureError
from zeropoint.models import load_model

SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 260, "pad_token_id": 0, "ffn_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("llama", {"attention_multiplier": 0.1}, "attention_multiplier is 0.1, which is not covered for a llama model"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling is 8.0"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("mixtral", {"num_local_experts": 1}, "num_experts_per_tok is 2, and there are 1 experts; it must not be more"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts is 0; a positive integer"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}, "mlp_only_layers and decoder_sparse_step leave no block with exp"),
        ("qwen3_moe", {"decoder_sparse_step": 3}, "mlp_only_layers and decoder_sparse_step leave no block with exp"),
        ("qwen3_moe", {"mlp_only_layers": "0"}, "mlp_only_layers is 0; a list of numbers belongs there"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True; that is not covered for a gpt2 model"),
        ("gpt2", {"n_embd": 33}, "n_embd 33 does not split into 2 heads"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function 'quick_gelu' is not known"),
        ("gpt2", {"n_inner": 0}, "n_inner is 0; a positive integer"),
        ("qwen3_moe", {"num_experts": 1 << 20}, "num_experts is 1048576; a positive integer up to 4096"),
        ("gpt_neox", {"hidden_size": 33}, "2 heads of head_dim 16 and hidden_size 33; in a gpt_neox model"),
        ("gpt_neox", {"hidden_act": "gelu_10"}, "hidden_act 'gelu_10' is not known"),
        ("gpt_neox", {"rotary_pct": 0.1}, "says that 1 of 16 features of a head are rotated"),
        ("gpt_neox", {"use_parallel_residual": 1.5}, "use_parallel_residual is 1.5; true or false"),
        ("gpt_neox", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not known"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False; that is not covered for an opt model"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim is 16 and hidden_size 32; an embedding of another"),
        ("opt", {"enable_bias": False}, "enable_bias is False"),
        ("opt", {"hidden_size": 33}, "hidden_size 33 does not split into 2 heads"),
        ("mistral", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; a positive integer"),
        ("qwen2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window is 'no'; true or false"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers is -1; an integer from 0"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is not a list of 2 types"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types has 'chunked_attention'"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window says no window"),
        ("gemma", {"hidden_act": "mish"}, "hidden_act 'mish' is not known"),
        ("gemma2", {"hidden_activation": "mish"}, "hidden_activation 'mish' is not known"),
        ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0; a number above 1e-06"),
        ("gemma2", {"final_logit_softcapping": 1e-320}, "final_logit_softcapping is 1e-320; a number above 1e-06"),
        ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping is '30'"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1"),
        ("gemma2", {"sliding_window": None}, "sliding_window says no window"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, which is not covered"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters has other keys than full_attention"),
        ("gemma3_text", {"rope_scaling": {"rope_type": "ntk"}}, "rope type 'ntk' is not known"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 8}},
            "short_factor of the rope is not a list of 8 numbers, one for each pair of rotated features",
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}},
            "long_factor of the rope is not a list of 8 numbers",
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7 + [0.0]}},
            "long_factor is 0.0; a number above 1e-06",
        ),
        (
            "phi3",
            {
                "original_max_position_embeddings": 1,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
            },
            "original_max_position_embeddings is 1; a number above 1",
        ),
        (
            "phi3",
            {"partial_rotary_factor": 0.2},
            "says that 3 of 16 features of a head are rotated; it must be an even",
        ),
        ("phi3", {"partial_rotary_factor": 1.5}, "says that 24 of 16 features"),
        ("phi3", {"sliding_window": -5}, "sliding_window is -5"),
        ("olmo2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1 is not covered"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers is not a list of 2 numbers, each 0 or 1"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
        ("qwen3", {"num_experts": 128}, "num_experts is 128"),
        ("qwen3", {"rope_scaling": {"rope_type": "mrope", "factor": 4.0}}, "rope type 'mrope' is not known"),
        (
            "qwen3",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0}},
            "beta_slow of the rope must be below beta_fast",
        ),
        ("qwen3", {"rope_theta": 1.0, "rope_scaling": {"type": "yarn"}}, "and rope_theta above 1 for rope type 'yarn'"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope type 'llama3' lacks low_freq_factor"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope type 'linear' lacks factor"),
    ],
)
def test_a_value_that_is_not_covered_is_refused_by_its_key(
    model_type: str, changes: dict[str, Any], message: str
) -> None:
    load_model({**SIZES, "model_type": model_type})
    with pytest.raises(ArchitectureError, match=message):
        load_model({**SIZES, "model_type": model_type, **changes})
