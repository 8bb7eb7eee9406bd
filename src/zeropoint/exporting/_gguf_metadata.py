"""What a GGUF file says of a model beside its tensors: sizes, rotation, types; and of which architectures it can.

Another architecture is another line in ARCHITECTURES, if llama.cpp computes it from these keys alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

import zeropoint
from zeropoint.errors import ArchitectureError
from zeropoint.models.parts import Config, Model
from zeropoint.models.rope import Rope
from zeropoint.runtime.weights import Weights

ROPE_FREQS = "rope_freqs.weight"
ROPE_TYPES = ("default", "linear", "llama3")

QUANTIZATION_VERSION = 2
"""Of ggml's block types: the one of all files since May 2023."""


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp has one architecture.

    arch: its name there. interleaved: whether it rotates neighbouring rows of q and k, where Hugging Face rotates the
    two halves of a head. activation: the one that it computes.
    """

    arch: gguf.MODEL_ARCH
    interleaved: bool = False
    activation: str = "silu"

    @property
    def arch_name(self) -> str:
        """Its name in the file."""
        return str(gguf.MODEL_ARCH_NAMES[self.arch])

    def heads(self, name: str, model: Model) -> int | None:
        """Return how many heads of interleaved rows a tensor has, or None."""
        if not self.interleaved:
            return None
        part = name.rsplit(".", 2)[-2]
        return {"q_proj": model.config.heads, "k_proj": model.config.kv_heads}.get(part)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, interleaved=True),
    "mistral": Architecture(gguf.MODEL_ARCH.LLAMA, interleaved=True),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3),
}
"""By model_type."""

NOT_SAID: Mapping[str, object] = {
    "window": None,
    "attention_scale": None,
    "attention_softcap": None,
    "logit_softcap": None,
    "norm_offset": 0.0,
    "embedding_factor": 1.0,
}
"""What changes a model's output and is in none of the keys below: the value that is none."""


def architecture_of(model: Model) -> Architecture:
    """Return how llama.cpp has a model. Raises: ArchitectureError if that is not known here, or not all it computes."""
    config = model.config
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise ArchitectureError(
            f"model_type {config.model_type!r} cannot be exported as GGUF yet; {', '.join(ARCHITECTURES)} can"
        )
    if config.activation != found.activation:
        raise ArchitectureError(
            f"hidden_act is {config.activation!r}; llama.cpp computes {found.arch_name} with {found.activation!r} only"
        )
    if config.rope is not None and config.rope.rope_type not in ROPE_TYPES:
        raise ArchitectureError(
            f"rope type {config.rope.rope_type!r} is not written to GGUF files, {', '.join(ROPE_TYPES)} are; run the "
            "folder, or export as gptq or awq"
        )
    for index in range(config.layers):
        block = model.config_of(index)
        for key, none in NOT_SAID.items():
            if getattr(block, key) != none:
                raise ArchitectureError(
                    f"layer {index} has {key} {getattr(block, key)}, which a GGUF file of {found.arch_name} does not "
                    "say: llama.cpp would compute something else; run the folder, or export as gptq or awq"
                )
        if block.rope != config.rope:
            raise ArchitectureError(f"layer {index} has a rotation of its own, which GGUF files here do not say")
    return found


def fields_of(weights: Weights, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of a model by key. kinds: the types of its tensors.

    Integers are for uint32, floats for float32, as llama.cpp wants them.
    """
    config = weights.model.config
    arch = architecture_of(weights.model).arch_name
    common = Counter(kind for kind in kinds if kind != "F32").most_common(1)
    kind = common[0][0] if common else "F32"
    kind = {"Q4_K": "Q4_K_S"}.get(kind, kind)  # as llama.cpp calls a file of it
    file_type = gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType[f"MOSTLY_{kind}"]
    rope = _rope_of(config)
    scaling: dict[str, Any] = {}
    if rope.rope_type == "linear":
        scaling = {
            f"{arch}.rope.scaling.type": "linear",
            f"{arch}.rope.scaling.factor": float(dict(rope.scaling)["factor"]),
        }
    return {
        "general.name": weights.checkpoint.path.resolve().name,
        "general.quantized_by": f"zeropoint {zeropoint.__version__}",
        "general.file_type": int(file_type),
        "general.quantization_version": QUANTIZATION_VERSION,
        f"{arch}.block_count": config.layers,
        f"{arch}.context_length": config.max_positions,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.heads,
        f"{arch}.attention.head_count_kv": config.kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        f"{arch}.rope.dimension_count": config.head_dim,
        f"{arch}.rope.freq_base": float(rope.theta),
        f"{arch}.vocab_size": config.vocab_size,
        **scaling,
    }


def rope_factors(config: Config) -> dict[str, NDArray[np.float32]]:
    """Return llama3's rope scaling as llama.cpp has it, the divisor of each frequency, by the tensor's name; or {}."""
    rope = _rope_of(config)
    if rope.rope_type != "llama3":
        return {}
    plain = Rope(config.head_dim, rope.theta).frequencies()
    return {ROPE_FREQS: (plain / rope.frequencies()).astype(np.float32)}


def _rope_of(config: Config) -> Rope:
    if config.rope is None:
        raise ArchitectureError("the model rotates nothing, and llama.cpp would: it cannot be exported as GGUF")
    return config.rope


def add_fields(writer: gguf.GGUFWriter, fields: Mapping[str, Any]) -> None:
    """Hand metadata to the writer, each value under the type that llama.cpp reads it as."""
    for key, value in fields.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
