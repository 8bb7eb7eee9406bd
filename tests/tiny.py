"""Tiny real models on disk, made in milliseconds and without a download: Hugging Face folders and GGUF files.

    make_llama(folder, layers=2, seed=0)             -> folder with config.json, model.safetensors, tokenizer.json ...
    make_gguf(path, quantization="Q8_0", seed=0)     -> a .gguf of the very same model, as llama.cpp would convert it

Both take the same sizes and the same seed gives the same weights, so one can be compared with the other. The
tokenizer is a real byte-level BPE, trained on the text below; the model has never been trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import zeropoint
from zeropoint.recipe import load_recipe

THETA = 10000.0
MAX_POSITIONS = 512
NORM_EPS = 1e-5
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TEXT = """
The miller kept three cats, and the cats kept the mill free of mice; that was the whole of their agreement.
When the river rose in 1784 the water stood as high as the second window, and the flour of a whole year was lost.
"What shall we do now?" asked the youngest. Nobody answered, because nobody knew; they'd never seen such a flood.
They counted what was left: 12 sacks of rye, 7 of barley, 3 of wheat, and 1 barrel of salted fish (half empty).
In the morning they began again. They carried the stones, they mended the wheel, and they sang while they worked.
Der Fluß war breit und kühl, und die Mühle stand am Ufer. Où est le chat? Le chat dort près de la fenêtre.
def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)
for (int i = 0; i < 100; ++i) { sum[i] = a[i] * b[i] + 0.5; }
The quick brown fox jumps over the lazy dog, and then the dog jumps over the fox; so it goes on for another hour.
Numbers matter: 3.14159, 2.71828, 1,000,000 and -40 are all numbers, and so are 0x7f and 1e-5.
Every evening the old woman told the same story, and every evening the children asked for the same story again.
"""


@dataclass(frozen=True)
class Sizes:
    """The numbers of one tiny Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    head_dim: int
    rope_scaling: Mapping[str, Any] | None
    seed: int


def make_llama(
    folder: str | Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 96,
    vocab: int = 300,
    tied: bool = True,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    rope_scaling: Mapping[str, Any] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    shards: int = 1,
    seed: int = 0,
    head_dim: int | None = None,
) -> Path:
    """Write a Llama as `transformers` would save it, and return the folder.

    rope_scaling: LLAMA3_SCALING or the like. shards: weight files; more than one adds the index. vocab: at least 259
    (256 bytes and 3 special tokens). head_dim: features per head, hidden / heads unless given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(
        hidden, layers, heads, kv_heads, intermediate, vocab, tied, attention_bias, mlp_bias,
        head_dim or hidden // heads, rope_scaling, seed,
    )  # fmt: skip
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights(sizes).items()}
    _save(folder, tensors, shards)
    _write_json(folder / "config.json", _config(sizes, dtype))
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2})
    (folder / "tokenizer.json").write_text(byte_level_tokenizer(vocab).to_str(pretty=True), encoding="utf-8")
    named = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    _write_json(folder / "tokenizer_config.json", {**named, "tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def make_gguf(
    path: str | Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 96,
    vocab: int = 300,
    tied: bool = True,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    rope_scaling: Mapping[str, Any] | None = None,
    seed: int = 0,
    head_dim: int | None = None,
    quantization: str = "F32",
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
    pre: str = "smollm",
    architecture: str = "llama",
    metadata: Mapping[str, str | int | float | bool] | None = None,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the Llama of the same sizes and seed as a GGUF file, and return its path.

    quantization: what the matrices are stored as ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0" ...); norms and
    biases stay float32, as llama.cpp keeps them. Rows of q and k are permuted as its converter does. metadata: more
    keys, written last. extra_tensors: more tensors, float32, by their GGUF names.
    """
    sizes = Sizes(
        hidden, layers, heads, kv_heads, intermediate, vocab, tied, attention_bias, mlp_bias,
        head_dim or hidden // heads, rope_scaling, seed,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    _add_sizes(writer, sizes)
    if tokenizer == "gpt2":
        add_byte_level(writer, vocab, pre)
    else:
        _add_sentencepiece(writer, vocab)
    writer.add_chat_template(CHAT_TEMPLATE)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    kind = gguf.GGMLQuantizationType[quantization]
    for name, tensor in weights(sizes).items():
        data = _permuted(name, tensor.numpy(), sizes)
        stored = kind if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(np.ascontiguousarray(data), stored), raw_dtype=stored)
    if rope_scaling:
        writer.add_tensor("rope_freqs.weight", _rope_factors(rope_scaling, sizes.head_dim))
    for name, data in (extra_tensors or {}).items():
        writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def quantized(folder: Path, recipe: str = "w4a16") -> Path:
    """Write a tiny Llama and what `recipe` makes of it, rounded to nearest, and return the folder of the latter."""
    rules = ["weights.group_size=32"] if load_recipe(recipe).weights.granularity == "group" else []
    settings = load_recipe(recipe, [*rules, "rounding=rtn", "range=minmax"])
    zeropoint.quantize(make_llama(folder / "model"), folder / "quantized", recipe=settings)
    return folder / "quantized"


def weights(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Return random float32 weights by their Hugging Face names; linears keep the scale of what they read."""
    random = torch.Generator().manual_seed(sizes.seed)

    def normal(*shape: int, std: float) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * std

    def linear(name: str, rows: int, cols: int, bias: bool) -> dict[str, torch.Tensor]:
        made = {f"{name}.weight": normal(rows, cols, std=1 / math.sqrt(cols))}
        return made | ({f"{name}.bias": normal(rows, std=0.1)} if bias else {})

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + normal(sizes.hidden, std=0.1)}

    q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    # 2 / sqrt(hidden) gives logits with a standard deviation of about 2: neither flat nor one-hot
    found = {"model.embed_tokens.weight": normal(sizes.vocab, sizes.hidden, std=2 / math.sqrt(sizes.hidden))}
    for index in range(sizes.layers):
        block = f"model.layers.{index}"
        found |= norm(f"{block}.input_layernorm")
        found |= linear(f"{block}.self_attn.q_proj", q, sizes.hidden, sizes.attention_bias)
        found |= linear(f"{block}.self_attn.k_proj", kv, sizes.hidden, sizes.attention_bias)
        found |= linear(f"{block}.self_attn.v_proj", kv, sizes.hidden, sizes.attention_bias)
        found |= linear(f"{block}.self_attn.o_proj", sizes.hidden, q, sizes.attention_bias)
        found |= norm(f"{block}.post_attention_layernorm")
        found |= linear(f"{block}.mlp.gate_proj", sizes.intermediate, sizes.hidden, sizes.mlp_bias)
        found |= linear(f"{block}.mlp.up_proj", sizes.intermediate, sizes.hidden, sizes.mlp_bias)
        found |= linear(f"{block}.mlp.down_proj", sizes.hidden, sizes.intermediate, sizes.mlp_bias)
    found |= norm("model.norm")
    if not sizes.tied:
        found["lm_head.weight"] = normal(sizes.vocab, sizes.hidden, std=2 / math.sqrt(sizes.hidden))
    return found


@cache
def byte_level_tokenizer(vocab: int) -> Tokenizer:
    """Return a byte-level BPE with single digits, as SmolLM's, of at most `vocab` tokens."""
    if vocab < 256 + len(SPECIAL_TOKENS):
        raise ValueError(
            f"a byte-level vocabulary needs 256 bytes and {len(SPECIAL_TOKENS)} special tokens, not {vocab}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return tokenizer


@cache
def sentencepiece_tokenizer(vocab: int) -> Tokenizer:
    """Return a BPE over characters with byte fallback, as Llama 2's, of at most `vocab` tokens."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(set(TEXT.replace(" ", "▁")) - set("0123456789\n"))[: vocab - 259]
    room = vocab - 256
    trainer = trainers.BpeTrainer(
        vocab_size=room, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=room - 3, show_progress=False
    )
    learner.train_from_iterator(TEXT.splitlines(), trainer)
    state = json.loads(learner.to_str())["model"]
    learned = sorted(state["vocab"], key=state["vocab"].__getitem__)[3:]
    merged = ["".join(pair) for pair in state["merges"]]
    # sentencepiece puts merges first, best first, and the bare characters at the end
    order = [*special, *bytes_, *merged, *(token for token in learned if token not in set(merged))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(order)},
            merges=[tuple(pair) for pair in state["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = learner.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a Llama tensor: "blk.0.attn_q.weight" for "model.layers.0.self_attn.q_proj.weight"."""
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers.": "blk.", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    }  # fmt: skip
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


def _config(sizes: Sizes, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": sizes.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": dtype,
        "eos_token_id": 2,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": MAX_POSITIONS,
        "mlp_bias": sizes.mlp_bias,
        "model_type": "llama",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_theta": THETA, "rope_type": "default", **(sizes.rope_scaling or {})},
        "tie_word_embeddings": sizes.tied,
        "use_cache": True,
        "vocab_size": sizes.vocab,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    where = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _add_sizes(writer: gguf.GGUFWriter, sizes: Sizes) -> None:
    writer.add_name("Tiny")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(MAX_POSITIONS)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.intermediate)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_vocab_size(sizes.vocab)
    writer.add_rope_dimension_count(sizes.head_dim)
    if sizes.head_dim != sizes.hidden // sizes.heads:
        writer.add_key_length(sizes.head_dim)
        writer.add_value_length(sizes.head_dim)


def add_byte_level(writer: gguf.GGUFWriter, vocab: int, pre: str) -> None:
    """Add the byte-level tokenizer of so many tokens. pre: llama.cpp's name of how it cuts text."""
    state = json.loads(byte_level_tokenizer(vocab).to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    padded = tokens + [f"[PAD{index}]" for index in range(len(tokens), vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(padded)
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    kinds = [control if token in SPECIAL_TOKENS else normal for token in tokens]
    writer.add_token_types(kinds + [unused] * (vocab - len(tokens)))
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def _add_sentencepiece(writer: gguf.GGUFWriter, vocab: int) -> None:
    state = json.loads(sentencepiece_tokenizer(vocab).to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    byte, normal = gguf.TokenType.BYTE, gguf.TokenType.NORMAL
    fixed = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    pieces = len(tokens) - 259
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(len(tokens), vocab)])
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(pieces)] + [-1000.0] * (vocab - len(tokens)))
    kinds = fixed + [byte] * 256 + [normal] * pieces
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * (vocab - len(tokens)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def _permuted(name: str, data: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Return q's and k's rows in llama.cpp's order: the two halves of each head interleaved."""
    heads = {"q_proj": sizes.heads, "k_proj": sizes.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return data
    halves = data.reshape(heads, 2, len(data) // heads // 2, *data.shape[1:])
    return halves.swapaxes(1, 2).reshape(data.shape)


def _rope_factors(scaling: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """Return what llama.cpp stores for llama3 rope scaling: the divisor of each frequency, float32 (head_dim / 2,)."""
    frequency = 1.0 / THETA ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / scaling["factor"] + blend)).astype(np.float32)
