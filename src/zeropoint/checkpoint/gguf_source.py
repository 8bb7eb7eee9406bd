"""A GGUF file read as a checkpoint: tensors dequantized, under Hugging Face names and in Hugging Face's order of rows.

Every type that the gguf package can dequantize is read. A value is scale * code, plus the block's minimum where it has
one, in float32: rounded at most twice, by 2^-24 of its size each, where the code itself has 8 bits or fewer.

Another architecture is another entry in ARCHITECTURES.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from zeropoint.checkpoint.gguf_config import llama3_scaling, llama_config, qwen2_config, qwen3_config
from zeropoint.checkpoint.place import write_side_file
from zeropoint.checkpoint.reader import TensorInfo, no_such_tensor, read_into, rows_of, tied_in
from zeropoint.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CHUNK_BYTES = 1 << 18  # read and dequantized at once; 2.7 times as fast as the package's 16 rows, and bounded memory
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores one architecture.

    outer, block: Hugging Face's name for each of llama.cpp's, without ".weight" or ".bias"; those of a block are local.
    interleaved: the linears whose rows are stored with the two halves of each head interleaved, with the config's key
    for the number of heads. config: (metadata, Hugging Face names of the tensors, path) -> config.json.
    """

    outer: Mapping[str, str]
    block: Mapping[str, str]
    interleaved: Mapping[str, str]
    config: Callable[[Mapping[str, Any], Collection[str], Path], dict[str, Any]]

    def hugging_face_name(self, name: str) -> str | None:
        """Return "model.layers.3.mlp.up_proj.weight" for "blk.3.ffn_up.weight"; None if it is unknown."""
        match = re.fullmatch(r"(?:blk\.(\d{1,9})\.)?(\w+)\.(weight|bias)", name, re.ASCII)
        if match is None:
            return None
        layer, local, kind = match.groups()
        if layer is None:
            return f"{self.outer[local]}.{kind}" if local in self.outer else None
        return f"model.layers.{layer}.{self.block[local]}.{kind}" if local in self.block else None


OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
INTERLEAVED = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(OUTER, BLOCK, INTERLEAVED, llama_config),
    "qwen2": Architecture(OUTER, BLOCK, {}, qwen2_config),
    "qwen3": Architecture(OUTER, BLOCK | HEAD_NORMS, {}, qwen3_config),
}


class Gguf:
    """A checkpoint in one GGUF file; see `zeropoint.checkpoint.reader.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        from zeropoint.checkpoint.gguf_header import read_header  # gguf takes 0.2 s to import

        header = read_header(path)
        self.path = path
        self.metadata: Mapping[str, Any] = header.metadata
        self._architecture = _architecture(header.metadata, path)
        self.tensors: Mapping[str, TensorInfo] = _renamed(header.tensors, self._architecture, path)
        self.config = self._architecture.config(header.metadata, self.tensors.keys(), path)
        if ROPE_FREQS in header.tensors:
            self._use_rope_factors(header.tensors[ROPE_FREQS])
        tied = self.config["tie_word_embeddings"]
        self.tied: Mapping[str, str] = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Self:
        """Return the same file with its tensors under other names, or in parts."""
        other = copy.copy(self)
        other.tensors, other.tied = tensors, tied_in(self.tied, self.tensors, tensors)
        return other

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, or what it is tied to, as float32 in memory of its own."""
        import torch

        return torch.from_numpy(self.read_array(name))

    def read_array(self, name: str, *, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return one tensor, or some rows of it, as float32; only these rows are read unless they are interleaved."""
        info = self.tensors.get(self.tied.get(name, name))
        if info is None:
            raise no_such_tensor(name, self.path, self.tensors)
        part = info if rows is None else rows_of(info, rows)
        heads = self._heads(info)
        # the values of a vector share blocks, and the rows of interleaved heads lie among those of their whole head
        if heads is None and len(info.shape) > 1:
            return dequantize(part)
        values = dequantize(info) if heads is None else _apart(dequantize(info), heads, info)
        return values if rows is None else values[slice(*rows)].copy()

    def side_file(self, name: str) -> bytes | None:
        """Return tokenizer.json, tokenizer_config.json, generation_config.json or chat_template.jinja, else None."""
        return self._side_files.get(name)

    def files(self) -> tuple[Path, ...]:
        """Return the one file."""
        return (self.path,)

    def copy_side_files(self, folder: Path) -> None:
        """Write the side files that `side_file` knows."""
        for name, content in self._side_files.items():
            write_side_file(folder / name, content)

    def _heads(self, info: TensorInfo) -> int | None:
        """Return the number of heads whose rows are interleaved in a tensor, or None."""
        linear = info.name.rsplit(".", 1)[0]
        for name, heads in self._architecture.interleaved.items():
            if linear.endswith(name):
                return int(self.config[heads])
        return None

    @functools.cached_property
    def _side_files(self) -> dict[str, bytes]:
        from zeropoint.checkpoint.gguf_tokenizer import make_side_files

        return make_side_files(self.metadata, self.config, self.path)

    def _use_rope_factors(self, info: TensorInfo) -> None:
        """Put llama3's rope scaling, which a GGUF file holds as one divisor per frequency, into the config."""
        rope = self.config["rope_parameters"]
        factors = dequantize(info)
        if factors.size == self.config["head_dim"] // 2 and rope["rope_type"] == "default":
            if (factors == 1).all():
                return
            scaling = llama3_scaling(factors.reshape(-1), rope["rope_theta"])
            if scaling is not None:
                self.config["rope_parameters"] = {**rope, **scaling}
                return
        raise CheckpointError(
            f"{self.path}: {ROPE_FREQS} changes the rotary embedding in a way that is not llama3's rope scaling; "
            "give the Hugging Face folder that the file was converted from"
        )


def _architecture(metadata: Mapping[str, Any], path: Path) -> Architecture:
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture is {str(name)[:60]!r}; GGUF files are read of {', '.join(ARCHITECTURES)}, "
            "give the Hugging Face folder of another model"
        )
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"{path}: is one of {parts} parts; join them with llama.cpp: llama-gguf-split --merge FIRST_PART OUTPUT"
        )
    return ARCHITECTURES[name]


def _renamed(found: Mapping[str, TensorInfo], architecture: Architecture, path: Path) -> dict[str, TensorInfo]:
    """Return the tensors by their Hugging Face names."""
    tensors = {}
    for name, info in found.items():
        if name == ROPE_FREQS:
            continue
        theirs = architecture.hugging_face_name(name)
        if theirs is None:
            raise CheckpointError(
                f"{path}: the tensor {name[:100]!r} is none of this architecture's; "
                "give the Hugging Face folder that the file was converted from"
            )
        tensors[theirs] = replace(info, name=theirs)
    return tensors


def dequantize(info: TensorInfo) -> NDArray[np.float32]:
    """Return a tensor's values, float32 in its shape.

    Blocks do not know of rows, so the tensor is cut where it suits: only one chunk is in memory beside the result.
    Raises: CheckpointError if the package cannot dequantize the type.
    """
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[info.dtype]
    values_per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    values = np.empty(info.shape, dtype=np.float32)
    flat = values.reshape(-1)
    chunk = np.empty(min(info.size_bytes, CHUNK_BYTES // bytes_per_block * bytes_per_block), dtype=np.uint8)
    for start in range(0, info.size_bytes, chunk.size or 1):
        part = chunk[: info.size_bytes - start]
        read_into(info, part.data, start=start)
        first = start // bytes_per_block * values_per_block
        try:
            with np.errstate(all="ignore"):  # infinities and NaN are refused by name where they are used
                decoded = gguf.quants.dequantize(part.reshape(1, -1), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{info.file}: {info.name} is stored as {info.dtype}, which the gguf package cannot dequantize; "
                "update gguf, or give the Hugging Face folder that the file was converted from"
            ) from error
        flat[first : first + decoded.size] = decoded.reshape(-1)
    return values


def _apart(values: NDArray[np.float32], heads: int, info: TensorInfo) -> NDArray[np.float32]:
    """Return rows (heads * head_dim, ...) with the halves of each head one after the other, as Hugging Face has them.

    llama.cpp rotates neighbouring rows, Hugging Face the two halves of a head, so its converter interleaves the halves.
    """
    rows = len(values)
    if rows % (2 * heads):
        raise CheckpointError(
            f"{info.file}: {info.name} has {rows} rows, which do not split into {heads} heads of two halves"
        )
    pairs = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])  # (heads, head_dim / 2, 2, cols)
    return pairs.swapaxes(1, 2).reshape(values.shape)  # (rows, cols)
