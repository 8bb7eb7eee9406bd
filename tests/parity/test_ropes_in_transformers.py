"""The frequencies and factors of every published rope are those that transformers computes from the same config."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from unit.models.published import ACCEPTED
from zeropoint.models import load_model
from zeropoint.models.llama import SAME_ACTIVATIONS

ROPES = {name: config["rope_scaling"] for name, config in ACCEPTED.items() if config.get("rope_scaling")}
SCALED = [name for name, rope in ROPES.items() if rope.get("type") != "su"]
"""transformers 5.23 knows the name su, and fails to validate what it makes of it."""


@pytest.mark.parametrize("name", SCALED)
def test_a_published_rope_is_that_of_transformers(name: str) -> None:
    said = copy.deepcopy(dict(ACCEPTED[name]))  # transformers writes into its tables
    rope = load_model(said).config.rope
    assert rope is not None
    config: Any = AutoConfig.for_model(said.pop("model_type"), **said)
    expected, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, torch.device("cpu"))
    # float32, in another order of operations
    assert np.allclose(rope.frequencies(), expected.numpy(), rtol=2e-6, atol=0)
    assert rope.factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("other", "ours"), SAME_ACTIVATIONS.items())
def test_an_activation_of_another_name_is_the_same(other: str, ours: str) -> None:
    x = torch.linspace(-12, 12, 5001)
    assert torch.allclose(ACT2FN[other](x), ACT2FN[ours](x), rtol=1e-6, atol=1e-6)
