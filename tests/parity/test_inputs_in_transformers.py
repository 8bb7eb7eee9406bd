"""A model whose inputs are rounded opens in transformers, and gives there the logits that it gives in our runtime.

The difference that rounding the inputs makes is hundreds of times what is allowed between the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tiny import make_llama
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import SchemeError
from zeropoint.pipeline import quantize
from zeropoint.recipe import Recipe, load_recipe
from zeropoint.runtime.torch_runner import TorchRunner
from zeropoint.runtime.weights import Weights

TOKENS = list(range(7, 300, 11))
SMALL = ["calibration.samples=4", "calibration.length=32"]

RECIPES: dict[str, tuple[str, list[str]]] = {
    "w8a8": ("w8a8", []),
    "w8a8 asymmetric weights": ("w8a8", ["weights.symmetric=false", "weights.scale_dtype=float32"]),
    "w8a8 groups": ("w8a8", ["weights.granularity=group", "weights.group_size=32"]),
    "w8a8 tensor": ("w8a8", ["weights.granularity=tensor", "weights.symmetric=false"]),
    "w8a8_static": ("w8a8_static", []),
    "w8a8_static symmetric": ("w8a8_static", ["activations.symmetric=true"]),
    "w8a8_static percentile": ("w8a8_static", ["activation_range=percentile", "activation_range.percent=99.0"]),
    "w8a8_static that stays dynamic in part": ("w8a8_static", ["static_error_limit=1e-4"]),
    "w8a8_static with corrected biases": ("w8a8_static", ["bias_correction=true"]),
    "w4a8": ("w4a8", ["weights.group_size=32"]),
    "w4a8 static": ("w4a8", ["weights.group_size=32", "activations.dynamic=false", "activations.symmetric=false"]),
    "mixed formats": (
        "w8a8_static",
        [
            "rules.0.layers=*.down_proj",
            "rules.0.weights={bits = 4, granularity = 'group', group_size = 32}",
            "rules.1.layers=*.o_proj",
            "rules.1.activations=float",
            "rules.2.layers=*.v_proj",
            "rules.2.activations.dynamic=true",
        ],
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"), hidden=64, intermediate=128, attention_bias=True, tied=False)


@torch.no_grad()
def theirs(folder: Path) -> np.ndarray[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return np.asarray(model(torch.tensor([TOKENS])).logits[0].float())


def ours(folder: Path) -> np.ndarray[Any, Any]:
    return TorchRunner(Weights(open_checkpoint(folder))).logits(TOKENS)


@pytest.mark.parametrize("name", RECIPES)
def test_the_logits_are_ours_and_not_those_of_float_inputs(
    base: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, overrides = RECIPES[name]
    quantize(base, tmp_path / "out", recipe=load_recipe(preset, [*overrides, *SMALL]))
    found = ours(tmp_path / "out")
    difference = float(np.abs(found - theirs(tmp_path / "out")).max())
    monkeypatch.setattr("zeropoint.runtime.ops_torch.round_input", lambda x, params: x)
    effect = float(np.abs(found - ours(tmp_path / "out")).max())
    assert np.abs(found).max() > 1
    assert difference <= effect / 100


def test_static_parameters_are_stored_for_each_linear_and_shared_by_a_stage(base: Path, tmp_path: Path) -> None:
    quantize(base, tmp_path / "out", recipe=load_recipe("w8a8_static", SMALL))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"
    assert config["config_groups"]["group_0"]["input_activations"] == {
        "dynamic": False, "group_size": None, "num_bits": 8, "strategy": "tensor", "symmetric": False, "type": "int",
    }  # fmt: skip
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    stem = "model.layers.0.self_attn"
    assert tensors[f"{stem}.q_proj.weight"].dtype == torch.int8
    scale, zero_point = tensors[f"{stem}.q_proj.input_scale"], tensors[f"{stem}.q_proj.input_zero_point"]
    assert (scale.dtype, scale.shape, zero_point.dtype, zero_point.shape) == (torch.float32, (1,), torch.int8, (1,))
    assert scale == tensors[f"{stem}.v_proj.input_scale"]
    assert scale != tensors[f"{stem}.o_proj.input_scale"]


def test_packed_zero_points_with_rounded_inputs_are_refused_before_anything_is_read(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe("w4a8", ["weights.symmetric=false", "weights.group_size=32"])
    with pytest.raises(SchemeError, match=r"leaves the inputs float.*activations = 'float'"):
        quantize(base, tmp_path / "out", recipe=recipe)


def test_transformers_leaves_inputs_float_where_zero_points_are_packed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asymmetric = ["weights.symmetric=false", "weights.group_size=32", "rounding=rtn", "range=minmax"]
    quantize(base, tmp_path / "float", recipe=load_recipe("w4a16", [*asymmetric, *SMALL]))
    module = find.load("formats", "compressed_tensors")
    made = module.config

    def without_refusal(layers: Any, inputs: Any = None, tables: Any = None, **names: Any) -> Any:
        config = made(layers)
        rounded = made({"x": Recipe().weights}, {"x": load_recipe("w4a8").activations})
        group = rounded["config_groups"]["group_0"]
        config["config_groups"]["group_0"]["input_activations"] = group["input_activations"]
        return config

    monkeypatch.setattr(module, "config", without_refusal)
    quantize(base, tmp_path / "rounded", recipe=load_recipe("w4a8", [*asymmetric, *SMALL, "transforms=[]"]))
    assert np.array_equal(theirs(tmp_path / "rounded"), theirs(tmp_path / "float"))
