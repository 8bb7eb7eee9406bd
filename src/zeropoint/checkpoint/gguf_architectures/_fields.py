"""The metadata of a GGUF file, each value of its type or refused by its key; and what most config.json have in common.

A key under the architecture's name that its file does not know may change the result, so it is refused unless it says
"off". Numbers that the file holds as float32 (rms_norm_eps) come out as that float32.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint.errors import CheckpointError

SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
ROPE = {
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
    "rope.scaling.original_context_length", "rope.scaling.finetuned",
}  # fmt: skip
HEADS = {"attention.head_count_kv", "attention.key_length", "attention.value_length"}
ALWAYS = {"vocab_size", "tensor_data_layout"}
RMS_EPS, LAYER_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"

TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id", "unknown": "unk_token_id"}
READS = ("q_proj", "k_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ELSE = "give the Hugging Face folder that the file was converted from"

DEFAULT_THETA = 10000.0
"""llama.cpp's, where a file has no rope.freq_base."""

MOST = (1 << 31) - 1
MAX_EXPERTS, MAX_LAYERS = 4096, 10_000


@dataclass(frozen=True)
class Fields:
    """The metadata of a GGUF file, by llama.cpp's keys without the architecture's name.

    arch: that name. names: of the tensors, Hugging Face's. tied: whether there is no head beside the embedding.
    Every method raises CheckpointError for a value that no model can have, naming its key.
    """

    metadata: Mapping[str, Any]
    arch: str
    names: Collection[str]
    tied: bool
    path: Path

    def get(self, key: str, default: object = None) -> Any:
        """Return a value as it is."""
        return self.metadata.get(f"{self.arch}.{key}", default)

    def refused(self, key: str, what: str) -> CheckpointError:
        """Return the error for the value of a key. what: belongs there."""
        return CheckpointError(f"{self.path}: {self.arch}.{key} is {str(self.get(key))[:60]}; {what}")

    def count(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """Return a whole number from 1 to `most`."""
        value = self.get(key, default)
        if type(value) is not int or not 0 < value <= most:
            raise self.refused(key, "a positive number belongs there, one for all layers")
        return value

    def count_or_none(self, key: str) -> int | None:
        """Return a whole number, or None where it is missing or 0."""
        return self.count(key) if self.get(key) else None

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0."""
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.refused(key, "a positive number belongs there")
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        """Return a number, or None where it is missing or 0."""
        return self.number(key) if self.get(key) else None

    def flag(self, key: str, *, default: bool) -> bool:
        """Return whether a key says true."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, "true or false belongs there")
        return value

    def require_known(self, *keys: str) -> None:
        """Refuse a key of the architecture that is neither of these nor says "off"."""
        known = {f"{self.arch}.{key}" for key in (*keys, *SIZES, *ALWAYS)}
        for key, value in self.metadata.items():
            if key.startswith(f"{self.arch}.") and key not in known and value not in (0, False, "", "none"):
                raise CheckpointError(
                    f"{self.path}: {key} is {str(value)[:60]}, which may change what the model computes and is not "
                    f"covered; {ELSE}"
                )

    def has_biases(self, *linears: str) -> bool:
        """Return whether these linears have biases, all of them or none in every layer."""
        kinds: dict[str, set[str]] = {"weight": set(), "bias": set()}
        for name in self.names:
            linear, kind = name.rsplit(".", 1)
            if linear.endswith(linears):
                kinds[kind].add(linear)
        biases, weights = kinds["bias"], kinds["weight"]
        if biases and biases != weights:
            missing = min(weights ^ biases)
            raise CheckpointError(
                f"{self.path}: some of {', '.join(linears)} have a bias and {missing} has none; all or none of them "
                "have one"
            )
        return bool(biases)

    def require_no_biases(self, *linears: str) -> None:
        """Refuse biases of linears that have none in this architecture."""
        if any(name.endswith(tuple(f"{linear}.bias" for linear in linears)) for name in self.names):
            raise CheckpointError(f"{self.path}: {', '.join(linears)} have biases, which those of {self.arch} have not")

    def vocab_size(self) -> int:
        """Return the number of tokens, which is written or counted."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return self.count("vocab_size", len(tokens) if isinstance(tokens, list) else None)

    def rotated(self, head_dim: int) -> int:
        """Return how many features of a head are rotated, its first ones."""
        rotated = self.count("rope.dimension_count", head_dim)
        if rotated > head_dim or rotated % 2:
            raise self.refused("rope.dimension_count", f"an even number up to {head_dim} belongs there")
        return rotated


def base(fields: Fields, model_type: str, architecture: str) -> dict[str, Any]:
    """Return what every config.json has. dtype is "float32", as which the tensors are read."""
    sizes = {theirs: fields.count(ours) for ours, theirs in SIZES.items()}
    vocab_size = fields.vocab_size()
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "dtype": "float32",
        "initializer_range": 0.02,
        "model_type": model_type,
        "tie_word_embeddings": fields.tied,
        "use_cache": True,
        "vocab_size": vocab_size,
        **sizes,
        **_special_token_ids(fields.metadata, vocab_size, fields.path),
    }


def decoder(fields: Fields, model_type: str, architecture: str, *known: str, eps_key: str = RMS_EPS) -> dict[str, Any]:
    """Return what the configs of decoders like Llama have in common.

    known: more keys that the caller reads. eps_key: where the epsilon of the norms is.
    Raises: CheckpointError, see `Fields`; also for a key that is not known.
    """
    fields.require_known(*known, *HEADS, *ROPE, eps_key)
    found = base(fields, model_type, architecture)
    heads = found["num_attention_heads"]
    return {
        **found,
        "head_dim": head_dim(fields, found["hidden_size"] // heads),
        "hidden_act": "silu",
        "num_key_value_heads": fields.count("attention.head_count_kv", heads),
        "rms_norm_eps": fields.number(eps_key),
        "rope_parameters": rope(fields),
    }


def head_dim(fields: Fields, default: int) -> int:
    """Return the features per head, which keys, values and the rotation must share.

    default: of a file that does not say. Without attention.key_length the rotation says it, as in older files.
    """
    rotated = fields.count("rope.dimension_count", default)
    size = fields.count("attention.key_length", rotated)
    if fields.get("rope.dimension_count") is None:
        rotated = size
    if {rotated, fields.count("attention.value_length", size)} != {size}:
        raise CheckpointError(
            f"{fields.path}: keys have {size} features, values or the rotation another number, which is not covered"
        )
    return size


def equal_heads(fields: Fields, found: Mapping[str, Any]) -> int:
    """Return the features per head of a model whose heads make up the hidden size, and keys as many as queries.

    found: what `base` returned.
    """
    heads = found["num_attention_heads"]
    size = found["hidden_size"] // heads or 1
    wanted = {"attention.head_count_kv": heads, "attention.key_length": size, "attention.value_length": size}
    for key, only in wanted.items():
        if fields.count(key, only) != only:
            raise fields.refused(key, f"{only} belongs there, by the other sizes")
    return int(size)


def rope(fields: Fields) -> dict[str, Any]:
    """Return rope_parameters, as transformers has them since version 5."""
    parameters: dict[str, Any] = {"rope_theta": fields.number("rope.freq_base", DEFAULT_THETA), "rope_type": "default"}
    old_factor = fields.number("rope.scale_linear", 1.0)
    kind = fields.get("rope.scaling.type", "linear" if old_factor != 1 else "none")
    if kind not in ("none", "linear"):
        raise CheckpointError(
            f"{fields.path}: {fields.arch}.rope.scaling.type is {str(kind)[:60]!r}; covered are 'none', 'linear' and "
            f"llama3's rope_freqs; {ELSE}"
        )
    factor = fields.number("rope.scaling.factor", old_factor)
    if kind == "linear" and factor != 1:
        parameters |= {"rope_type": "linear", "factor": factor}
    return parameters


def part(rotated: int, size: int) -> float:
    """Return the partial_rotary_factor f with int(size * f) = rotated, which a rounded quotient may miss by one."""
    factor = rotated / size
    return factor if int(size * factor) == rotated else math.nextafter(factor, 1.0)


def sliding(fields: Fields, every: int) -> list[str]:
    """Return layer_types: all but every `every`-th block have the window, unless the file has another pattern."""
    layers = fields.count("block_count", most=MAX_LAYERS)
    key = "attention.sliding_window_pattern"
    pattern = fields.get(key, every)
    if type(pattern) is int and 0 < pattern <= MOST:
        pattern = [(index + 1) % pattern != 0 for index in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers or not all(isinstance(each, bool) for each in pattern):
        raise fields.refused(key, f"a number, or true or false for each of {layers} layers belongs there")
    return ["sliding_attention" if each else "full_attention" for each in pattern]


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
