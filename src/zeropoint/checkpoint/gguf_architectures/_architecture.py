"""What a file of this folder says of its architecture, and the names that most have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.checkpoint.gguf_architectures._fields import Fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Config = dict[str, Any]
"""The content of a config.json."""


@dataclass(frozen=True)
class Swapped:
    """Rows whose order in the file is another one: of `shape`, the two `axes` are swapped.

    shape: the rows as they are stored; a text is a key of config.json, -1 stands for what is left.
    """

    shape: tuple[int | str, ...]
    axes: tuple[int, int]


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores one architecture.

    config: makes config.json of the metadata. outer, block: Hugging Face's name for each of llama.cpp's, without
    ".weight" or ".bias"; those of a block are local. experts: the same for stacks (experts, rows, cols), with {} for
    the number of an expert. layers: what the blocks are called. head: what the head is; tied where the file has none.
    swapped: linears with rows in another order. transposed: linears that Hugging Face stores as (cols, rows), and
    llama.cpp does not. added: what the file has added to the gain of every norm. factors: tensors that hold divisors
    of the rope's frequencies, if there are any; with_factors: puts them into the config.
    """

    model_type: str
    config: Callable[[Fields], Config]
    outer: Mapping[str, str]
    block: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    layers: str = "model.layers"
    head: str = "lm_head"
    swapped: Mapping[str, Swapped] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    added: float = 0.0
    factors: tuple[str, ...] = ()
    with_factors: Callable[[Config, Mapping[str, NDArray[np.float32]], Path], Config] | None = None

    def hugging_face_name(self, name: str) -> str | None:
        """Return "model.layers.3.mlp.up_proj.weight" for "blk.3.ffn_up.weight"; None if it is unknown.

        Of a stack of experts it still has {} for the number of one.
        """
        match = re.fullmatch(r"(?:blk\.(\d{1,9})\.)?(\w+)\.(weight|bias)", name, re.ASCII)
        if match is None:
            return None
        layer, local, kind = match.groups()
        if layer is None:
            return f"{self.outer[local]}.{kind}" if local in self.outer else None
        theirs = self.experts.get(local) if kind == "weight" else None
        theirs = self.block.get(local) if theirs is None else theirs
        return None if theirs is None else f"{self.layers}.{layer}.{theirs}.{kind}"


OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

INTERLEAVED = {
    "self_attn.q_proj": Swapped(("num_attention_heads", -1, 2), (1, 2)),
    "self_attn.k_proj": Swapped(("num_key_value_heads", -1, 2), (1, 2)),
}
"""llama.cpp rotates neighbouring rows, Hugging Face the two halves of a head: its converter interleaves the halves."""
