"""Mixtral: Mistral's blocks with a mixture of experts in the place of the MLP.

The weights of a token's experts sum to 1. Source: Jiang et al. 2024, arXiv:2401.04088.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from zeropoint.checkpoint.reader import TensorInfo
from zeropoint.models import _experts, llama
from zeropoint.models._layers import window_of
from zeropoint.models._values import whole
from zeropoint.models.parts import Flow

DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
NAMES = _experts.Names("block_sparse_moe.gate", "block_sparse_moe.experts.{}", "w1", "w3", "w2")


class Model(llama.Model):
    """A Mixtral decoder; see `zeropoint.models.parts.Model`."""

    @cached_property
    def flow(self) -> Flow:
        return (*llama.FLOW[:2], *_experts.stages(NAMES, self.config.experts, llama.mlp_input))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        read = replace(llama.read_config(config, "num_local_experts"), window=window_of(config, None))
        count = whole(config, "num_local_experts", most=_experts.MAX_EXPERTS)
        return cls(_experts.read_experts(config, read, count, normalized=True))

    def arranged(self, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        return _experts.listed(super().arranged(tensors), NAMES, self.config, self.config.intermediate_size)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        experts = {"gate": (self.config.experts, hidden)}
        return {**super().shapes(), **experts, "w1": (inner, hidden), "w3": (inner, hidden), "w2": (hidden, inner)}
