"""From the metadata of a GGUF file to the config.json that transformers would write for the same model.

A key under the architecture's name that is not known here may change the result, so it is refused unless it says "off".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
OTHERS = {
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "vocab_size", "tensor_data_layout",
}  # fmt: skip
READS = ("q_proj", "k_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id", "unknown": "unk_token_id"}


def llama_config(metadata: Mapping[str, Any], names: Collection[str], path: Path) -> dict[str, Any]:
    """Return the config of a Llama; see `_config`."""
    return {
        **_config(metadata, names, path, "llama", "LlamaForCausalLM"),
        "attention_bias": _has_biases(names, (*READS, "o_proj"), path),
        "mlp_bias": _has_biases(names, MLP, path),
        "pretraining_tp": 1,
    }


def qwen2_config(metadata: Mapping[str, Any], names: Collection[str], path: Path) -> dict[str, Any]:
    """Return the config of a Qwen2, whose q, k and v have biases and nothing else has; see `_config`."""
    if not _has_biases(names, READS, path) or _has_biases(names, ("o_proj", *MLP), path):
        raise CheckpointError(
            f"{path}: q, k and v of a Qwen2 have a bias and no other linear has, and here they do not"
        )
    return {**_config(metadata, names, path, "qwen2", "Qwen2ForCausalLM"), "use_sliding_window": False}


def qwen3_config(metadata: Mapping[str, Any], names: Collection[str], path: Path) -> dict[str, Any]:
    """Return the config of a Qwen3; see `_config`."""
    if _has_biases(names, MLP, path):
        raise CheckpointError(f"{path}: {', '.join(MLP)} have biases, which those of a Qwen3 have not")
    return {
        **_config(metadata, names, path, "qwen3", "Qwen3ForCausalLM"),
        "attention_bias": _has_biases(names, (*READS, "o_proj"), path),
        "use_sliding_window": False,
    }


def _config(
    metadata: Mapping[str, Any], names: Collection[str], path: Path, model_type: str, architecture: str
) -> dict[str, Any]:
    """Return what the configs of decoders like Llama share; their tensors have the Hugging Face names `names`.

    Numbers that the file holds as float32 (rms_norm_eps) come out as that float32. dtype is "float32", as which the
    tensors are read. llama.cpp's name of the architecture is the model_type.
    Raises: CheckpointError naming a key that is missing, no positive number, or changes the result in an unknown way.
    """
    prefix = f"{model_type}."
    _refuse_unknown(metadata, prefix, path)
    sizes = {theirs: _count(metadata, prefix + ours, path) for ours, theirs in SIZES.items()}
    heads = sizes["num_attention_heads"]
    vocab_size = _vocab_size(metadata, prefix, path)
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": _head_dim(metadata, prefix, sizes["hidden_size"] // heads, path),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": model_type,
        "num_key_value_heads": _count(metadata, f"{prefix}attention.head_count_kv", path, default=heads),
        "rms_norm_eps": _number(metadata, f"{prefix}attention.layer_norm_rms_epsilon", path),
        "rope_parameters": _rope(metadata, prefix, path),
        "tie_word_embeddings": "lm_head.weight" not in names,
        "use_cache": True,
        "vocab_size": vocab_size,
        **sizes,
        **_special_token_ids(metadata, vocab_size, path),
    }


def llama3_scaling(
    factors: NDArray[np.float32], theta: float, default_context: int = 8192
) -> dict[str, str | float | int] | None:
    """Return the rope_parameters that `factors` were made from, or None if no parameters give these factors.

    factors: float32 (head_dim / 2,), the divisor of each frequency: llama.cpp's rope_freqs.weight, all that it keeps of
    a scaling of type llama3. There, with x the turns of a frequency in the original context,
    1 / factors = blend + (1 - blend) / factor,  blend = clip((x - low) / (high - low), 0, 1):
    a straight line between its ends, so that `factor` is the largest divisor and two points on the line give the rest.
    Only ratios of low, high and the context matter; low is 1, as in every Llama.
    Source: Llama 3.1's reference implementation (apply_scaling).
    """
    import numpy as np

    half, factor = len(factors), float(factors.max(initial=1.0))
    if not (np.isfinite(factors).all() and (factors >= 1).all() and factor > 1 and theta > 1):
        return None
    frequency = theta ** -(np.arange(half, dtype=np.float64) / half)
    blend = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    inside = (blend > 1e-4) & (blend < 1 - 1e-4)
    candidates = [(4.0, default_context)]  # every Llama's; needed where too few frequencies fall on the line
    if inside.sum() > 1:
        slope, start = np.polyfit(frequency[inside], blend[inside], 1)
        if start < 0 < slope:
            candidates.append((round(1 - 1 / start, 3), round(-2 * math.pi * slope / start)))
    for high, context in candidates:
        expected = np.clip((context * frequency / (2 * math.pi) - 1) / max(high - 1, 1e-9), 0, 1)
        if np.allclose(expected, blend, rtol=0, atol=1e-5):  # float32 divisors are good to 1e-6
            return {
                "rope_type": "llama3",
                "factor": round(factor, 4),
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def _special_token_ids(metadata: Mapping[str, Any], vocab_size: int, path: Path) -> dict[str, int]:
    """Return bos_token_id, eos_token_id, pad_token_id, unk_token_id as far as the file has them.

    Raises: CheckpointError if one is not the number of a token.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else vocab_size
    found = {}
    for ours, theirs in TOKENS.items():
        token = metadata.get(f"tokenizer.ggml.{ours}_token_id")
        if token is not None and not (type(token) is int and 0 <= token < count):
            raise CheckpointError(
                f"{path}: tokenizer.ggml.{ours}_token_id is {token!r}; the file has the tokens 0 to {count - 1}"
            )
        if token is not None:
            found[theirs] = token
    return found


def _refuse_unknown(metadata: Mapping[str, Any], prefix: str, path: Path) -> None:
    known = {prefix + name for name in (*SIZES, *OTHERS)}
    for key, value in metadata.items():
        if key.startswith(prefix) and key not in known and value not in (0, False, "", "none"):
            raise CheckpointError(
                f"{path}: {key} is {str(value)[:60]}, which may change what the model computes and is not covered; "
                "give the Hugging Face folder that the file was converted from"
            )


def _count(metadata: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CheckpointError(
            f"{path}: {key} is {str(value)[:60]}; a positive number belongs there, one for all layers"
        )
    return value


def _number(metadata: Mapping[str, Any], key: str, path: Path, default: float | None = None) -> float:
    value = metadata.get(key, default)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {key} is {str(value)[:60]}; a positive number belongs there")
    return float(value)


def _head_dim(metadata: Mapping[str, Any], prefix: str, default: int, path: Path) -> int:
    """Return the features per head, which keys, values and the rotation must share."""
    rotated = _count(metadata, f"{prefix}rope.dimension_count", path, default=default)
    head_dim = _count(metadata, f"{prefix}attention.key_length", path, default=rotated)
    if {rotated, _count(metadata, f"{prefix}attention.value_length", path, default=head_dim)} != {head_dim}:
        raise CheckpointError(
            f"{path}: keys have {head_dim} features, values or the rotation another number, which is not covered"
        )
    return head_dim


def _vocab_size(metadata: Mapping[str, Any], prefix: str, path: Path) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return _count(metadata, f"{prefix}vocab_size", path, default=len(tokens) if isinstance(tokens, list) else None)


def _rope(metadata: Mapping[str, Any], prefix: str, path: Path) -> dict[str, Any]:
    """Return rope_parameters, as transformers has them since version 5."""
    parameters: dict[str, Any] = {
        "rope_theta": _number(metadata, f"{prefix}rope.freq_base", path, default=10000.0),
        "rope_type": "default",
    }
    old_factor = _number(metadata, f"{prefix}rope.scale_linear", path, default=1.0)
    kind = metadata.get(f"{prefix}rope.scaling.type", "linear" if old_factor != 1 else "none")
    if kind not in ("none", "linear"):
        raise CheckpointError(
            f"{path}: {prefix}rope.scaling.type is {str(kind)[:60]!r}; covered are 'none', 'linear' and "
            "llama3's rope_freqs; give the Hugging Face folder that the file was converted from"
        )
    factor = _number(metadata, f"{prefix}rope.scaling.factor", path, default=old_factor)
    if kind == "linear" and factor != 1:
        parameters |= {"rope_type": "linear", "factor": factor}
    return parameters


def _has_biases(names: Iterable[str], linears: tuple[str, ...], path: Path) -> bool:
    """Return whether these linears have biases, all of them or none in every layer."""
    kinds: dict[str, set[str]] = {"weight": set(), "bias": set()}
    for name in names:
        linear, kind = name.rsplit(".", 1)
        if linear.endswith(linears):
            kinds[kind].add(linear)
    biases, weights = kinds["bias"], kinds["weight"]
    if biases and biases != weights:
        missing = min(weights ^ biases)
        raise CheckpointError(
            f"{path}: some of {', '.join(linears)} have a bias and {missing} has none; all or none of them have one"
        )
    return bool(biases)
