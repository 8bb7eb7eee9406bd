"""A text model inside a checkpoint that has more parts, such as an image encoder: its own file, under other names.

config.json has the text model in `text_config`; its tensors are called in one of two ways:

    language_model.model.layers.0 ...     language_model.lm_head     in files, whoever saved them
    model.language_model.layers.0 ...     lm_head                    as the modules are called since transformers 5

Only text goes through it here. The other parts are copied as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.errors import ArchitectureError
from zeropoint.models.parts import Array, Config, Ends, Flow, Model, Ops

PART = "language_model"
PLACES = (("model.language_model.", "lm_head"), ("language_model.model.", "language_model.lm_head"))
"""What stands in the place of "model.", and what the head is called."""

BOTH_WAYS = ("paligemma",)

LLAMA_SIZES = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32000,
}  # fmt: skip
SIZES: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA_SIZES,
    "mistral": {**LLAMA_SIZES, "intermediate_size": 14336},
    "qwen2": {**LLAMA_SIZES, "intermediate_size": 22016, "vocab_size": 151936},
    "qwen3": {**LLAMA_SIZES, "intermediate_size": 22016, "vocab_size": 151936},
    "gemma3_text": {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "vocab_size": 262_208,
    },
}  # fmt: skip
"""What transformers takes for sizes that a text_config leaves out; a config.json of a text model has them all."""


def text_config(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """Return the config of the text model, complete enough for its file. tied: whether no head of its own is stored."""
    text = config["text_config"]
    if config.get("model_type") in BOTH_WAYS:
        raise ArchitectureError(
            f"config.json: in a {config['model_type']} model the tokens of a prompt see one another in both "
            "directions; that is not covered"
        )
    if not isinstance(text, dict):
        raise ArchitectureError(f"config.json: text_config is {str(text)[:60]!r}; a table belongs there")
    dtype = {key: config[key] for key in ("dtype", "torch_dtype") if key in config}
    return {**SIZES.get(str(text.get("model_type")), {}), **dtype, **text, "tie_word_embeddings": tied}


def place_of(config: Mapping[str, Any], tensors: Collection[str]) -> tuple[str, str]:
    """Return which of PLACES the tensors are in. Raises: ArchitectureError if they are in none."""
    for prefix, head in PLACES:
        if any(name.startswith(prefix) for name in tensors):
            return prefix, head
    raise ArchitectureError(
        f"config.json: a {str(config.get('model_type'))[:60]} model has its text model under "
        f"{' or '.join(prefix for prefix, _ in PLACES)}, and no tensor's name begins so; it is not covered"
    )


@dataclass(frozen=True)
class Within:
    """A text model under other names; see `zeropoint.models.parts.Model`.

    inner: under its own. prefix: what stands in the place of "model.". head: the full name of the head.
    """

    inner: Model
    prefix: str
    head_name: str
    part: ClassVar[str | None] = PART

    @property
    def config(self) -> Config:
        return self.inner.config

    @property
    def flow(self) -> Flow:
        return self.inner.flow

    @cached_property
    def ends(self) -> Ends:
        ends = self.inner.ends
        return Ends(self._outside(ends.embedding), self._outside(ends.norm), self.head_name)

    def flow_of(self, index: int) -> Flow:
        return self.inner.flow_of(index)

    def config_of(self, index: int) -> Config:
        return self.inner.config_of(index)

    def block_name(self, index: int) -> str:
        return self._outside(self.inner.block_name(index))

    def block_tensors(self, index: int) -> tuple[str, ...]:
        return tuple(map(self._outside, self.inner.block_tensors(index)))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inner.shape(name)

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        return tensors

    def embed(self, ops: Ops, weights: Mapping[str, Array], tokens: Array, start: int = 0) -> Array:
        return self.inner.embed(ops, self._inside(weights), tokens, start)

    def head(self, ops: Ops, weights: Mapping[str, Array], x: Array) -> Array:
        return self.inner.head(ops, self._inside(weights), x)

    def _outside(self, name: str) -> str:
        return self.prefix + name.removeprefix("model.")

    def _inside(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        head = f"{self.head_name}.weight"
        own = {head: f"{self.inner.ends.head}.weight"}
        return {own.get(name, f"model.{name.removeprefix(self.prefix)}"): array for name, array in weights.items()}
