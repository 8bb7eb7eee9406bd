"""Published checkpoints: what their config.json says, and what their tensors are called. Facts, one entry a checkpoint.

Only what decides over the result, and what a reader might stumble over, is here; names of classes, tokens, dropouts and
the like are left out. Of each checkpoint that has `"type": ...` or `torch_dtype` the newer spelling is tested, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MOSTLY_SLIDING = ["sliding_attention"] * 5 + ["full_attention"]


def sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **others: Any) -> dict[str, Any]:
    """The keys that most of them have."""
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, **others,
    }  # fmt: skip


def llama(*shape: int, **others: Any) -> dict[str, Any]:
    """A Llama as it was saved from 2023 on."""
    common = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    return {"model_type": "llama", **sizes(*shape), **common, "pretraining_tp": 1, "rope_scaling": None, **others}


def qwen(model_type: str, *shape: int, **others: Any) -> dict[str, Any]:
    """A Qwen, which has a window that is not used."""
    common = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "torch_dtype": "bfloat16"}
    return {"model_type": model_type, **sizes(*shape), **common, "use_sliding_window": False, **others}


def neox(hidden: int, layers: int, heads: int, vocab: int, **others: Any) -> dict[str, Any]:
    """A Pythia as it was saved, with transformers' names of 2023."""
    return {
        "model_type": "gpt_neox", "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "torch_dtype": "float16", "use_parallel_residual": True, **others,
    }  # fmt: skip


def gpt2(hidden: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    """A GPT-2, whose sizes have names of their own."""
    return {
        "model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 1024, "n_ctx": 1024,
        "vocab_size": 50257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, **others,
    }  # fmt: skip


def opt(hidden: int, inner: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    """An OPT."""
    return {
        "model_type": "opt", "hidden_size": hidden, "ffn_dim": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": 50272, "word_embed_proj_dim": hidden, "activation_function": "relu",
        "do_layer_norm_before": True, "_remove_final_layer_norm": False, "max_position_embeddings": 2048,
        "torch_dtype": "float16", "prefix": "</s>", **others,
    }  # fmt: skip


def phi3(*shape: int, **others: Any) -> dict[str, Any]:
    """A Phi-3."""
    common = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}
    return {"model_type": "phi3", **sizes(*shape), **common, "original_max_position_embeddings": 4096, **others}


def gemma(model_type: str, *shape: int, **others: Any) -> dict[str, Any]:
    """A Gemma, which says nothing of tied embeddings."""
    return {"model_type": model_type, **sizes(*shape), "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16", **others}


LONG = {  # divisors of Phi-4-mini: every fourth, spread to all 48
    "type": "longrope",
    "short_factor": [1.0] * 48,
    "long_factor": [1, 1.564103225, 2.446418898, 3.826451687, 5.984965424, 9.36110372, 14.64173252, 22.90118105,
                    32.1, 32.61, 32.71, 33.49] + [33.49] * 36,
}  # fmt: skip

ACCEPTED: Mapping[str, Mapping[str, Any]] = {
    "Llama-2-7b": llama(4096, 11008, 32, 32, 32, 32000, max_position_embeddings=4096, torch_dtype="float16"),
    "Meta-Llama-3-8B": llama(4096, 14336, 32, 32, 8, 128256, max_position_embeddings=8192, rope_theta=500000.0),
    "Llama-3.1-8B-Instruct": llama(
        4096, 14336, 32, 32, 8, 128256, max_position_embeddings=131072, rope_theta=500000.0,
        attention_bias=False, mlp_bias=False, rope_scaling={"rope_type": "llama3", "factor": 8.0, **LLAMA3},
    ),
    "Llama-3.2-1B": llama(
        2048, 8192, 16, 32, 8, 128256, head_dim=64, max_position_embeddings=131072, rope_theta=500000.0,
        tie_word_embeddings=True, rope_scaling={"rope_type": "llama3", "factor": 32.0, **LLAMA3},
    ),
    "TinyLlama-1.1B-Chat-v1.0": llama(2048, 5632, 22, 32, 4, 32000, max_position_embeddings=2048),
    "SmolLM-135M": llama(576, 1536, 30, 9, 3, 49152, max_position_embeddings=2048, tie_word_embeddings=True),
    "SmolLM2-1.7B-Instruct": llama(
        2048, 8192, 24, 32, 32, 49152, max_position_embeddings=8192, rope_theta=130000, tie_word_embeddings=True,
        **{"transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16"}}},
    ),
    "SmolLM2-135M": llama(
        576, 1536, 30, 9, 3, 49152, max_position_embeddings=8192, rope_theta=100000, rope_interleaved=False,
        is_llama_config=True, tie_word_embeddings=True,
    ),
    "deepseek-coder-1.3b-base": llama(
        2048, 5504, 24, 16, 16, 32256, max_position_embeddings=16384, rope_theta=100000, rms_norm_eps=1e-6,
        rope_scaling={"factor": 4.0, "type": "linear"},
    ),
    "Falcon3-7B-Instruct": llama(
        3072, 23040, 28, 12, 4, 131072, head_dim=256, max_position_embeddings=32768, rope_theta=1000042,
        rms_norm_eps=1e-6, activation="swiglu",
    ),
    "Yarn-Llama-2-7b-64k": llama(
        4096, 11008, 32, 32, 32, 32000, max_position_embeddings=65536,
        rope_scaling={"factor": 16.0, "original_max_position_embeddings": 4096, "type": "yarn", "finetuned": True},
    ),
    "SmolLM3-3B": {
        **llama(2048, 11008, 36, 16, 4, 128256, max_position_embeddings=65536, rope_theta=5000000.0),
        "model_type": "smollm3", "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "pretraining_tp": 2,
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "use_sliding_window": False,
        "sliding_window": None, "layer_types": ["full_attention"] * 36, "max_window_layers": 28,
    },
    "Mistral-7B-v0.1": {
        **llama(4096, 14336, 32, 32, 8, 32000, max_position_embeddings=32768, rope_theta=10000.0),
        "model_type": "mistral", "sliding_window": 4096,
    },
    "Mistral-7B-Instruct-v0.3": {
        **llama(4096, 14336, 32, 32, 8, 32768, max_position_embeddings=32768, rope_theta=1000000.0),
        "model_type": "mistral", "sliding_window": None,
    },
    "Mistral-Nemo-Instruct-2407": {
        **llama(5120, 14336, 40, 32, 8, 131072, max_position_embeddings=1024000, rope_theta=1000000.0, head_dim=128),
        "model_type": "mistral", "sliding_window": None,
    },
    "Qwen1.5-0.5B": qwen(
        "qwen2", 1024, 2816, 24, 16, 16, 151936, max_position_embeddings=32768, max_window_layers=21,
        sliding_window=32768, tie_word_embeddings=True,
    ),
    "Qwen2-7B-Instruct": qwen(
        "qwen2", 3584, 18944, 28, 28, 4, 152064, max_position_embeddings=32768, max_window_layers=28,
        sliding_window=131072, tie_word_embeddings=False,
    ),
    "Qwen2.5-0.5B": qwen(
        "qwen2", 896, 4864, 24, 14, 2, 151936, max_position_embeddings=32768, max_window_layers=24,
        sliding_window=32768, tie_word_embeddings=True, use_mrope=False,
    ),
    "Qwen2.5-Coder-1.5B": qwen(
        "qwen2", 1536, 8960, 28, 12, 2, 151936, max_position_embeddings=32768, max_window_layers=28,
        sliding_window=131072, tie_word_embeddings=True, use_mrope=False,
    ),
    "Qwen2.5-7B-Instruct, as its card says for long texts": qwen(
        "qwen2", 3584, 18944, 28, 28, 4, 152064, max_position_embeddings=32768, max_window_layers=28,
        sliding_window=131072, tie_word_embeddings=False,
        rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B, saved by transformers 5.17": {
        **sizes(1536, 8960, 28, 12, 2, 151936), "model_type": "qwen2", "dtype": "bfloat16", "hidden_act": "silu",
        "layer_types": ["full_attention"] * 28, "max_position_embeddings": 131072, "max_window_layers": 28,
        "pad_token_id": None, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "sliding_window": None, "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False,
    },
    "Qwen3-0.6B": qwen(
        "qwen3", 1024, 3072, 28, 16, 8, 151936, head_dim=128, attention_bias=False, max_position_embeddings=40960,
        max_window_layers=28, sliding_window=None, rope_scaling=None, tie_word_embeddings=True,
    ),
    "Qwen3-8B": qwen(
        "qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128, attention_bias=False, max_position_embeddings=40960,
        max_window_layers=36, sliding_window=None, rope_scaling=None, tie_word_embeddings=False,
    ),
    "Qwen3-30B-A3B": qwen(
        "qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, attention_bias=False, max_position_embeddings=40960,
        max_window_layers=48, sliding_window=None, rope_scaling=None, tie_word_embeddings=False,
        decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=768, norm_topk_prob=True, num_experts=128,
        num_experts_per_tok=8, output_router_logits=False, router_aux_loss_coef=0.001,
    ),
    "gemma-2b": gemma(
        "gemma", 2048, 16384, 18, 8, 1, 256000, head_dim=256, hidden_act="gelu", hidden_activation=None,
        max_position_embeddings=8192, rope_theta=10000.0, rope_scaling=None,
    ),
    "gemma-7b": gemma(
        "gemma", 3072, 24576, 28, 16, 16, 256000, head_dim=256, hidden_act="gelu_pytorch_tanh",
        max_position_embeddings=8192, rope_theta=10000.0,
    ),
    "gemma-2-2b": gemma(
        "gemma2", 2304, 9216, 26, 8, 4, 256000, head_dim=256, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", max_position_embeddings=8192, query_pre_attn_scalar=256,
        rope_theta=10000.0, sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        cache_implementation="hybrid",
    ),
    "gemma-2-27b": gemma(
        "gemma2", 4608, 36864, 46, 32, 16, 256000, head_dim=128, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", max_position_embeddings=8192, query_pre_attn_scalar=144,
        rope_theta=10000.0, sliding_window=4096, sliding_window_size=4096, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "gemma-3-270m": gemma(
        "gemma3_text", 640, 2048, 18, 4, 1, 262144, head_dim=256, hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=32768, query_pre_attn_scalar=256, rope_local_base_freq=10000.0, rope_scaling=None,
        rope_theta=1000000.0, sliding_window=512, _sliding_window_pattern=6, layer_types=MOSTLY_SLIDING * 3,
        attn_logit_softcapping=None, final_logit_softcapping=None, use_bidirectional_attention=False,
    ),
    "gemma-3-1b-it": gemma(
        "gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256, hidden_activation="gelu_pytorch_tanh",
        max_position_embeddings=32768, query_pre_attn_scalar=256, rope_local_base_freq=10000, rope_scaling=None,
        rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, cache_implementation="hybrid",
    ),
    "Phi-3-mini-4k-instruct": phi3(
        3072, 8192, 32, 32, 32, 32064, max_position_embeddings=4096, rope_scaling=None, sliding_window=2047,
        attention_bias=False, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
    "Phi-3-mini-128k-instruct": phi3(
        3072, 8192, 32, 32, 32, 32064, max_position_embeddings=131072, sliding_window=262144, rope_scaling=LONG,
    ),
    "Phi-3-mini-128k-instruct, its first release": phi3(
        3072, 8192, 32, 32, 32, 32064, max_position_embeddings=131072, sliding_window=262144,
        rope_scaling={**LONG, "type": "su"},
    ),
    "Phi-3-medium-4k-instruct": phi3(
        5120, 17920, 40, 40, 10, 32064, max_position_embeddings=4096, rope_scaling=None, sliding_window=2047,
    ),
    "Phi-4-mini-instruct": phi3(
        3072, 8192, 32, 24, 8, 200064, max_position_embeddings=131072, sliding_window=262144, rope_scaling=LONG,
        partial_rotary_factor=0.75, tie_word_embeddings=True, attention_bias=False, mlp_bias=False, lm_head_bias=False,
        full_attn_mod=1, interpolate_factor=1,
    ),
    "phi-4": phi3(
        5120, 17920, 40, 40, 10, 100352, max_position_embeddings=16384, original_max_position_embeddings=16384,
        rope_scaling=None, rope_theta=250000, sliding_window=None,
    ),
    "OLMo-2-0425-1B": {
        **llama(2048, 8192, 16, 16, 16, 100352, max_position_embeddings=4096, rope_theta=500000),
        "model_type": "olmo2", "rms_norm_eps": 1e-6, "attention_bias": False, "torch_dtype": "float32",
    },
    "OLMo-2-1124-7B": {
        **llama(4096, 11008, 32, 32, 32, 100352, max_position_embeddings=4096, rope_theta=500000),
        "model_type": "olmo2", "rms_norm_eps": 1e-6, "attention_bias": False, "torch_dtype": "float32",
    },
    "pythia-70m": neox(512, 6, 8, 50304),
    "pythia-160m": neox(768, 12, 12, 50304),
    "pythia-6.9b-deduped, saved by transformers 4.45": neox(
        4096, 32, 32, 50432, attention_bias=True, partial_rotary_factor=0.25, rope_scaling=None, rope_theta=10000,
    ),
    "pythia-12b": neox(5120, 36, 40, 50688),
    "gpt-neox-20b": neox(
        6144, 44, 64, 50432, hidden_act="gelu_fast", attention_probs_dropout_prob=0, hidden_dropout_prob=0,
    ),
    "RedPajama-INCITE-Base-3B-v1": neox(2560, 32, 32, 50432, rotary_pct=1.0, use_parallel_residual=False),
    "starcoder2-3b": {
        **sizes(3072, 12288, 30, 24, 2, 49152), "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 16384, "mlp_type": "default", "norm_epsilon": 1e-5, "norm_type": "layer_norm",
        "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True, "torch_dtype": "bfloat16",
    },
    "starcoder2-15b": {
        **sizes(6144, 24576, 40, 48, 4, 49152), "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 16384, "mlp_type": "default", "norm_epsilon": 1e-5, "norm_type": "layer_norm",
        "rope_theta": 100000, "sliding_window": 4096, "use_bias": True, "torch_dtype": "float32",
    },
    "opt-125m": opt(768, 3072, 12, 12),
    "opt-1.3b": opt(2048, 8192, 24, 32),
    "Mixtral-8x7B-v0.1": {
        **llama(4096, 14336, 32, 32, 8, 32000, max_position_embeddings=32768, rope_theta=1000000.0),
        "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False,
        "router_aux_loss_coef": 0.02, "sliding_window": None,
    },
    "gpt2": gpt2(768, 12, 12, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}),
    "gpt2-xl": gpt2(1600, 48, 25, output_past=True),
    "distilgpt2": gpt2(768, 6, 12, _num_labels=1, id2label={"0": "LABEL_0"}),
    "DialoGPT-small": gpt2(768, 12, 12, scale_attn_weights=True, n_inner=None, reorder_and_upcast_attn=False),
}  # fmt: skip
"""Those that are covered, each with its own sizes."""

WITHIN: Mapping[str, Mapping[str, Any]] = {
    "llava-1.5-7b-hf": {
        "model_type": "llava", "ignore_index": -100, "image_token_index": 32000, "tie_word_embeddings": False,
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "max_position_embeddings": 4096, "model_type": "llama",
            "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064,
        },
        "vision_config": {"hidden_size": 1024, "image_size": 336, "model_type": "clip_vision_model"},
        "vocab_size": 32064,
    },
    "llava-v1.6-mistral-7b-hf": {
        "model_type": "llava_next", "image_token_index": 32000,
        "text_config": {
            "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
            "torch_dtype": "bfloat16", "vocab_size": 32064,
        },
        "vision_config": {"hidden_size": 1024, "image_size": 336, "model_type": "clip_vision_model"},
    },
    "gemma-3-4b-it": {
        "model_type": "gemma3", "boi_token_index": 255999, "image_token_index": 262144, "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "vision_use_head": False},
    },
    "translategemma-27b-it, saved by transformers 5": {
        "model_type": "gemma3", "image_token_index": 262144, "dtype": "bfloat16",
        "text_config": {
            **sizes(5376, 21504, 12, 32, 16, 262208), "_sliding_window_pattern": 6, "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "head_dim": 128, "max_position_embeddings": 131072,
            "model_type": "gemma3_text", "query_pre_attn_scalar": 168, "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 1024,
            "rope_parameters": {
                "full_attention": {"factor": 8.0, "rope_type": "linear"},
                "sliding_attention": {"rope_type": "default"},
            },
            "layer_types": MOSTLY_SLIDING * 2,
        },
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    },
    "Mistral-Small-3.1-24B-Instruct-2503": {
        "model_type": "mistral3", "image_token_index": 10, "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "torch_dtype": "bfloat16", "vision_feature_layer": -1,
        "text_config": {
            **sizes(5120, 32768, 40, 32, 8, 131072), "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
            "max_position_embeddings": 131072, "model_type": "mistral", "rms_norm_eps": 1e-5,
            "rope_theta": 1000000000.0, "sliding_window": None, "use_cache": True,
        },
        "vision_config": {"head_dim": 64, "hidden_size": 1024, "model_type": "pixtral"},
    },
}  # fmt: skip
"""Those with a text model that is covered, and more. Where a text_config says no size, its class does."""

REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "embeddinggemma-300m": (
        gemma(
            "gemma3_text", 768, 1152, 24, 3, 1, 262144, head_dim=256, rope_local_base_freq=10000.0, rope_theta=1e6,
            sliding_window=512, _sliding_window_pattern=6, use_bidirectional_attention=True,
        ),
        "use_bidirectional_attention is True",
    ),
    "opt-350m": (
        {**opt(1024, 4096, 24, 16), "do_layer_norm_before": False, "word_embed_proj_dim": 512},
        "do_layer_norm_before is False; that is not covered for an opt model",
    ),
    "granite-3.1-2b-base": (
        {"model_type": "granite", **sizes(2048, 8192, 40, 32, 8, 49152)}, "model_type is 'granite'; the architectures"
    ),
    "Phi-3-small-8k-instruct": (
        {"model_type": "phi3small", **sizes(4096, 14336, 32, 32, 8, 100352)}, "model_type is 'phi3small'"
    ),
    "Llama-2-7b with a context that grows": (
        llama(4096, 11008, 32, 32, 32, 32000, rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope type 'dynamic' is not known",
    ),
    "paligemma-3b-pt-224": (
        {
            "model_type": "paligemma", "image_token_index": 257152, "projection_dim": 2048,
            "text_config": gemma("gemma", 2048, 16384, 18, 8, 1, 257216, num_image_tokens=256),
            "vision_config": {"model_type": "siglip_vision_model"},
        },
        "in a paligemma model the tokens of a prompt see one another in both directions",
    ),
}  # fmt: skip
"""Those that are not covered, and what is said."""
