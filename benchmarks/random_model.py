"""Models with random weights: for speed the shape is all that counts. Written tensor by tensor, in little memory.

write_llama(folder, TINYLLAMA)       config.json and bfloat16 shards, one for each block; there is no tokenizer
write_gguf(path, folder, "Q4_0")     the weights of any folder as llama.cpp reads them
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.models import load_model
from zeropoint.models.parts import Config


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama with embedding and head apart."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    positions: int = 2048

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.hidden // self.heads


TINYLLAMA = Shape(hidden=2048, layers=22, heads=32, kv_heads=4, intermediate=5632, vocab=32000)


def write_llama(folder: Path, shape: Shape) -> Path:
    """Write a checkpoint; nothing is done where config.json, which is written last, is there."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)

    def linear(rows: int, cols: int) -> torch.Tensor:
        return (torch.randn(rows, cols, generator=random) * cols**-0.5).bfloat16()

    places: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    norm = torch.ones(shape.hidden, dtype=torch.bfloat16)
    kv = shape.kv_heads * shape.head_dim
    for index in range(shape.layers):
        block = f"model.layers.{index}"
        tensors = {
            f"{block}.input_layernorm.weight": norm.clone(),
            f"{block}.self_attn.q_proj.weight": linear(shape.hidden, shape.hidden),
            f"{block}.self_attn.k_proj.weight": linear(kv, shape.hidden),
            f"{block}.self_attn.v_proj.weight": linear(kv, shape.hidden),
            f"{block}.self_attn.o_proj.weight": linear(shape.hidden, shape.hidden),
            f"{block}.post_attention_layernorm.weight": norm.clone(),
            f"{block}.mlp.gate_proj.weight": linear(shape.intermediate, shape.hidden),
            f"{block}.mlp.up_proj.weight": linear(shape.intermediate, shape.hidden),
            f"{block}.mlp.down_proj.weight": linear(shape.hidden, shape.intermediate),
        }
        save(f"block-{index:03}.safetensors", tensors)
    save("embedding.safetensors", {"model.embed_tokens.weight": linear(shape.vocab, shape.hidden)})
    save("head.safetensors", {"model.norm.weight": norm, "lm_head.weight": linear(shape.vocab, shape.hidden)})
    index_text = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2), encoding="utf-8")
    return folder


def write_gguf(path: Path, folder: Path, quantization: str) -> Path:
    """Write the checkpoint in `folder` as one file; every matrix, head and embedding too.

    quantization: what gguf can make in numpy: Q4_0, Q4_1, Q5_0, Q8_0, BF16. For speed alone: the rows of q and k are
    not permuted, as a converter does, and the tokens have made-up names.
    """
    if path.exists():
        return path
    checkpoint = open_checkpoint(folder)
    config = load_model(checkpoint.config).config
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _describe(writer, config)
    kind = gguf.GGMLQuantizationType[quantization]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.layers)
    for name, info in checkpoint.tensors.items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if len(info.shape) == 1:
            writer.add_tensor_info(stored, info.shape, np.dtype(np.float32), 4 * info.shape[0])
        else:
            rows = gguf.quant_shape_to_byte_shape(info.shape, kind)
            writer.add_tensor_info(stored, rows, np.dtype(np.uint8), int(np.prod(rows)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in checkpoint.tensors:
        values = checkpoint.read(name).float().numpy()
        writer.write_tensor_data(values if values.ndim == 1 else gguf.quants.quantize(values, kind))
    writer.close()
    partial.rename(path)
    return path


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _describe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{index}" for index in range(len(tokens), config.vocab_size)]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (len(tokens) - 259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
