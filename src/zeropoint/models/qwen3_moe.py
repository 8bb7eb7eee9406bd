"""Qwen3 with experts: Qwen3's attention, and a mixture of experts in the place of every MLP.

Some blocks with a plain MLP (mlp_only_layers, decoder_sparse_step) are in no release, and refused.
Source: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from zeropoint.errors import ArchitectureError
from zeropoint.models import _experts, llama, qwen2, qwen3
from zeropoint.models._values import flag, whole
from zeropoint.models.parts import Flow

DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
NAMES = _experts.Names("mlp.gate", "mlp.experts.{}", "gate_proj", "up_proj", "down_proj")


class Model(qwen3.Model):
    """A Qwen3 decoder with experts; see `zeropoint.models.parts.Model`."""

    @cached_property
    def flow(self) -> Flow:
        return (*qwen3.FLOW[:2], *_experts.stages(NAMES, self.config.experts, llama.mlp_input))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        if config.get("mlp_only_layers") or whole(config, "decoder_sparse_step", 1) != 1:
            raise ArchitectureError(
                "config.json: mlp_only_layers or decoder_sparse_step leave blocks without experts; that is not covered"
            )
        config["intermediate_size"] = whole(config, "moe_intermediate_size")
        count_key = "num_local_experts" if config.get("num_experts") is None else "num_experts"
        read = llama.read_config(config, "num_experts", "num_local_experts")
        count = whole(config, count_key, 128, most=_experts.MAX_EXPERTS)
        read = _experts.read_experts(config, read, count, normalized=flag(config, "norm_topk_prob"))
        return cls(read, qwen2.windowed(config, read))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(), "gate": (self.config.experts, self.config.hidden_size)}
