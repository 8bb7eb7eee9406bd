"""GGUF files of any architecture that is read, from a model of transformers, as llama.cpp's converter writes them.

The names of the tensors are those of the gguf package. What the converter does to values, and which keys it writes, was
read in it; that llama.cpp gives the model's logits for such a file was seen by hand (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import tiny

ARCHES = {
    "gemma3_text": "gemma3", "gpt_neox": "gptneox", "mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe",
}  # fmt: skip
"""llama.cpp's name, where it is not the model_type."""
INTERLEAVED = ("llama", "smollm3")
GEMMAS = ("gemma", "gemma2", "gemma3")

Values = np.ndarray[Any, np.dtype[np.float32]]


def arch_of(model: Any) -> str:
    """llama.cpp's name of a model's architecture."""
    return ARCHES.get(model.config.model_type, model.config.model_type)


def write_gguf(path: Path, model: Any, *, quantization: str = "F32", pre: str = "qwen2", **changes: Any) -> Path:
    """Write a model of transformers, and return the path.

    quantization: of the matrices. pre: how the byte-level tokenizer cuts text. changes: keys of the architecture, with
    "__" for a dot, that replace what the converter would write; None leaves one out.
    """
    arch, config = arch_of(model), model.config
    writer = gguf.GGUFWriter(path, arch)
    fields = {**_fields(arch, config), **{key.replace("__", "."): value for key, value in changes.items()}}
    for key, value in fields.items():
        _add(writer, f"{arch}.{key}", value)
    tiny.add_byte_level(writer, config.vocab_size, pre)
    kind = gguf.GGMLQuantizationType[quantization]
    for name, values in _tensors(arch, model):
        stored = kind if values.ndim > 1 and "ffn_gate_inp" not in name else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _fields(arch: str, config: Any) -> dict[str, object]:
    """The keys of an architecture that the converter writes; None: it does not."""
    alike = arch in ("gpt2", "gptneox")  # keys are as many as queries
    head_dim = None if alike or arch == "phi3" else getattr(config, "head_dim", None)
    epsilon = next(key for key in EPSILONS if hasattr(config, key))
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": (config.n_inner or 4 * config.n_embd) if arch == "gpt2" else config.intermediate_size,
        "vocab_size": config.vocab_size if arch in INTERLEAVED else None,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": None if alike else config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        f"attention.{EPSILONS[epsilon]}": float(getattr(config, epsilon)),
        "use_parallel_residual": getattr(config, "use_parallel_residual", None),
        **_rotation(arch, config),
        **_window_and_caps(arch, config),
        **_experts(arch, config),
    }


EPSILONS = {
    "rms_norm_eps": "layer_norm_rms_epsilon", "layer_norm_epsilon": "layer_norm_epsilon",
    "layer_norm_eps": "layer_norm_epsilon", "norm_epsilon": "layer_norm_epsilon",
}  # fmt: skip


def _rotation(arch: str, config: Any) -> dict[str, object]:
    if arch in ("gpt2", "gemma", "gemma2"):  # of these Gemmas it writes nothing
        return {}
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    heads, hidden = config.num_attention_heads, config.hidden_size
    part = rope.get("partial_rotary_factor", 1.0)
    if arch == "gptneox":  # nor the base of this one
        return {"rope.dimension_count": int(part * (hidden // heads))}
    found: dict[str, object] = {"rope.freq_base": float(rope["rope_theta"])}
    if rope["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if arch in INTERLEAVED:
        found["rope.dimension_count"] = getattr(config, "head_dim", None) or hidden // heads
    if arch == "gemma3":
        found["rope.freq_base_swa"] = float(config.rope_parameters["sliding_attention"]["rope_theta"])
    if arch == "phi3":
        context = config.original_max_position_embeddings
        found |= {
            "rope.dimension_count": int(part * hidden) // heads,
            "rope.scaling.original_context_length": context,
        }
        if "long_factor" in rope:
            grown = math.log(config.max_position_embeddings / context) / math.log(context)
            found["rope.scaling.attn_factor"] = math.sqrt(1 + grown)
    return found


def _window_and_caps(arch: str, config: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    if arch in ("phi3", "gemma2", "gemma3"):
        found["attention.sliding_window"] = config.sliding_window or 0
    if arch in ("gemma2", "gemma3"):
        found["attn_logit_softcapping"] = config.attn_logit_softcapping
        found["final_logit_softcapping"] = config.final_logit_softcapping
    return found


def _experts(arch: str, config: Any) -> dict[str, object]:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts is None:
        return {}
    inner = config.moe_intermediate_size if arch == "qwen3moe" else None
    used = config.num_experts_per_tok
    return {"expert_count": experts, "expert_used_count": used, "expert_feed_forward_length": inner}


def _tensors(arch: str, model: Any) -> Iterator[tuple[str, Values]]:
    """The tensors by llama.cpp's names, with the values that the converter stores."""
    config = model.config
    names = gguf.get_tensor_name_map(
        next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), config.num_hidden_layers
    )
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if tied and name in ("lm_head.weight", "embed_out.weight"):
            continue
        if name.endswith("experts.gate_up_proj"):
            half = values.shape[1] // 2
            block = name.split(".")[2]
            yield f"blk.{block}.ffn_gate_exps.weight", values[:, :half]
            yield f"blk.{block}.ffn_up_exps.weight", values[:, half:]
            continue
        full = f"{name}.weight" if name.endswith("experts.down_proj") else name
        stored = names.get_name(full, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        yield stored, _values(arch, config, name, values)
    rope = getattr(config, "rope_parameters", None) or {}
    for key in ("long", "short"):
        if f"{key}_factor" in rope:
            yield f"rope_factors_{key}.weight", np.array(rope[f"{key}_factor"], np.float32)


def _values(arch: str, config: Any, name: str, values: Values) -> Values:
    linear = name.split(".")[-2]
    if arch in GEMMAS and name.endswith("norm.weight"):
        return values + np.float32(1)
    if arch in INTERLEAVED and linear in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if linear == "q_proj" else config.num_key_value_heads
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if arch == "gptneox" and linear == "query_key_value":
        heads = config.num_attention_heads
        return values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    if arch == "gpt2" and linear in ("c_attn", "c_proj", "c_fc") and values.ndim > 1:
        return values.T
    return values
