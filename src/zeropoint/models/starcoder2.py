"""StarCoder 2: Llama's attention with layer norms and biases, an MLP without a gate, and often a window.

    x = x + o_proj(attention(rope(q_proj(h)), rope(k_proj(h)), v_proj(h)))      h = norm(x)
    x = x + c_proj(gelu(c_fc(norm(x))))

Source: Lozhkov et al. 2024, arXiv:2402.19173.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.models import gpt_neox, llama
from zeropoint.models._layers import window_of
from zeropoint.models._values import flag
from zeropoint.models.parts import Flow, Stage, add_to_residual, branch

DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "use_bias": True,
}
FLOW: Flow = (
    *(replace(stage, residual=None) for stage in llama.FLOW[:2]),
    Stage(("mlp.c_fc",), "post_attention_layernorm", llama.mlp_input, gpt_neox.activate),
    Stage(("mlp.c_proj",), None, branch, add_to_residual),
)


class Model(llama.Model):
    """A StarCoder 2 decoder; see `zeropoint.models.parts.Model`."""

    stages = FLOW

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        read, biased = llama.read_config(config, eps_key="norm_epsilon"), flag(config, "use_bias")
        window = window_of(config, None)
        return cls(replace(read, layer_norm=True, window=window, attention_bias=biased, mlp_bias=biased))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        return {**super().shapes(), "c_fc": (inner, hidden), "c_proj": (hidden, inner)}
