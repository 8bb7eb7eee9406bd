"""What a checkpoint calls its tensors, where that is not what its architecture calls them.

Saved as a model without a head, by older tools too, they lack what transformers calls the base model:

    layers.0.self_attn.q_proj.weight      for      model.layers.0.self_attn.q_proj.weight
    h.0.attn.c_attn.weight                for      transformer.h.0.attn.c_attn.weight

and some have what was never trained: masks of attention, 4 MB a block, and frequencies of ropes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.models.parts import Ends

CONSTANTS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""How the names of tensors of a block end that whoever runs the model makes anew."""


def is_constant(name: str, block: str) -> bool:
    """Say whether a tensor is one of CONSTANTS. block: the name of any block."""
    return name.endswith(CONSTANTS) and name.startswith(f"{block.rpartition('.')[0]}.")


def with_prefix(tensors: Mapping[str, TensorInfo], ends: Ends, first_block: str) -> Mapping[str, TensorInfo]:
    """Return the tensors under names with the prefix of `first_block`, if none has it and they are called so otherwise.

    first_block: the name of block 0, such as "model.layers.0".
    """
    prefix = f"{first_block.partition('.')[0]}."
    modules = (first_block.rpartition(".")[0], ends.embedding, ends.norm, ends.positions)
    ours = tuple(f"{module.removeprefix(prefix)}." for module in modules if module is not None)
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    return {
        new: info if new == info.name else replace(info, name=new)
        for info in tensors.values()
        for new in [f"{prefix}{info.name}" if info.name.startswith(ours) else info.name]
    }
