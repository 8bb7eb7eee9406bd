"""What the pipeline does to the biases of linears."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import make_llama
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import bundled_text, calibration_batches
from zeropoint.observe.walk import walk
from zeropoint.pipeline import quantize
from zeropoint.recipe import load_recipe
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights

SMALL = ["calibration.samples=4", "calibration.length=32"]
RECIPES: dict[str, tuple[str, list[str]]] = {
    "weights": ("w3a16", ["weights.group_size=32", "rounding=rtn", "range=minmax"]),
    "gptq": ("w3a16", ["weights.group_size=32"]),
    "static inputs": (
        "w8a8_static",
        ["transforms=[]", "static_error_limit=none", "activation_range=percentile", "activation_range.percent=95.0"],
    ),
    "dynamic inputs": ("w4a8", ["transforms=[]", "weights.group_size=32", "rounding=rtn", "range=minmax"]),
    "smoothed": ("w8a8_static", ["transforms=[{method = 'smoothquant', strength = 0.5}]"]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", attention_bias=True)


def mean_errors(quantized: Path, original: Path) -> dict[str, float]:
    """The norm of the mean error of each linear's output on the calibration text, as the written model runs it."""
    weights, floats = Weights(open_checkpoint(quantized)), Weights(open_checkpoint(original))
    text = calibration_batches(
        bundled_text("calibration"), load_tokenizer(weights.checkpoint), samples=4, length=32, seed=0, batch=4
    )
    ops, found = TorchOps(), {}
    with torch.inference_mode(), Activations(limit_bytes=1 << 30) as activations:
        activations.extend(weights.embed(ops, torch.from_numpy(text.tokens).long(), text.batch))
        for visit in walk(weights.model, partial(weights.block, ops=ops), activations):
            whole = floats.block(visit.index, ops)
            x = torch.cat(list(visit.inputs()))
            for name in visit.stage.linears:
                error = visit.block.linear(name, x) - whole.linear(name, x)
                found[f"{visit.index}.{name}"] = float(error.double().mean((0, 1)).norm())
    return found


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "smoothed"])
def test_outputs_of_layers_with_a_bias_keep_their_mean(base: Path, tmp_path: Path, name: str) -> None:
    preset, overrides = RECIPES[name]
    errors = []
    for asked in ("false", "true"):
        recipe = load_recipe(preset, [*overrides, *SMALL, f"bias_correction={asked}"])
        result = quantize(base, tmp_path / asked, recipe=recipe)
        errors.append(mean_errors(tmp_path / asked, base))
        for row in result.layers:
            assert (row.bias_shift is not None) == (asked == "true" and "self_attn" in row.name)
    before, after = errors
    attention = [layer for layer in before if "self_attn" in layer]
    assert len(attention) == 8
    assert all(after[layer] < 1e-5 < 1e-3 * before[layer] + 1e-5 for layer in attention)
    assert after["0.mlp.up_proj"] > 100 * max(after[layer] for layer in attention)  # it has no bias


@pytest.mark.parametrize("name", RECIPES)
def test_only_biases_change_in_the_first_stage(base: Path, tmp_path: Path, name: str) -> None:
    preset, overrides = RECIPES[name]
    files = []
    for asked in ("false", "true"):
        quantize(base, tmp_path / asked, recipe=load_recipe(preset, [*overrides, *SMALL, f"bias_correction={asked}"]))
        files.append(load_file(tmp_path / asked / "model.safetensors"))
    one, other = files
    assert set(one) == set(other)
    changed = {key for key in one if not torch.equal(one[key], other[key])}
    first = {key for key in changed if key.startswith("model.layers.0.self_attn") and "o_proj" not in key}
    assert first == {f"model.layers.0.self_attn.{name}_proj.bias" for name in "qkv"}
    assert all(one[key].dtype == other[key].dtype for key in one)
    assert not any("norm" in key for key in changed if key.startswith("model.layers.0."))
    assert "model.embed_tokens.weight" not in changed


def test_a_model_without_biases_is_written_as_ever_and_reads_no_text_for_them(tmp_path: Path) -> None:
    plain = make_llama(tmp_path / "plain")
    nearest = ["rounding=rtn", "range=minmax", "weights.group_size=32"]
    for asked in ("false", "true"):
        result = quantize(plain, tmp_path / asked, recipe=load_recipe("w4a16", [*nearest, f"bias_correction={asked}"]))
        assert result.calibration is None
        assert all(row.bias_shift is None for row in result.layers)
    written = [(tmp_path / asked / "model.safetensors").read_bytes() for asked in ("false", "true")]
    assert written[0] == written[1]


def test_a_bias_in_bfloat16_stays_one_and_is_what_runs_next(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "half", attention_bias=True, mlp_bias=True, dtype="bfloat16")
    result = quantize(model, tmp_path / "out", recipe=load_recipe("w8a8_static", [*SMALL, "bias_correction=true"]))
    assert all(row.bias_shift is not None for row in result.layers)
    bias = "model.layers.1.mlp.down_proj.bias"
    before, after = (load_file(folder / "model.safetensors")[bias] for folder in (model, tmp_path / "out"))
    assert before.dtype == after.dtype == torch.bfloat16
    shift = float((after.double() - before.double()).abs().max())
    assert shift == result.layers[-1].bias_shift
