from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import zeropoint
from architectures import make
from zeropoint.errors import RecipeError
from zeropoint.models import load_model
from zeropoint.recipe import Recipe, load_recipe

SIZES = {
    "hidden_size": 2048, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 260,
}  # fmt: skip
TOKENS = [i * 7 % 200 for i in range(40)]
EMPTY = "model.layers.1.mlp.down_proj"
"""The one linear that is quantized: it is all zero, so that its integers are exact."""


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("hidden", [1152, 2048, 3072, 257**2, 259**2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_factor_of_the_embedding_is_rounded_as_the_weights_are(model_type: str, hidden: int, dtype: str) -> None:
    config = {**SIZES, "model_type": model_type, "hidden_size": hidden, "dtype": dtype}
    expected = torch.tensor(math.sqrt(hidden)).to(getattr(torch, dtype))
    assert load_model(config).config.embedding_factor == float(expected)


def test_gelu_of_the_first_releases_is_its_approximation() -> None:
    config = {**SIZES, "model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None}
    assert load_model(config).config.activation == "gelu_pytorch_tanh"


@pytest.mark.parametrize("variant", ["plain", "untied, biased"])
def test_rotated_it_has_the_same_logits(variant: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", "gemma", variant)
    with torch.no_grad():
        model.get_parameter(f"{EMPTY}.weight").zero_()
    model.save_pretrained(tmp_path / "model")
    recipe = Recipe.from_dict(
        {
            "weights": {"bits": 8, "granularity": "channel"},
            "rounding": "rtn",
            "range": "minmax",
            "calibration": {"samples": 4, "length": 32, "tokens": "random"},
            "rules": [{"layers": "*", "keep_float": True}, {"layers": EMPTY}],
            "transforms": ["rotate"],
        }
    )
    zeropoint.quantize(tmp_path / "model", tmp_path / "out", recipe=recipe)
    before, after = (
        torch.from_numpy(zeropoint.load(tmp_path / name, runtime="torch", kv_cache="float32").logits(TOKENS))
        for name in ("model", "out")
    )
    assert torch.allclose(after, before, atol=2e-5 * float(before.abs().max()), rtol=0)


def test_norms_behind_the_sublayers_are_no_place_for_a_rotation(tmp_path: Path) -> None:
    make(tmp_path / "model", "gemma2", "capped")
    settings = [
        "weights.group_size=16",
        'calibration.tokens="random"',
        "calibration.samples=4",
        "calibration.length=32",
    ]
    with pytest.raises(RecipeError, match=r"in a gemma2 model what self_attn\.o_proj do with the residual stream"):
        zeropoint.quantize(
            tmp_path / "model", tmp_path / "out", recipe=load_recipe("w4a16", [*settings, 'transforms=["rotate"]'])
        )
