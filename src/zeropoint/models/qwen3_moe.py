"""Qwen3 with experts: Qwen3's attention, and a mixture of experts in the place of every MLP, or of some.

Block i has experts if i + 1 is a multiple of decoder_sparse_step and i is not one of mlp_only_layers; the others have
Qwen3's MLP. Source: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.errors import ArchitectureError
from zeropoint.models import _experts, llama, qwen3
from zeropoint.models._layers import window_of
from zeropoint.models._values import flag, whole
from zeropoint.models.parts import Flow

DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
}
NAMES = _experts.Names("mlp.gate", "mlp.experts.{}", "gate_proj", "up_proj", "down_proj")


class Model(qwen3.Model):
    """A Qwen3 decoder with experts; see `zeropoint.models.parts.Model`.

    config.intermediate_size is that of an expert; the config of a block without any has its own.
    """

    @cached_property
    def flow(self) -> Flow:
        return (*qwen3.FLOW[:2], *_experts.stages(NAMES, self.config.experts, llama.mlp_input))

    def flow_of(self, index: int) -> Flow:
        return self.flow if self.config_of(index).experts else qwen3.FLOW

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        count_key = "num_local_experts" if config.get("num_experts") is None else "num_experts"
        plain = llama.read_config(config, "num_experts", "num_local_experts")
        # unlike in Qwen3 itself, a window is that of all blocks
        window = window_of(config, 4096) if flag(config, "use_sliding_window") else None
        plain = replace(plain, window=window, mlp_bias=False)
        count = whole(config, count_key, 128, most=_experts.MAX_EXPERTS)
        read = _experts.read_experts(config, plain, count, normalized=flag(config, "norm_topk_prob"))
        read = replace(read, intermediate_size=whole(config, "moe_intermediate_size"))
        sparse = _sparse(config, plain.layers)
        return cls(read, () if all(sparse) else tuple(read if each else plain for each in sparse))

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        return _experts.listed(super().arranged(tensors), NAMES, self.config, self.config.intermediate_size)

    def shape(self, name: str) -> tuple[int, ...]:
        if ".mlp." in name and ".experts." not in name and not name.endswith(".gate.weight"):
            dense = next(block for block in self.blocks if not block.experts)
            rows, cols = dense.intermediate_size, dense.hidden_size
            return (cols, rows) if name.endswith(".down_proj.weight") else (rows, cols)
        return super().shape(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(), "gate": (self.config.experts, self.config.hidden_size)}


def _sparse(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Return of each block whether it has experts. Raises: ArchitectureError, also where none has."""
    step, plain = whole(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(plain, list) or any(type(index) is not int for index in plain):
        raise ArchitectureError(f"config.json: mlp_only_layers is {str(plain)[:60]}; a list of numbers belongs there")
    without = set(plain)
    found = [(index + 1) % step == 0 and index not in without for index in range(layers)]
    if not any(found):
        raise ArchitectureError(
            "config.json: mlp_only_layers and decoder_sparse_step leave no block with experts; "
            "that is not covered for a qwen3_moe model"
        )
    return found
